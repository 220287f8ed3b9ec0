//! Two netlink sockets: one that asks, one that listens.
//!
//! They are apart because `netlink-proto` tells answers by sequence number and sender alone: an
//! event caused by another program carries *that* program's sequence number, and on a shared
//! socket it would pass for the answer to one of our requests.
//!
//! A message that `netlink-packet-route` can't decode is logged by it and lost; for a request
//! that looks like no answer, hence the time-out on every one.

use std::{fmt, future::ready, io, net::IpAddr, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_MULTIPART,
        NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        link::LinkMessage,
        neighbour::NeighbourMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
    proto::{ConnectionHandle, new_connection},
    sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::{task::JoinSet, time::timeout};

use super::Error;

/// How long the kernel may take for one answer. Its network lock is held for seconds by some
/// drivers when they reset a card.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A dump that the kernel calls inconsistent is asked for again so often, then taken as it is.
const DUMP_ATTEMPTS: usize = 5;
/// Receive buffer for events, bytes; the kernel caps it at `net.core.rmem_max` and doubles it.
const EVENT_BUFFER: i32 = 4 << 20;

/// For a change: make it new, or fail with `EEXIST`. Without it: change what is there.
pub(super) const CREATE_NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Why a request brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The kernel said no, with this `errno`.
    Errno(i32),
    /// The kernel said nothing for 5 s.
    NoAnswer,
    /// The socket died.
    Closed,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(libc::EPERM) => {
                f.write_str("not permitted: run as root or with the capability CAP_NET_ADMIN")
            }
            Self::Errno(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
            Self::NoAnswer => {
                write!(f, "the kernel did not answer within {} s", ANSWER_TIMEOUT.as_secs())
            }
            Self::Closed => f.write_str("the netlink socket closed"),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// With what was attempted, for a person to read.
    pub(super) fn during(self, attempt: impl Into<String>) -> Error {
        Error::Request { attempt: attempt.into(), failure: self }
    }
}

/// The socket that asks.
pub(super) struct Netlink {
    handle: ConnectionHandle<RouteNetlinkMessage>,
    /// Stops when dropped.
    _connection: JoinSet<()>,
}

/// All of a table.
pub(super) struct Dump {
    pub(super) messages: Vec<RouteNetlinkMessage>,
    /// False: the table changed so fast that entries may be missing.
    pub(super) complete: bool,
}

impl Netlink {
    /// Opens the socket in this thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let (mut connection, handle, _unsolicited) =
            new_connection(NETLINK_ROUTE).map_err(Error::Socket)?;
        // So that "done" can be told from "died".
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self { handle, _connection: tasks })
    }

    /// One question, one answer.
    pub(super) async fn ask(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Failure> {
        let answer = self.exchange(message, 0).await?;
        answer.messages.into_iter().next().ok_or(Failure::NoAnswer)
    }

    /// Asks for a change; `flags` beyond request and acknowledgement.
    pub(super) async fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Failure> {
        self.exchange(message, NLM_F_ACK | flags).await.map(|_| ())
    }

    /// All of a table.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> Result<Dump, Failure> {
        let mut dump = self.exchange(message.clone(), NLM_F_DUMP).await?;
        for _ in 1..DUMP_ATTEMPTS {
            if dump.complete {
                break;
            }
            dump = self.exchange(message.clone(), NLM_F_DUMP).await?;
        }
        Ok(dump)
    }

    async fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Dump, Failure> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers =
            self.handle.request(request, SocketAddr::new(0, 0)).map_err(|_| Failure::Closed)?;
        let mut dump = Dump { messages: Vec::new(), complete: true };
        loop {
            let answer = timeout(ANSWER_TIMEOUT, answers.next())
                .await
                .map_err(|_| Failure::NoAnswer)?
                .ok_or(Failure::Closed)?;
            dump.complete &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => dump.messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Failure::Errno(error.raw_code().saturating_abs()));
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    return Err(Failure::Errno(done.code.saturating_abs()));
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(dump),
                _ => continue,
            }
            if flags & NLM_F_ACK == 0 && answer.header.flags & NLM_F_MULTIPART == 0 {
                return Ok(dump);
            }
        }
    }
}

/// What the kernel tells unasked.
#[derive(Debug)]
pub(super) enum Event {
    /// An interface is new or changed.
    Link(LinkMessage),
    /// An interface is gone, or a bridge has lost a port: see the message's family.
    LinkGone(LinkMessage),
    /// A neighbour is new or changed.
    Neighbour(NeighbourMessage),
    /// A neighbour was forgotten.
    NeighbourGone(NeighbourMessage),
    /// The route of this prefix (address and length in bits) is new, changed or gone.
    Route(IpAddr, u8),
    /// A default route, a rule or one of our addresses changed: any lookup may end elsewhere.
    Routing,
    /// The kernel dropped events because we read too slowly.
    Lost,
}

impl Event {
    fn parse(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Self> {
        use RouteNetlinkMessage as Message;
        match message.payload {
            NetlinkPayload::Overrun(_) => Some(Self::Lost),
            NetlinkPayload::InnerMessage(message) => match message {
                Message::NewLink(link) => Some(Self::Link(link)),
                Message::DelLink(link) => Some(Self::LinkGone(link)),
                Message::NewNeighbour(neighbour) => Some(Self::Neighbour(neighbour)),
                Message::DelNeighbour(neighbour) => Some(Self::NeighbourGone(neighbour)),
                Message::NewRoute(route) | Message::DelRoute(route) => Some(Self::of_route(&route)),
                Message::NewRule(_)
                | Message::DelRule(_)
                | Message::NewAddress(_)
                | Message::DelAddress(_) => Some(Self::Routing),
                _ => None,
            },
            _ => None,
        }
    }

    fn of_route(route: &RouteMessage) -> Self {
        let destination = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
            _ => None,
        });
        match destination {
            Some(address) => Self::Route(address, route.header.destination_prefix_length),
            None => Self::Routing,
        }
    }
}

/// The socket that listens.
pub(super) struct Events {
    events: BoxStream<'static, Event>,
    /// Stops when dropped.
    _connection: JoinSet<()>,
}

impl Events {
    /// Subscribes to links, neighbours, routes, rules and addresses of both families, in this
    /// thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let (mut connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(Error::Socket)?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_rx_buf_sz(EVENT_BUFFER).map_err(Error::Socket)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let events = messages.filter_map(|(message, _)| ready(Event::parse(message))).boxed();
        Ok(Self { events, _connection: tasks })
    }

    /// The next event; `None`: the socket died.
    pub(super) async fn next(&mut self) -> Option<Event> {
        self.events.next().await
    }

    /// As if the socket had died.
    #[cfg(test)]
    pub(super) fn kill(&mut self) {
        self._connection.abort_all();
    }

    /// The next event that is already here.
    pub(super) fn pending(&mut self) -> Option<Event> {
        self.events.next().now_or_never().flatten()
    }
}
