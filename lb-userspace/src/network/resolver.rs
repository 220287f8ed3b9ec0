//! The next hops of a set of addresses, kept up to date.
//!
//! A task listens to the kernel's events, lets them gather for [`GATHER`], asks again what they
//! touch, decides all next hops anew and publishes them when one has changed. Events can be
//! lost, and some changes cause none (a learned path MTU expires): every [`RESYNC`] all is read
//! again. When the kernel says that events were lost, at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, interval_at, sleep, sleep_until},
};

use super::{
    Error, Failure,
    links::{self, Links},
    neighbours::{self, Key, Neighbours},
    netlink::{Event, Events, Netlink},
    next_hop::{Egress, NextHop, Unresolved},
    routes::{self, Route},
};

/// Events gather for so long before they are acted on.
const GATHER: Duration = Duration::from_millis(10);
/// After work that took long, events gather for so many times as long, so that a storm of
/// routes costs at most a fifth of a CPU.
const REST: u32 = 4;
/// ... but no longer than this.
const MOST_REST: Duration = Duration::from_secs(1);
/// All is read again after so long.
const RESYNC: Duration = Duration::from_secs(10);
/// Neighbours that are due are asked for so often.
const ROUND: Duration = Duration::from_millis(500);
/// The first snapshot waits so long for neighbours to answer.
const FIRST_ANSWERS: Duration = Duration::from_millis(300);
/// Requests under way at once. An answer takes under 1 KiB of the socket's 208 KiB buffer.
const IN_FLIGHT: usize = 64;
/// How soon a lost socket is replaced, at first; the wait doubles up to [`MOST_BACK_OFF`].
const BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait between two attempts at a socket.
const MOST_BACK_OFF: Duration = Duration::from_secs(5);

/// Every watched address with its next hop, or with the reason why it has none.
pub type Snapshot = Arc<BTreeMap<IpAddr, Result<NextHop, Unresolved>>>;

/// Keeps the next hops of a set of addresses up to date, until dropped.
pub struct NextHops {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    found: watch::Receiver<Snapshot>,
    /// Stops when dropped.
    _task: JoinSet<()>,
}

impl NextHops {
    /// Starts, in the network namespace of this thread, with no address to watch. Fails only if
    /// the kernel gives no netlink socket; a socket that dies later is replaced.
    pub async fn start() -> Result<Self, Error> {
        let session = Session::open()?;
        let (wanted, wanted_here) = watch::channel(BTreeSet::new());
        let (found_here, found) = watch::channel(Snapshot::default());
        let mut task = JoinSet::new();
        task.spawn(run(Resolver::new(found_here), session, wanted_here));
        Ok(Self { wanted, found, _task: task })
    }

    /// Watches these addresses instead of those before; a snapshot of exactly these follows.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != addresses;
            *wanted = addresses;
            changed
        });
    }

    /// The snapshots: a new one whenever anything in it differs. The first comes when all
    /// neighbours have answered, or else after 300 ms; it is empty until then.
    pub fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.found.clone()
    }
}

/// The sockets of one stretch of work.
struct Session {
    netlink: Netlink,
    events: Events,
}

impl Session {
    /// The events first: what changes while the tables are read is not missed.
    fn open() -> Result<Self, Error> {
        Ok(Self { events: Events::open()?, netlink: Netlink::open()? })
    }
}

async fn run(
    mut resolver: Resolver,
    session: Session,
    mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
) {
    let mut session = Ok(session);
    let mut back_off = BACK_OFF;
    loop {
        let since = Instant::now();
        let fault = match session {
            Ok(session) => match resolver.serve(session, &mut wanted).await {
                Ok(()) => return,
                Err(failure) => failure.during("keep the next hops up to date"),
            },
            Err(error) => error,
        };
        if since.elapsed() > MOST_BACK_OFF {
            back_off = BACK_OFF;
        }
        tracing::warn!(%fault, again_in = ?back_off, "next hops may be out of date");
        sleep(back_off).await;
        back_off = (back_off * 2).min(MOST_BACK_OFF);
        session = Session::open();
    }
}

/// What must be read or decided again.
#[derive(Default)]
struct Stale {
    links: bool,
    neighbours: bool,
    all_routes: bool,
    routes: BTreeSet<IpAddr>,
    decisions: bool,
}

impl Stale {
    fn everything() -> Self {
        Self {
            links: true,
            neighbours: true,
            all_routes: true,
            routes: BTreeSet::new(),
            decisions: true,
        }
    }

    fn any(&self) -> bool {
        self.links
            || self.neighbours
            || self.all_routes
            || self.decisions
            || !self.routes.is_empty()
    }
}

struct Resolver {
    links: Links,
    neighbours: Neighbours,
    addresses: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, Result<Route, Unresolved>>,
    /// The neighbours that `routes` lead to.
    needed: HashSet<Key>,
    stale: Stale,
    found: watch::Sender<Snapshot>,
    /// Nothing was published yet, and is not before this unless complete.
    hold_until: Option<Instant>,
}

impl Resolver {
    fn new(found: watch::Sender<Snapshot>) -> Self {
        Self {
            links: Links::default(),
            neighbours: Neighbours::default(),
            addresses: BTreeSet::new(),
            routes: BTreeMap::new(),
            needed: HashSet::new(),
            stale: Stale::everything(),
            found,
            hold_until: None,
        }
    }

    /// Works until the socket dies, or nobody wants the result any more.
    async fn serve(
        &mut self,
        mut session: Session,
        wanted: &mut watch::Receiver<BTreeSet<IpAddr>>,
    ) -> Result<(), Failure> {
        self.stale = Stale::everything();
        self.want(wanted.borrow_and_update().clone());
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resync = interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rested = Instant::now();
        loop {
            while self.stale.any() {
                let work = Instant::now();
                self.refresh(&session.netlink).await?;
                self.decide();
                self.ask(&session.netlink).await?;
                rested = Instant::now() + (work.elapsed() * REST).min(MOST_REST);
            }
            let hold_until = self.hold_until.unwrap_or(rested).into();
            tokio::select! {
                event = session.events.next() => {
                    self.note(event.ok_or(Failure::Closed)?);
                    if self.stale.any() {
                        sleep_until(rested.max(Instant::now() + GATHER).into()).await;
                        while let Some(event) = session.events.pending() {
                            self.note(event);
                        }
                    }
                }
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.want(wanted.borrow_and_update().clone());
                }
                () = sleep_until(hold_until), if self.hold_until.is_some() => self.decide(),
                _ = round.tick() => {
                    self.stale.decisions |= self.neighbours.doubtful(&self.needed, Instant::now());
                    self.ask(&session.netlink).await?;
                }
                _ = resync.tick() => self.stale = Stale::everything(),
            }
        }
    }

    /// Takes in which addresses are wanted.
    fn want(&mut self, addresses: BTreeSet<IpAddr>) {
        self.stale.routes.extend(addresses.difference(&self.addresses));
        self.stale.routes.retain(|address| addresses.contains(address));
        self.stale.decisions = true;
        self.routes.retain(|address, _| addresses.contains(address));
        if self.addresses.is_empty() && !addresses.is_empty() && self.found.borrow().is_empty() {
            self.hold_until = Some(Instant::now() + FIRST_ANSWERS);
        }
        self.addresses = addresses;
    }

    /// Takes in an event.
    fn note(&mut self, event: Event) {
        let stale = &mut self.stale;
        let now = Instant::now();
        match event {
            // IPv4 routes vanish with their interface without an event of their own.
            Event::Link(message) => stale.all_routes |= self.links.learn(&message),
            Event::LinkGone(message) => {
                if let Some(index) = self.links.forget(&message) {
                    self.neighbours.forget_interface(index);
                    stale.all_routes = true;
                }
            }
            Event::Neighbour(message) => {
                let changed = self.neighbours.learn(&message, now);
                stale.decisions |= changed.is_some_and(|key| self.needed.contains(&key));
            }
            Event::NeighbourGone(message) => {
                let changed = self.neighbours.forget(&message);
                stale.decisions |= changed.is_some_and(|key| self.needed.contains(&key));
            }
            Event::Route(network, length) => {
                let (first, last) = routes::prefix_range(network, length);
                stale.routes.extend(self.addresses.range(first..=last));
            }
            Event::Routing => stale.all_routes = true,
            Event::Lost => {
                tracing::debug!("netlink events were lost; reading all tables again");
                *stale = Stale::everything();
            }
        }
    }

    /// Reads again what is stale.
    async fn refresh(&mut self, netlink: &Netlink) -> Result<(), Failure> {
        let stale = std::mem::take(&mut self.stale);
        if stale.links {
            let dump = links::dump(netlink).await?;
            for index in self.links.replace(&dump) {
                self.neighbours.forget_interface(index);
            }
        }
        if stale.neighbours {
            let dump = neighbours::dump(netlink).await?;
            self.neighbours.replace(&dump, &self.needed, Instant::now());
        }
        let addresses = if stale.all_routes { self.addresses.clone() } else { stale.routes };
        let mut answers = stream::iter(addresses)
            .map(|address| async move { (address, routes::look_up(netlink, address).await) })
            .buffer_unordered(IN_FLIGHT);
        while let Some((address, answer)) = answers.next().await {
            self.routes.insert(address, answer?);
        }
        Ok(())
    }

    /// Decides all next hops, and publishes them if one differs.
    fn decide(&mut self) {
        let now = Instant::now();
        let Self { links, neighbours, routes, needed, .. } = self;
        needed.clear();
        let mut hop = |address: IpAddr, route: &Result<Route, Unresolved>| {
            let route = route.as_ref().map_err(Clone::clone)?;
            let egress = Egress::new(address, route, links.find(route.interface))?;
            let key = egress.neighbour();
            needed.insert(key);
            egress.resolve(neighbours.find(&key, now))
        };
        let snapshot: BTreeMap<_, _> =
            routes.iter().map(|(address, route)| (*address, hop(*address, route))).collect();

        let waiting =
            |hop: &Result<_, _>| matches!(hop, Err(Unresolved::Neighbour { failed: false, .. }));
        if self.hold_until.is_some_and(|until| now < until) && snapshot.values().any(waiting) {
            return;
        }
        self.hold_until = None;
        self.found.send_if_modified(|found| {
            let changed = **found != snapshot;
            if changed {
                *found = Arc::new(snapshot);
            }
            changed
        });
    }

    /// Asks the kernel for the neighbours that are due.
    async fn ask(&mut self, netlink: &Netlink) -> Result<(), Failure> {
        let due = self.neighbours.due(&self.needed, Instant::now());
        let questions: Vec<_> =
            due.into_iter().map(|key| (key, self.neighbours.question(&key))).collect();
        let mut answers =
            stream::iter(questions)
                .map(|(key, (message, flags))| async move {
                    (key, netlink.change(message, flags).await)
                })
                .buffer_unordered(IN_FLIGHT);
        while let Some((key, answer)) = answers.next().await {
            if answer == Err(Failure::Closed) {
                return Err(Failure::Closed);
            }
            let asked = self.neighbours.asked(key, answer, Instant::now());
            self.stale.decisions |= asked.changed;
            self.stale.neighbours |= asked.surprised;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
            move |hop: &Result<NextHop, _>| {
                hop.as_ref().is_ok_and(|hop| hop.gateway == Some(ip(text)))
            }
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
            std::process::Command::new("ip")
                .args(["neighbour", "show", "nud", "permanent"])
                .output()
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
}
