//! The network namespace that health probes through a VIP are sent from.
//!
//! ```text
//!   this host                         │ a namespace without a name
//!   sl-probe0 ════════ veth pair ═════│═ probe ── sockets of the probes
//!   (our programs decide)             │   own addresses /32 and /128, default routes
//! ```
//!
//! A probe must take the road of the traffic: out with the VIP as its destination, to one
//! backend, and back from the VIP. The host's own stack can't send it: it may own the VIP
//! itself, and then it delivers to itself; and it would drop the answer, whose source is an
//! address of its own. So the connection lives in a stack that knows no VIP: everything that it
//! sends comes out of the host's end of the veth pair, and what is put in there is received. No
//! rule, mark, table, sysctl or qdisc of the host is touched. (Weighed: a marked socket needs
//! policy routing, and the VIP off loopback; a packet socket needs a TCP of our own.)
//!
//! The namespace has no name and no process of its own: a thread of the daemon, open sockets
//! and a descriptor hold it, so it goes when the daemon goes, however that goes, and the veth
//! pair goes with it (`cleanup_net`, `net/core/net_namespace.c`).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::mpsc,
    thread,
};

use lb_common::abi::{PROBE_HOST_MAC, PROBE_PEER_MAC};
use nix::{errno::Errno, sched::CloneFlags};
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use tokio::{net::TcpSocket, runtime::Handle, sync::oneshot};

use super::{
    Error, Failure, Interface, addresses, ethtool,
    links::{self, Links},
    netlink::{CREATE_NEW, Netlink},
};

/// The host's end; the kernel puts the first number there that is free (`dev_alloc_name`,
/// `net/core/dev.c`), so instances never collide, nor what is left of a daemon just killed.
const HOST_END: &str = "sl-probe%d";
/// The other end, alone in its namespace.
const FAR_END: &str = "probe";
/// Largest IP packet that a probe sends, bytes: what clients send who come by the Internet. Were
/// it more, a probe would fail where they don't.
pub const MTU: u32 = 1500;
/// The same for the host's end, which frames for the probes leave by: an interface with GRO may
/// hand over an answer of many segments in one.
const HOST_END_MTU: u32 = 65_535;

/// Settings of the namespace: the path to one backend says nothing about the path to the next,
/// though both have the VIP's address.
const SYSCTLS: [(&str, &str); 1] = [("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")];

type Task = Box<dyn FnOnce() + Send>;

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel makes none for us.
    #[error("can't make a network namespace: {}", refusal(*.0))]
    Unshare(#[source] Errno),
    /// Its thread could not be started, or has died.
    #[error("the thread of the probes' network namespace: {0}")]
    Thread(#[source] io::Error),
    /// It could not be set up.
    #[error("can't {attempt} in the probes' network namespace: {source}")]
    SetUp {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Its interfaces, addresses or routes could not be set up.
    #[error(transparent)]
    Network(#[from] Error),
}

fn refusal(errno: Errno) -> String {
    match errno {
        Errno::EPERM => "not permitted: run as root or with the capability CAP_SYS_ADMIN".into(),
        Errno::ENOSPC => "too many already: raise user.max_net_namespaces".into(),
        Errno::EINVAL => "this kernel has no network namespaces (CONFIG_NET_NS)".into(),
        errno => errno.desc().to_owned(),
    }
}

/// A network namespace of our own, joined to the host's by a veth pair. Dropped, it goes when
/// its last socket is closed.
pub struct ProbeNamespace {
    tasks: mpsc::Sender<Task>,
    /// Asks inside.
    netlink: Netlink,
    host_end: Interface,
    far_end: Interface,
}

impl ProbeNamespace {
    /// Makes it, beside the network namespace of this thread; `owner` is written to the host's
    /// end as its alias, for people. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If this process may not, or the kernel can't; nothing is left then.
    pub async fn create(owner: &str) -> Result<Self, NamespaceError> {
        let (tasks, file) = start_thread().await?;
        let runtime = Handle::current();
        let netlink = run(&tasks, move || {
            let _inside = runtime.enter();
            Netlink::open()
        })
        .await??;
        let host = Netlink::open()?;
        host.change(veth(owner, &file), CREATE_NEW)
            .await
            .map_err(|failure| failure.during("make a veth pair for the probes"))?;
        let (far_end, host_end) = ends(&netlink, &host).await?;
        set_up(&host, host_end.index).await?;
        set_up(&netlink, far_end.index).await?;
        run(&tasks, || {
            for (path, value) in SYSCTLS {
                fs::write(path, value).map_err(|source| NamespaceError::SetUp {
                    attempt: format!("write {path}"),
                    source,
                })?;
            }
            ethtool::switch_offloads_off(FAR_END).map_err(|source| NamespaceError::SetUp {
                attempt: "switch the offloads off".to_owned(),
                source,
            })
        })
        .await??;
        Ok(Self { tasks, netlink, host_end, far_end })
    }

    /// The host's end, as it was made, in the host's namespace.
    pub const fn host_end(&self) -> &Interface {
        &self.host_end
    }

    /// The other end, as it was made: what is done with it must [`run`](Self::run) inside.
    pub const fn far_end(&self) -> &Interface {
        &self.far_end
    }

    /// Makes these the addresses that can be sent from, and no others; connections from one that
    /// goes away are lost.
    ///
    /// # Errors
    /// If the kernel refuses one; those before it are set.
    pub async fn set_sources(&self, wanted: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let present = addresses::list(&self.netlink).await?;
        let here = |message: &&AddressMessage| message.header.index == self.far_end.index;
        let mut missing = wanted.clone();
        for message in present.iter().filter(here) {
            let Some(address) = addresses::address(message) else { continue };
            if missing.remove(&address) {
                continue;
            }
            let gone = RouteNetlinkMessage::DelAddress(message.clone());
            match self.netlink.change(gone, 0).await {
                Ok(()) | Err(Failure::Errno(libc::EADDRNOTAVAIL)) => {}
                Err(failure) => return Err(failure.during(format!("send no more from {address}"))),
            }
        }
        for address in &missing {
            let message = addresses::host_address(*address, self.far_end.index);
            let added =
                self.netlink.change(RouteNetlinkMessage::NewAddress(message), CREATE_NEW).await;
            added.map_err(|failure| failure.during(format!("send probes from {address}")))?;
        }
        // With its last IPv4 address an interface loses its routes (`fib_inetaddr_event`,
        // `net/ipv4/fib_frontend.c`).
        for family in families(&missing) {
            let route = RouteNetlinkMessage::NewRoute(default_route(family, self.far_end.index));
            match self.netlink.change(route, CREATE_NEW).await {
                Ok(()) | Err(Failure::Errno(libc::EEXIST)) => {}
                Err(failure) => return Err(failure.during("route the probes")),
            }
        }
        Ok(())
    }

    /// A socket inside, of this address's family.
    ///
    /// # Errors
    /// If the kernel gives none: no more descriptors, no memory, no such family.
    pub async fn socket(&self, family: IpAddr) -> io::Result<TcpSocket> {
        let open = move || match family {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        self.run(open).await.map_err(io::Error::other)?
    }

    /// Runs `work` inside, one after the other, so it must be short.
    ///
    /// # Errors
    /// If earlier work has panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NamespaceError> {
        run(&self.tasks, work).await
    }
}

/// Starts the thread that lives in a new namespace until nobody can give it work. The file is the
/// namespace.
async fn start_thread() -> Result<(mpsc::Sender<Task>, File), NamespaceError> {
    let (tasks, todo) = mpsc::channel::<Task>();
    let (made_here, made) = oneshot::channel();
    thread::Builder::new()
        .name("probes".to_owned())
        .stack_size(256 << 10)
        .spawn(move || {
            let made = nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .map_err(NamespaceError::Unshare)
                .and_then(|()| {
                    File::open("/proc/thread-self/ns/net").map_err(NamespaceError::Thread)
                });
            // An error: whoever asked has gone, and the senders with them.
            let _ = made_here.send(made);
            for task in todo {
                task();
            }
        })
        .map_err(NamespaceError::Thread)?;
    let file =
        made.await.map_err(|_| NamespaceError::Thread(io::ErrorKind::BrokenPipe.into()))??;
    Ok((tasks, file))
}

async fn run<T: Send + 'static>(
    tasks: &mpsc::Sender<Task>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NamespaceError> {
    let died = || NamespaceError::Thread(io::Error::other("it has died"));
    let (done, result) = oneshot::channel();
    let task = move || {
        // An error: nobody waits any more.
        let _ = done.send(work());
    };
    tasks.send(Box::new(task)).map_err(|_| died())?;
    result.await.map_err(|_| died())
}

/// Asks for the pair, seen from the host: its own end, and in it the other.
fn veth(owner: &str, namespace: &File) -> RouteNetlinkMessage {
    let mut far = LinkMessage::default();
    far.attributes = vec![
        LinkAttribute::IfName(FAR_END.to_owned()),
        LinkAttribute::Address(PROBE_PEER_MAC.to_vec()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut host = LinkMessage::default();
    host.attributes = vec![
        LinkAttribute::IfName(HOST_END.to_owned()),
        LinkAttribute::IfAlias(format!("sluice {owner}: health probes through the VIPs")),
        LinkAttribute::Address(PROBE_HOST_MAC.to_vec()),
        LinkAttribute::Mtu(HOST_END_MTU),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    RouteNetlinkMessage::NewLink(host)
}

/// The far end and the host's, each asked for in its namespace.
async fn ends(inside: &Netlink, host: &Netlink) -> Result<(Interface, Interface), Error> {
    let attempt = |failure: Failure| failure.during("find the veth pair of the probes");
    let dump = links::dump(inside).await.map_err(attempt)?;
    let host_index = dump.messages.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => peer_of_far_end(link),
        _ => None,
    });
    let (mut there, mut here) = (Links::default(), Links::default());
    there.replace(&dump);
    here.replace(&links::dump(host).await.map_err(attempt)?);
    let host_end = host_index.and_then(|index| here.find(index));
    let host_end = host_end.ok_or_else(|| attempt(Failure::NoAnswer))?;
    Ok((there.named(FAR_END)?, host_end.clone()))
}

/// If it is the far end: the index of the host's, in the host's namespace.
fn peer_of_far_end(link: &LinkMessage) -> Option<u32> {
    let name = LinkAttribute::IfName(FAR_END.to_owned());
    let peer = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    peer.filter(|_| link.attributes.contains(&name))
}

/// Switches an end on, with no life of its own: it asks for no neighbour (every frame goes to the
/// other end anyhow) and makes itself no IPv6 address.
async fn set_up(netlink: &Netlink, index: u32) -> Result<(), Error> {
    let mut quiet = LinkMessage::default();
    quiet.header.index = index;
    let no_address = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    quiet.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(no_address)])];
    match netlink.change(RouteNetlinkMessage::SetLink(quiet), 0).await {
        // A host without IPv6.
        Ok(()) | Err(Failure::Errno(libc::EAFNOSUPPORT)) => {}
        Err(failure) => return Err(failure.during("keep IPv6 off the veth pair")),
    }
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    up.header.change_mask = up.header.flags;
    let done = netlink.change(RouteNetlinkMessage::SetLink(up), 0).await;
    done.map_err(|failure| failure.during("switch the veth pair on"))
}

fn families(addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = AddressFamily> {
    let v4 = addresses.iter().any(IpAddr::is_ipv4).then_some(AddressFamily::Inet);
    let v6 = addresses.iter().any(IpAddr::is_ipv6).then_some(AddressFamily::Inet6);
    v4.into_iter().chain(v6)
}

fn default_route(family: AddressFamily, interface: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(interface)];
    message
}

#[cfg(test)]
mod tests;
