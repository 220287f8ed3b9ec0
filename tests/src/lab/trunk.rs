//! A VLAN trunk between the switch and the balancer, in userspace: this kernel may have neither
//! 802.1Q devices nor a bridge that filters VLANs.
//!
//! ```text
//! switch/br0 ── trunk[trunk]balancer ── eth0[balancer]
//! ```
//!
//! TCP for the VIPs gets a tag on its way to the balancer; all else (ARP, ND, ssh, ping) stays as
//! it is, because the balancer's own kernel could not read it. Tags are taken off on the way
//! back. Both are counted.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{INNER_MTU, Namespace, host, raw::RawSocket};

/// The interface towards the switch, and the switch's port.
const UP: &str = "trunk";
/// The interface towards the balancer: its host's port.
const DOWN: &str = "balancer";

#[derive(Debug)]
pub(super) struct Trunk {
    namespace: Arc<Namespace>,
    relay: Arc<Relay>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Relay {
    vlan: u16,
    stop: AtomicBool,
    tagged_down: AtomicU64,
    tagged_up: AtomicU64,
}

impl Trunk {
    pub(super) fn create(lab: &str, vlan: u16) -> Result<Self> {
        let namespace = Arc::new(Namespace::create(&format!("{lab}-trunk"))?);
        namespace.enter(host::no_ipv6)?;
        let relay = Relay {
            vlan,
            stop: AtomicBool::new(false),
            tagged_down: AtomicU64::new(0),
            tagged_up: AtomicU64::new(0),
        };
        Ok(Self { namespace, relay: Arc::new(relay), threads: Vec::new() })
    }

    /// Where the balancer is plugged in instead of into the switch.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Plugs the trunk into the switch and starts to relay.
    pub(super) fn join(&mut self, switch: &Namespace, bridge: &str) -> Result<()> {
        let (outside, inside) = (switch.name(), self.namespace.name());
        host::ip_batch(&format!(
            "link add {UP} netns {outside} mtu {INNER_MTU} \
             type veth peer name {UP} netns {inside} mtu {INNER_MTU}\n"
        ))?;
        for namespace in [switch, &self.namespace] {
            namespace.enter(|| host::switch_offloads_off(UP))?;
        }
        switch.enter(|| host::ip_batch(&format!("link set {UP} master {bridge} up\n")))?;
        self.namespace.enter(|| host::ip_batch(&format!("link set {UP} up\n")))?;
        self.relay(UP, DOWN, Relay::tag)?;
        self.relay(DOWN, UP, Relay::untag)
    }

    fn relay(
        &mut self,
        from: &str,
        to: &str,
        change: fn(&Relay, Option<u16>, &mut Vec<u8>),
    ) -> Result<()> {
        let patience = Duration::from_millis(50);
        let receiver = RawSocket::open(&self.namespace, from, patience)?;
        let sender = RawSocket::open(&self.namespace, to, patience)?;
        let relay = self.relay.clone();
        let thread = self.namespace.clone().spawn(move || {
            let mut buffer = [0; 4096];
            let mut frame = Vec::new();
            while !relay.stop.load(Ordering::Relaxed) {
                let received = match receiver.receive(&mut buffer) {
                    Ok(Some(received)) => received,
                    Ok(None) => continue,
                    Err(error) => return complain(&error),
                };
                frame.clear();
                frame.extend_from_slice(received.frame);
                change(&relay, received.vlan, &mut frame);
                // A full queue loses frames on a real trunk too.
                if let Err(error) = sender.send(&frame)
                    && error.raw_os_error() != Some(libc::ENOBUFS)
                {
                    return complain(&error);
                }
            }
        });
        self.threads.push(thread.context("start the trunk's thread")?);
        Ok(())
    }

    pub(super) fn tagged_frames(&self) -> (u64, u64) {
        let Relay { tagged_down, tagged_up, .. } = &*self.relay;
        (tagged_down.load(Ordering::Relaxed), tagged_up.load(Ordering::Relaxed))
    }
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.relay.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has said what was wrong.
            let _ = thread.join();
        }
    }
}

impl Relay {
    /// Towards the balancer.
    fn tag(&self, _: Option<u16>, frame: &mut Vec<u8>) {
        if is_tcp_for_a_vip(frame) {
            let [high, low] = self.vlan.to_be_bytes();
            frame.splice(12..12, [0x81, 0x00, high, low]);
            self.tagged_down.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Away from it; the kernel has taken the tag off already.
    fn untag(&self, vlan: Option<u16>, _: &mut Vec<u8>) {
        if vlan == Some(self.vlan) {
            self.tagged_up.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Of the prefixes in [`super::VIPS`].
fn is_tcp_for_a_vip(frame: &[u8]) -> bool {
    const TCP: u8 = 6;
    match frame.get(12..14) {
        Some([0x08, 0x00]) => {
            frame.get(23) == Some(&TCP) && frame.get(30..33) == Some(&[203, 0, 113])
        }
        Some([0x86, 0xdd]) => {
            let prefix = [0x20, 0x01, 0x0d, 0xb8, 0xf0, 0x0d];
            frame.get(20) == Some(&TCP) && frame.get(38..44) == Some(&prefix)
        }
        _ => false,
    }
}

fn complain(error: &io::Error) {
    eprintln!("the trunk has stopped: {error}");
}
