//! Many long connections at once, one thread a machine: both sides speak all the time, each at
//! its own pace, in numbered blocks, and each checks every byte of the other.
//!
//! [`super::Conversations`] are a thread each and wait for an echo; these are for thousands.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    runtime,
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{DEADLINE, Host, until};

/// Bytes of one block.
const BLOCK: usize = 128;
/// Bytes that begin a connection, each way.
const GREETING: usize = 32;
/// Who has said nothing for so long has been lost: TCP has sent it again several times.
const SILENCE: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const OPENING: usize = 64;

/// Where a block comes from.
#[derive(Clone, Copy)]
enum Speaker {
    Client = 1,
    Server = 2,
}

/// A block: who says it, its number, how many blocks of the other side its sender had heard by
/// then, and bytes that no other block has.
fn block(from: Speaker, stream: u64, number: u64, heard: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let who = (from as u64) << 56 | stream;
    for (place, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match place {
            0 => who,
            1 => number,
            2 => heard,
            // SplitMix64's multiplier: each place of each block differs.
            _ => (who ^ number << 20 ^ place as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9),
        };
        word.copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

/// How many blocks the other side had heard; an error if it is not the block that comes next.
fn check(bytes: &[u8; BLOCK], from: Speaker, stream: u64, number: u64) -> io::Result<u64> {
    let [_, _, heard, ..] = words(bytes);
    if *bytes == block(from, stream, number, heard) {
        return Ok(heard);
    }
    let [who, came, ..] = words(bytes);
    Err(io::Error::other(format!(
        "block {number} of stream {stream} came changed: {came} of {}",
        who & 0xffff_ffff
    )))
}

fn words<const N: usize>(bytes: &[u8; N]) -> [u64; 3] {
    let word = |place: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[8 * place..][..8]);
        u64::from_be_bytes(word)
    };
    [word(0), word(1), word(2)]
}

/// One side of a connection.
struct Side {
    me: Speaker,
    stream: u64,
    pace: Duration,
    said: Cell<u64>,
    heard: Cell<u64>,
}

impl Side {
    fn new(me: Speaker, stream: u64, pace: Duration) -> Self {
        Self { me, stream, pace, said: Cell::new(0), heard: Cell::new(0) }
    }

    /// Says a block at each beat until `stop`, then one more: the other side learns by it that
    /// all its blocks have come.
    async fn say(
        &self,
        writer: &mut WriteHalf<'_>,
        mut stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut beat = interval(self.pace);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => self.say_one(writer).await?,
                // An error: who would tell us to stop is gone.
                _ = stop.wait_for(|stop| *stop) => {
                    self.say_one(writer).await?;
                    return writer.shutdown().await;
                }
            }
        }
    }

    async fn say_one(&self, writer: &mut WriteHalf<'_>) -> io::Result<()> {
        let block = block(self.me, self.stream, self.said.get(), self.heard.get());
        writer.write_all(&block).await?;
        self.said.set(self.said.get() + 1);
        Ok(())
    }

    /// The next block: how many of ours the other side has heard; `None` at its end.
    async fn hear_one(&self, reader: &mut ReadHalf<'_>) -> io::Result<Option<u64>> {
        let mut bytes = [0; BLOCK];
        let read = async {
            match reader.read(&mut bytes).await? {
                0 => Ok(false),
                some => reader.read_exact(&mut bytes[some..]).await.map(|_| true),
            }
        };
        let silent = |_| io::Error::new(ErrorKind::TimedOut, "nothing came for 10 s");
        if !timeout(SILENCE, read).await.map_err(silent)?? {
            return Ok(None);
        }
        let other = match self.me {
            Speaker::Client => Speaker::Server,
            Speaker::Server => Speaker::Client,
        };
        let confirmed = check(&bytes, other, self.stream, self.heard.get())?;
        self.heard.set(self.heard.get() + 1);
        Ok(Some(confirmed))
    }
}

/// A thread with a runtime, inside a machine.
fn spawn<W>(host: &Host, work: impl FnOnce() -> W + Send + 'static) -> Result<JoinHandle<()>>
where
    W: Future<Output = io::Result<()>>,
{
    let thread = host.namespace().clone().spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.and_then(|runtime| runtime.block_on(work()));
        if let Err(error) = ended {
            eprintln!("streams have stopped: {error}");
        }
    });
    thread.context("start the streams' thread")
}

/// A descriptor for each end of each connection, in this process and those that it starts.
pub fn allow_many_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for the limit of files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of files")
}

/// The other end of [`Streams`]. Dropping it cuts its connections.
#[derive(Debug)]
pub struct StreamServer {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl StreamServer {
    /// Listens on every address of `host`.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        allow_many_files()?;
        let (stop, mut stopped) = watch::channel(false);
        let role = host.role().to_owned();
        let listener = host
            .enter(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("listen on port {port} of {role}"))?;
        let thread = spawn(host, move || async move {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let local = tokio::task::LocalSet::new();
            let serve = local.run_until(async {
                loop {
                    let (stream, _) = listener.accept().await?;
                    let role = role.clone();
                    // What breaks is told by the client.
                    tokio::task::spawn_local(async move { answer(stream, &role).await });
                }
            });
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => Ok(()),
                ended = serve => ended,
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for StreamServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn answer(mut stream: TcpStream, role: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut greeting = [0; GREETING];
    timeout(SILENCE, stream.read_exact(&mut greeting)).await??;
    let [number, pace, _] = words(&greeting);
    let mut name = [0; GREETING];
    name[..role.len()].copy_from_slice(role.as_bytes());
    stream.write_all(&name).await?;

    let side = Side::new(Speaker::Server, number, Duration::from_millis(pace));
    let (stop, stopped) = watch::channel(false);
    let (mut reader, mut writer) = stream.split();
    let hear = async {
        while side.hear_one(&mut reader).await?.is_some() {}
        stop.send_replace(true);
        Ok(())
    };
    tokio::try_join!(hear, side.say(&mut writer, stopped)).map(|_| ())
}

/// How many connections to whom.
#[derive(Clone, Copy, Debug)]
pub struct StreamPlan {
    /// Where [`StreamServer`]s listen.
    pub address: SocketAddr,
    /// Connections.
    pub count: u64,
    /// Between two blocks of one side of one connection.
    pub pace: Duration,
}

/// Long connections to [`StreamServer`]s; dropping them ends them.
#[derive(Debug)]
pub struct Streams {
    streams: Arc<[Stream]>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Stream {
    /// Who answered.
    backend: OnceLock<String>,
    /// Blocks that came.
    heard: AtomicU64,
    /// Blocks that the server says have come.
    confirmed: AtomicU64,
    /// Why it broke.
    broken: OnceLock<String>,
    is_stopping: AtomicBool,
}

/// A connection that ended before it was asked to.
#[derive(Clone, Debug)]
pub struct BrokenStream {
    /// Who had answered; empty: nobody.
    pub backend: String,
    /// Why.
    pub cause: String,
}

impl Streams {
    /// Opens them from `client` and waits until all are open, or broken.
    pub fn open(client: &Host, plan: StreamPlan) -> Result<Self> {
        allow_many_files()?;
        let streams: Arc<[Stream]> = (0..plan.count).map(|_| Stream::default()).collect();
        let (stop, stopped) = watch::channel(false);
        let inside = streams.clone();
        let thread = spawn(client, move || async move {
            let local = tokio::task::LocalSet::new();
            let opening = std::rc::Rc::new(Semaphore::new(OPENING));
            for number in 0..inside.len() {
                let (streams, stopped) = (inside.clone(), stopped.clone());
                let opening = opening.clone();
                local.spawn_local(async move {
                    let stream = &streams[number];
                    if let Err(error) = stream.live(number as u64, plan, &opening, stopped).await {
                        let _ = stream.broken.set(error.to_string());
                    }
                });
            }
            local.await;
            Ok(())
        })?;
        let streams = Self { streams, stop, thread: Some(thread) };
        let is_settled = |stream: &Stream| {
            stream.broken.get().is_some() || stream.confirmed.load(Ordering::Relaxed) > 0
        };
        let what = format!("{} open streams to {}", plan.count, plan.address);
        until(&what, 3 * DEADLINE, || streams.streams.iter().all(is_settled).then_some(()))?;
        Ok(streams)
    }

    /// Waits until on each that is not broken so many more blocks have gone each way. Those that
    /// don't get there in time are broken too.
    pub fn advance(&self, blocks: u64, deadline: Duration) {
        let place = |stream: &Stream| {
            [&stream.heard, &stream.confirmed].map(|count| count.load(Ordering::Relaxed) + blocks)
        };
        let goals = self.streams.iter().map(place).collect::<Vec<_>>();
        let late = || {
            let both = self.streams.iter().zip(&goals);
            both.filter(|(stream, goal)| {
                let [heard, confirmed] = place(stream);
                let there = heard - blocks >= goal[0] && confirmed - blocks >= goal[1];
                !there && stream.broken.get().is_none()
            })
            .map(|(stream, _)| stream)
            .collect::<Vec<_>>()
        };
        let all = until("streams", deadline, || late().is_empty().then_some(()));
        if all.is_err() {
            for stream in late() {
                let _ = stream.broken.set("it came to a standstill".to_owned());
            }
        }
    }

    /// Those that have broken so far.
    pub fn broken(&self) -> Vec<BrokenStream> {
        let broken = self.streams.iter().filter_map(|stream| {
            let cause = stream.broken.get()?.clone();
            Some(BrokenStream { backend: stream.backend.get().cloned().unwrap_or_default(), cause })
        });
        broken.collect()
    }

    /// Connections that were opened, by who answered.
    pub fn per_backend(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for backend in self.streams.iter().filter_map(|stream| stream.backend.get()) {
            *counts.entry(backend.clone()).or_default() += 1;
        }
        counts
    }

    /// Blocks that came, over all.
    pub fn blocks(&self) -> u64 {
        self.streams.iter().map(|stream| stream.heard.load(Ordering::Relaxed)).sum()
    }

    /// Ends them, each with the last block of both sides, and tells which broke.
    pub fn close(mut self) -> Vec<BrokenStream> {
        self.end();
        self.broken()
    }

    fn end(&mut self) {
        for stream in self.streams.iter() {
            stream.is_stopping.store(true, Ordering::Relaxed);
        }
        self.stop.send_replace(true);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end();
    }
}

impl Stream {
    async fn live(
        &self,
        number: u64,
        plan: StreamPlan,
        opening: &Semaphore,
        stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let permit = opening.acquire().await.map_err(io::Error::other)?;
        let connect = async {
            let mut stream = TcpStream::connect(plan.address).await?;
            stream.set_nodelay(true)?;
            let mut greeting = [0; GREETING];
            greeting[..8].copy_from_slice(&number.to_be_bytes());
            greeting[8..16].copy_from_slice(&(plan.pace.as_millis() as u64).to_be_bytes());
            stream.write_all(&greeting).await?;
            stream.read_exact(&mut greeting).await?;
            Ok::<_, io::Error>((stream, greeting))
        };
        let silent = |_| io::Error::new(ErrorKind::TimedOut, "no connection within 10 s");
        let (mut stream, greeting) = timeout(SILENCE, connect).await.map_err(silent)??;
        drop(permit);
        let backend = String::from_utf8_lossy(&greeting);
        let _ = self.backend.set(backend.trim_end_matches('\0').to_owned());

        let side = Side::new(Speaker::Client, number, plan.pace);
        let (mut reader, mut writer) = stream.split();
        let hear = async {
            while let Some(confirmed) = side.hear_one(&mut reader).await? {
                self.heard.store(side.heard.get(), Ordering::Relaxed);
                self.confirmed.store(confirmed, Ordering::Relaxed);
            }
            if !self.is_stopping.load(Ordering::Relaxed) {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed by the server"));
            }
            let (said, confirmed) = (side.said.get(), self.confirmed.load(Ordering::Relaxed));
            if said != confirmed {
                return Err(io::Error::other(format!("{said} blocks said, {confirmed} came")));
            }
            Ok(())
        };
        tokio::try_join!(hear, side.say(&mut writer, stop)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_in_another_ones_place_is_found_out() {
        let good = block(Speaker::Client, 7, 3, 9);
        assert_eq!(check(&good, Speaker::Client, 7, 3).unwrap(), 9);
        for (from, stream, number) in
            [(Speaker::Server, 7, 3), (Speaker::Client, 8, 3), (Speaker::Client, 7, 4)]
        {
            assert!(check(&good, from, stream, number).is_err());
        }
        for place in (0..BLOCK).filter(|place| !(16..24).contains(place)) {
            let mut changed = good;
            changed[place] ^= 1;
            assert!(check(&changed, Speaker::Client, 7, 3).is_err(), "byte {place}");
        }
    }
}
