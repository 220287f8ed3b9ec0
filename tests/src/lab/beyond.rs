//! Clients who are farther away.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{
    Family, Host, Lab, VIPS,
    host::{ip_batch, switch_offloads_off},
};

/// The network behind the client, and who has which address there.
const NETWORKS: [(&str, &str, &str); 2] = [
    ("198.18.9.0/24", "198.18.9.1/24", "198.18.9.2/24"),
    ("2001:db8:9::/64", "2001:db8:9::1/64", "2001:db8:9::2/64"),
];

impl Lab {
    /// A machine behind the client, which is its router now, over a link of so many bytes of IP. It
    /// does not let servers know of that: the segments that it asks for would fill 1,500 bytes.
    ///
    /// # Errors
    /// If something can't be set up.
    pub fn behind_the_client(&self, mtu: u32) -> Result<Host> {
        let (client, name) = (self.client(), "far");
        let far = Host::create(self.name(), name, &[], &self.directory)?;
        let (inside, outside) = (client.namespace().name(), far.namespace().name());
        ip_batch(&format!(
            "link add {name} netns {inside} mtu {mtu} type veth peer name eth0 netns {outside} mtu {mtu}\n"
        ))?;
        for (host, interface) in [(client, name), (&far, "eth0")] {
            host.enter(|| switch_offloads_off(interface))?;
            host.ip(&format!("link set {interface} up"))?;
        }
        client.sysctl("net.ipv4.ip_forward", "1")?;
        client.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        for ((family, (network, near, own)), vips) in
            [Family::V4, Family::V6].into_iter().zip(NETWORKS).zip(VIPS)
        {
            // The largest segment that fits 1,500 bytes.
            let (router, segment) = match family {
                Family::V4 => ("198.18.9.1", 1460),
                Family::V6 => ("2001:db8:9::1", 1440),
            };
            let nodad = if family == Family::V6 { "nodad" } else { "" };
            client.ip(&format!("address add {near} dev {name} {nodad}"))?;
            far.ip(&format!("address add {own} dev eth0 {nodad}"))?;
            far.ip(&format!("route add {vips} via {router} advmss {segment}"))?;
            let via: IpAddr = client.address(family);
            for host in self.balancers().into_iter().chain(self.backends()) {
                host.ip(&format!("route add {network} via {via}"))
                    .with_context(|| format!("lead {} to {network}", host.role()))?;
            }
        }
        Ok(far)
    }
}
