use super::*;
use crate::network::lab::{Namespace, block_on};

const V4: &str = "198.18.0.2";
const V6: &str = "2001:db8::2";
const FAR: &str = "192.0.2.77";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Next hops as seen in a namespace.
struct Watcher {
    snapshots: watch::Receiver<Snapshot>,
}

impl Watcher {
    /// Starts in `namespace`, and goes on until the test ends.
    fn start(namespace: &Namespace, addresses: &[&str]) -> Self {
        let wanted = addresses.iter().map(|text| ip(text)).collect();
        let (ready, started) = std::sync::mpsc::channel();
        namespace.spawn(async move {
            let next_hops = NextHops::start().await.expect("netlink works");
            next_hops.watch(wanted);
            ready.send(next_hops.snapshots()).expect("the test waits");
            std::future::pending::<()>().await;
        });
        Self { snapshots: started.recv().expect("it started") }
    }

    /// Waits until `address` is as wished; returns how long that took.
    fn wait(
        &mut self,
        address: &str,
        wish: impl Fn(&Result<NextHop, Unresolved>) -> bool,
    ) -> Duration {
        let (start, address) = (Instant::now(), ip(address));
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow());
            if snapshot.get(&address).is_some_and(&wish) {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(15), "{address}: {snapshot:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn mac(last: u8) -> impl Fn(&Result<NextHop, Unresolved>) -> bool {
    move |hop| hop.as_ref().is_ok_and(|hop| hop.destination_mac == [2, 0, 0, 0, 0, last])
}

fn silent(hop: &Result<NextHop, Unresolved>) -> bool {
    matches!(hop, Err(Unresolved::Neighbour { failed: true, .. }))
}

/// Two hosts on one link.
fn hosts() -> Option<(Namespace, Namespace)> {
    let (here, there) = (Namespace::new()?, Namespace::new()?);
    here.join(
        &there,
        ["198.18.0.1/24", "2001:db8::1/64"],
        ["198.18.0.2/24", "2001:db8::2/64"],
        [1, 2],
    );
    Some((here, there))
}

#[test]
fn neighbours_of_both_families_are_found_and_followed() {
    let Some((here, there)) = hosts() else { return };
    let mut watcher = Watcher::start(&here, &[V4, V6]);
    for (address, source) in [(V4, "198.18.0.1"), (V6, "2001:db8::1")] {
        watcher.wait(address, mac(2));
        let snapshot = Arc::clone(&watcher.snapshots.borrow());
        let hop = snapshot[&ip(address)].as_ref().expect("just seen");
        assert_eq!(hop.source, ip(source));
        assert_eq!((&*hop.interface_name, hop.mtu, hop.gateway), ("eth0", 1500, None));
        assert_eq!(hop.source_mac, [2, 0, 0, 0, 0, 1]);
    }
    // A host that announces its new MAC is followed at once.
    let announce = "/proc/sys/net/ipv6/conf/eth0/ndisc_notify";
    there.run(move || std::fs::write(announce, "1")).expect("set ndisc_notify");
    there.ip("link set eth0 address 02:00:00:00:00:22");
    watcher.wait(V6, mac(0x22));
    // The link's MTU, then the route's.
    here.ip("link set eth0 mtu 1400");
    watcher.wait(V4, |hop| hop.as_ref().is_ok_and(|hop| hop.mtu == 1400));
    here.ip("route add 198.18.0.2/32 dev eth0 mtu 1300");
    watcher.wait(V4, |hop| hop.as_ref().is_ok_and(|hop| hop.mtu == 1300));
}

#[test]
fn a_flushed_neighbour_table_breaks_nothing() {
    let Some((here, _there)) = hosts() else { return };
    let mut watcher = Watcher::start(&here, &[V4, V6]);
    watcher.wait(V4, mac(2));
    watcher.wait(V6, mac(2));
    let mut snapshots = watcher.snapshots.clone();
    snapshots.mark_unchanged();
    here.ip("neighbour flush dev eth0");
    watcher.wait(V4, mac(2));
    std::thread::sleep(GRACE_AND_MORE);
    assert!(!snapshots.has_changed().expect("it still runs"), "{:?}", snapshots.borrow());
}

/// Longer than a failed neighbour's grace.
const GRACE_AND_MORE: Duration = Duration::from_secs(2);

#[test]
fn a_silent_neighbour_is_told_and_found_when_it_comes_up() {
    let Some((here, there)) = hosts() else { return };
    there.ip("address delete 198.18.0.2/24 dev eth0");
    // Three questions take the kernel 0.6 s instead of 3.
    let pace = "/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms";
    here.run(move || std::fs::write(pace, "200")).expect("set the kernel's pace");
    let mut watcher = Watcher::start(&here, &[V4, V6]);
    let first = watcher.wait(V6, mac(2));
    assert!(first < Duration::from_secs(1), "the silent one delays the other: {first:?}");
    watcher.wait(V4, silent);
    there.ip("address add 198.18.0.2/24 dev eth0");
    watcher.wait(V4, mac(2));
    // And silent again: the kernel must notice by itself that the MAC no longer answers.
    there.ip("address delete 198.18.0.2/24 dev eth0");
    here.ip("neighbour change 198.18.0.2 dev eth0 nud probe");
    watcher.wait(V4, silent);
}

#[test]
fn routes_links_and_addresses_are_followed() {
    let Some((here, there)) = hosts() else { return };
    let mut watcher = Watcher::start(&here, &[FAR, V4]);
    let no_route = |hop: &Result<_, _>| matches!(hop, Err(Unresolved::NoRoute { .. }));
    let gateway = |text: &'static str| {
        move |hop: &Result<NextHop, _>| hop.as_ref().is_ok_and(|hop| hop.gateway == Some(ip(text)))
    };
    watcher.wait(FAR, no_route);
    here.ip("route add default via 198.18.0.2");
    watcher.wait(FAR, gateway(V4));
    here.ip("route add 192.0.2.0/24 via inet6 2001:db8::2");
    watcher.wait(FAR, gateway(V6));
    for kind in ["blackhole", "prohibit", "unreachable"] {
        here.ip(&format!("route add {kind} 192.0.2.77/32"));
        watcher.wait(
            FAR,
            |hop| matches!(hop, Err(Unresolved::Unreachable { kind: k, .. }) if *k == kind),
        );
        here.ip(&format!("route delete {kind} 192.0.2.77/32"));
        watcher.wait(FAR, gateway(V6));
    }
    here.ip("address add 192.0.2.77/32 dev lo");
    watcher.wait(FAR, |hop| matches!(hop, Err(Unresolved::Local { .. })));
    here.ip("address delete 192.0.2.77/32 dev lo");
    watcher.wait(FAR, gateway(V6));
    here.ip("rule add to 192.0.2.77 prohibit");
    watcher.wait(FAR, |hop| matches!(hop, Err(Unresolved::Unreachable { .. })));
    here.ip("rule delete to 192.0.2.77 prohibit");
    watcher.wait(FAR, gateway(V6));

    there.ip("link set eth0 down");
    watcher.wait(V4, |hop| matches!(hop, Err(Unresolved::InterfaceDown { up: true, .. })));
    there.ip("link set eth0 up");
    watcher.wait(V4, mac(2));
    here.ip("link set eth0 down");
    watcher.wait(V4, no_route);
    here.ip("link set eth0 up");
    watcher.wait(V4, mac(2));
    here.ip("link delete eth0");
    watcher.wait(V4, no_route);
}

#[test]
fn an_operators_permanent_neighbour_is_used_and_left_alone() {
    let Some((here, _there)) = hosts() else { return };
    here.ip("neighbour add 198.18.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    let mut watcher = Watcher::start(&here, &["198.18.0.9", V4]);
    watcher.wait("198.18.0.9", mac(9));
    watcher.wait(V4, mac(2));
    let table = here.run(|| {
        std::process::Command::new("ip").args(["neighbour", "show", "nud", "permanent"]).output()
    });
    let table = String::from_utf8_lossy(&table.expect("`ip` runs").stdout).into_owned();
    assert!(table.contains("198.18.0.9"), "{table}");
}

#[test]
fn a_dead_socket_is_replaced() {
    let Some((here, _there)) = hosts() else { return };
    here.run(|| {
        block_on(async {
            let (wanted, wanted_there) = watch::channel(BTreeSet::from([ip(V4)]));
            let (found_there, mut found) = watch::channel(Snapshot::default());
            let mut session = Session::open().expect("netlink works");
            session.events.kill();
            tokio::spawn(run(Resolver::new(found_there), session, wanted_there));
            let wait = found.wait_for(|found| found.values().any(Result::is_ok));
            let wait = tokio::time::timeout(Duration::from_secs(5), wait).await;
            wait.expect("in time").expect("it still runs");
            drop(wanted);
        });
    });
}

#[test]
fn the_watched_set_can_change() {
    let Some((here, _there)) = hosts() else { return };
    here.run(|| {
        block_on(async {
            let next_hops = NextHops::start().await.expect("netlink works");
            let mut snapshots = next_hops.snapshots();
            for set in [vec![V4], vec![V4, V6], vec![V6], vec![]] {
                let set: BTreeSet<IpAddr> = set.into_iter().map(ip).collect();
                next_hops.watch(set.clone());
                let wait = snapshots.wait_for(|found| {
                    found.keys().eq(set.iter()) && found.values().all(Result::is_ok)
                });
                let wait = tokio::time::timeout(Duration::from_secs(5), wait).await;
                wait.expect("in time").expect("it still runs");
            }
        });
    });
}
