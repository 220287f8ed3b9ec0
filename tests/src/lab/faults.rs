//! Things that go wrong with a backend, one call each.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result};

use super::{Agent, Attached, DEADLINE, Host, Lab, Program, host::ip_batch, until};

impl Host {
    /// Takes a VIP off the loopback interface: frames for it are no longer this machine's.
    pub fn disown_vip(&self, vip: IpAddr) -> Result<()> {
        let length = if vip.is_ipv4() { 32 } else { 128 };
        self.ip(&format!("address del {vip}/{length} dev lo"))
    }
}

impl Agent {
    /// Ends the agent and takes its program off `eth0`; the VIPs stay. What comes in a tunnel is
    /// no longer unpacked.
    pub fn stop_decapsulating(&mut self) -> Result<()> {
        self.kill9()?;
        let link = self.pins().join("links/eth0");
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
        // The kernel takes it off a little later (`bpf_link_put` in `kernel/bpf/syscall.c`).
        until("the agent's program to be off", DEADLINE, || {
            matches!(self.host.xdp("eth0"), Ok(None)).then_some(())
        })
    }
}

impl Lab {
    /// Lets no more than `mtu` bytes of IP pass through the switch to `host`; what is larger
    /// vanishes, without ICMP.
    pub fn narrow(&self, host: &Host, mtu: u32) -> Result<()> {
        let port = host.interfaces()[0].port();
        self.switch.enter(|| ip_batch(&format!("link set {port} mtu {mtu}\n")))
    }

    /// Takes the `eth0` of a balancer or a backend away and makes it anew, as when its driver is
    /// loaded again: same name, same addresses, nothing attached. Dropping what this gives takes
    /// off the switch's end what a balancer needs there.
    pub fn replace_card(&self, host: &Host) -> Result<Attached> {
        let card = &host.interfaces()[0];
        card.replace(&self.switch, host.namespace())
            .with_context(|| format!("replace the card of {}", host.role()))?;
        Program::pass()?.attach(&self.switch, card.port())
    }

    /// Until it is dropped, TCP segments that `host` sends vanish in the switch, while it is still
    /// found by ARP and neighbour discovery: a server that died without a word.
    pub fn mute(&self, host: &Host) -> Result<Attached> {
        Program::drop_tcp()?.attach(&self.switch, host.interfaces()[0].port())
    }
}
