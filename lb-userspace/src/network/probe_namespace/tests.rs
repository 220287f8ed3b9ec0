//! What comes out of the host's end, and what happens to what is put in.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use lb_common::host::sample::{internet_checksum, tcp_checksum};
use nix::sys::{
    socket::{
        AddressFamily as Family, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv,
        recvfrom, sendto, setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};
use tokio::time::timeout;

use super::*;
use crate::network::lab::{Namespace, block_on};

const PATIENCE: Duration = Duration::from_secs(10);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// Every frame of this thread's network namespace.
fn packets() -> OwnedFd {
    let all = socket(Family::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
    let all = all.expect("a packet socket");
    setsockopt(&all, sockopt::ReceiveTimeout, &TimeVal::seconds(10)).expect("a time-out");
    all
}

/// Where a frame's addresses are, how long each is, and where its TCP header begins.
fn layout(frame: &[u8]) -> (usize, usize, usize) {
    if frame[12..14] == [0x86, 0xdd] { (22, 16, 54) } else { (26, 4, 34) }
}

/// Whether an ACK to this port comes soon; `tcp` is where its header begins.
fn is_acknowledged(packets: &OwnedFd, tcp: usize, port: [u8; 2]) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(100) {
        let mut frame = [0; 2048];
        let flags = MsgFlags::MSG_DONTWAIT;
        match recv(packets.as_raw_fd(), &mut frame, flags) {
            Ok(length) if length >= tcp + 20 => {
                if frame[tcp + 2..tcp + 4] == port && frame[tcp + 13] & 0x12 == 0x10 {
                    return true;
                }
            }
            _ => thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

/// Waits for a SYN to `vip` and answers it as a server does; returns the SYN.
fn answer_a_syn(packets: &OwnedFd, vip: SocketAddr) -> Vec<u8> {
    loop {
        let mut frame = vec![0; 2048];
        let (length, from) =
            recvfrom::<LinkAddr>(packets.as_raw_fd(), &mut frame).expect("a SYN within 10 s");
        frame.truncate(length);
        let (addresses, size, tcp) = layout(&frame);
        let port = vip.port().to_be_bytes();
        if frame.len() < tcp + 20 || frame[tcp + 2..tcp + 4] != port || frame[tcp + 13] != 2 {
            continue;
        }
        let mut answer = frame[..tcp + 20].to_vec();
        answer[..6].copy_from_slice(&PROBE_PEER_MAC);
        answer[6..12].copy_from_slice(&PROBE_HOST_MAC);
        let (source, destination) = (addresses..addresses + size, addresses + size);
        answer[source.clone()].copy_from_slice(&frame[destination..destination + size]);
        answer[destination..destination + size].copy_from_slice(&frame[source]);
        answer[tcp..tcp + 2].copy_from_slice(&frame[tcp + 2..tcp + 4]);
        answer[tcp + 2..tcp + 4].copy_from_slice(&frame[tcp..tcp + 2]);
        let sequence: [u8; 4] = frame[tcp + 4..tcp + 8].try_into().expect("four bytes");
        let sequence = u32::from_be_bytes(sequence).wrapping_add(1);
        answer[tcp + 8..tcp + 12].copy_from_slice(&sequence.to_be_bytes());
        answer[tcp + 12..tcp + 14].copy_from_slice(&[5 << 4, 0x12]);
        if size == 4 {
            answer[16..18].copy_from_slice(&40u16.to_be_bytes());
            answer[24..26].fill(0);
            let checksum = internet_checksum(&[&answer[14..34]]);
            answer[24..26].copy_from_slice(&checksum);
        } else {
            answer[18..20].copy_from_slice(&20u16.to_be_bytes());
        }
        answer[tcp + 16..tcp + 18].fill(0);
        let (ours, theirs) = answer[addresses..addresses + 2 * size].split_at(size);
        let checksum = tcp_checksum(ours, theirs, &answer[tcp..]);
        answer[tcp + 16..tcp + 18].copy_from_slice(&checksum);
        let to = from.expect("a packet socket tells the interface");
        // The link has just come up: before its queue has, what is sent is lost.
        for _ in 0..50 {
            sendto(packets.as_raw_fd(), &answer, &to, MsgFlags::empty()).expect("send the answer");
            if is_acknowledged(packets, tcp, port) {
                return frame;
            }
        }
        panic!("nobody takes the answer to a SYN to {vip}");
    }
}

#[test]
fn a_probe_leaves_by_the_hosts_end_and_is_answered_there() {
    let Some(host) = Namespace::new() else { return };
    let cases = [("198.18.0.1", "203.0.113.10:80"), ("2001:db8::1", "[2001:db8:f00d::10]:443")];
    host.run(move || {
        let packets = packets();
        let (vips, to_answer) = mpsc::channel::<SocketAddr>();
        // A new thread inherits the namespace.
        let server = thread::spawn(move || {
            to_answer.iter().map(|vip| answer_a_syn(&packets, vip)).collect::<Vec<_>>()
        });
        block_on(async {
            let namespace = ProbeNamespace::create("test").await.expect("make it");
            let sources = cases.map(|(source, _)| ip(source));
            namespace.set_sources(&sources.into()).await.expect("set the sources");
            for (source, vip) in cases {
                let vip: SocketAddr = vip.parse().expect("a literal socket address");
                let socket = namespace.socket(vip.ip()).await.expect("a socket");
                socket.bind((ip(source), 2000).into()).expect("bind");
                vips.send(vip).expect("the server waits");
                let stream = timeout(PATIENCE, socket.connect(vip)).await.expect("an answer");
                let stream = stream.expect("connected");
                assert_eq!(stream.peer_addr().expect("connected"), vip);
            }
            // Back and forth: an interface that loses all its addresses loses its routes too.
            for wanted in [BTreeSet::new(), sources.into()] {
                namespace.set_sources(&wanted).await.expect("set the sources");
            }
            let (source, vip) = (ip(cases[0].0), cases[0].1.parse().expect("a socket address"));
            let socket = namespace.socket(source).await.expect("a socket");
            socket.bind((source, 2001).into()).expect("the address is there again");
            vips.send(vip).expect("the server waits");
            let connected = timeout(PATIENCE, socket.connect(vip)).await.expect("an answer");
            connected.expect("the route is there again");
            let gone = namespace.socket(source).await.expect("a socket");
            gone.bind((ip("198.18.0.2"), 2000).into()).expect_err("no such source");
        });
        drop(vips);
        for syn in server.join().expect("the server did not panic") {
            let (addresses, size, tcp) = layout(&syn);
            let (source, destination) = syn[addresses..addresses + 2 * size].split_at(size);
            let mut blank = syn[tcp..].to_vec();
            blank[16..18].fill(0);
            assert_eq!(
                syn[tcp + 16..tcp + 18],
                tcp_checksum(source, destination, &blank),
                "the checksum is finished: {syn:02x?}"
            );
        }
    });
}

/// The names of the interfaces of this thread's network namespace.
fn interfaces() -> Vec<String> {
    let listed = nix::net::if_::if_nameindex().expect("list the interfaces");
    listed.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
}

#[test]
fn several_live_side_by_side_and_leave_nothing() {
    let Some(host) = Namespace::new() else { return };
    host.run(|| {
        block_on(async {
            let one = ProbeNamespace::create("one").await.expect("make one");
            let two = ProbeNamespace::create("two").await.expect("make another");
            assert_ne!(one.host_end().index, two.host_end().index);
            assert_eq!(interfaces(), ["lo", "sl-probe0", "sl-probe1"]);
            // As at the death of the process: all at once.
            let socket = one.socket(ip("192.0.2.1")).await.expect("a socket");
            drop((one, two, socket));
        });
        let since = Instant::now();
        while interfaces() != ["lo"] {
            assert!(since.elapsed() < PATIENCE, "{:?} stay", interfaces());
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn who_may_not_is_told_what_is_missing() {
    assert_eq!(
        NamespaceError::Unshare(Errno::EPERM).to_string(),
        "can't make a network namespace: not permitted: run as root or with the capability \
         CAP_SYS_ADMIN"
    );
}
