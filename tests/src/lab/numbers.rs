//! Numbered frames at full speed: each is sent once, and who received it is written down. TCP
//! would send a lost one again and hide it.
//!
//! The sender is at most [`AHEAD`] frames ahead of the receivers, less than any queue on the way
//! holds: so that what is lost is the balancer's loss. It goes as fast as that allows.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{DEADLINE, Lab, raw::RawSocket, until};

/// Frames on their way at most; a veth's ring holds 256 (`VETH_RING_SIZE`).
const AHEAD: u32 = 128;
/// Frames that have not come by then never will.
const LATE: Duration = Duration::from_millis(500);
/// Frames of one stream at most.
const MOST: usize = 1 << 23;
/// Flows they belong to.
pub const FLOWS: u32 = 64;

/// A stream of numbered frames, from the client by the balancer to the backends.
#[derive(Debug)]
pub struct Numbers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// How many were sent.
    pub sent: u32,
    /// How many came nowhere.
    pub lost: u32,
    /// How many came twice.
    pub twice: u32,
    /// Which backend each flow's frames came to; `None`: to several, or none.
    pub backends: Vec<Option<u8>>,
    /// How long it took.
    pub time: Duration,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU32,
    received: AtomicU32,
    twice: AtomicU32,
    /// Which backend received a number, counted from 1; 0: none.
    by: Box<[AtomicU8]>,
}

impl Numbers {
    /// Starts to send to `vip`.
    ///
    /// # Errors
    /// If an interface can't be opened.
    pub fn start(lab: &Lab, vip: SocketAddr) -> Result<Self> {
        let SocketAddr::V4(vip) = vip else { bail!("numbered frames are IPv4's") };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: AtomicU32::new(0),
            received: AtomicU32::new(0),
            twice: AtomicU32::new(0),
            by: (0..MOST).map(|_| AtomicU8::new(0)).collect(),
        });
        let mut numbers = Self { shared, threads: Vec::new() };
        for (backend, host) in (1..).zip(lab.backends()) {
            let socket = RawSocket::open(host.namespace(), "eth0", Duration::from_millis(20))?;
            let shared = numbers.shared.clone();
            numbers.spawn(move || shared.receive(&socket, backend))?;
        }
        let client = lab.client();
        let socket = RawSocket::open(client.namespace(), "eth0", Duration::from_secs(1))?;
        let macs = [lab.balancer(), client].map(|host| host.interfaces()[0].mac());
        let frames: Vec<_> =
            (0..FLOWS).map(|flow| frame(macs, flow, *vip.ip(), vip.port())).collect();
        let shared = numbers.shared.clone();
        numbers.spawn(move || shared.send(&socket, frames))?;
        Ok(numbers)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let name = "numbers".to_owned();
        let thread = thread::Builder::new().name(name).spawn(work).context("start a thread")?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until so many more have been sent.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn run_for(&self, frames: u32) -> Result<()> {
        let sent = || self.shared.sent.load(Ordering::Relaxed);
        let goal = sent() + frames;
        until(&format!("{frames} numbered frames"), DEADLINE * 3, || (sent() >= goal).then_some(()))
    }

    /// Ends it and tells what became of each frame.
    pub fn stop(mut self, started: Instant) -> Arrived {
        let time = started.elapsed();
        self.end();
        let shared = &self.shared;
        let sent = shared.sent.load(Ordering::Relaxed);
        let by = |number: u32| shared.by[number as usize].load(Ordering::Relaxed);
        Arrived {
            sent,
            lost: (0..sent).filter(|&number| by(number) == 0).count() as u32,
            twice: shared.twice.load(Ordering::Relaxed),
            backends: (0..FLOWS)
                .map(|flow| {
                    let mut came = (flow..sent).step_by(FLOWS as usize).map(by);
                    let first = came.next()?;
                    came.all(|backend| backend == first || backend == 0).then_some(first)
                })
                .collect(),
            time,
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn send(&self, socket: &RawSocket, mut frames: Vec<Vec<u8>>) {
        let mut lost = 0;
        for number in 0..MOST as u32 {
            let waiting = Instant::now();
            let on_the_way = || number - self.received.load(Ordering::Acquire);
            while on_the_way() >= AHEAD + lost {
                thread::yield_now();
                if waiting.elapsed() > LATE {
                    lost = on_the_way();
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let frame = &mut frames[(number % FLOWS) as usize];
            frame[SEQUENCE..SEQUENCE + 4].copy_from_slice(&number.to_be_bytes());
            if let Err(error) = socket.send(frame) {
                eprintln!("can't send frame {number}: {error}");
                break;
            }
            self.sent.store(number + 1, Ordering::Relaxed);
        }
        // What is on its way arrives before the receivers look whether to stop.
        self.stop.store(true, Ordering::Relaxed);
    }

    fn receive(&self, socket: &RawSocket, backend: u8) {
        let mut buffer = [0; 256];
        loop {
            match socket.receive(&mut buffer) {
                Ok(Some(received)) => {
                    let Some(number) = number(received.frame) else { continue };
                    let Some(place) = self.by.get(number as usize) else { continue };
                    if place.swap(backend, Ordering::Relaxed) != 0 {
                        self.twice.fetch_add(1, Ordering::Relaxed);
                    }
                    self.received.fetch_add(1, Ordering::Release);
                }
                Ok(None) if self.stop.load(Ordering::Relaxed) => return,
                Ok(None) => {}
                Err(error) => return eprintln!("can't receive: {error}"),
            }
        }
    }
}

/// Where a frame's number is: TCP's sequence number.
const SEQUENCE: usize = 14 + 20 + 4;

fn number(frame: &[u8]) -> Option<u32> {
    let ours = frame.get(12..14)? == [0x08, 0x00] && frame.get(26..29)? == [198, 51, 100];
    let number = frame.get(SEQUENCE..SEQUENCE + 4)?.try_into().ok()?;
    ours.then(|| u32::from_be_bytes(number))
}

/// An ACK of a flow. Its TCP checksum is wrong, so that backends do not answer; its client's
/// answers would go nowhere (TEST-NET-2).
fn frame(macs: [[u8; 6]; 2], flow: u32, vip: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 7, 0, 0, 0, 0];
    ip[16..].copy_from_slice(&vip.octets());
    let sum = ip.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = sum.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&(10_000 + flow as u16).to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    [macs.as_flattened(), &[0x08, 0x00], &ip, &tcp].concat()
}
