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
mod tests;
