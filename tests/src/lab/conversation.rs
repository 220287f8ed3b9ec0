//! Long connections that never fall silent, with every byte checked: what shows whether a
//! connection *lives* through something, which short requests can't.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{DEADLINE, Host, until};

/// Bytes of one message; it comes back as it was.
const MESSAGE: usize = 512;
/// Between an echo and the next message.
const PAUSE: Duration = Duration::from_millis(50);
/// A message that has not come back by then never will: TCP has sent it again several times.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Says its machine's role, then sends everything back. Dropping it ends it.
#[derive(Debug)]
pub struct EchoServer {
    host: Host,
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens on every address of `host`.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let listener = host
            .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
            .with_context(|| format!("listen on port {port} of {}", host.role()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, role) = (stop.clone(), host.role().to_owned());
        let thread = host.namespace().clone().spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (stopped, role) = (stopped.clone(), role.clone());
                let connection = thread::Builder::new().stack_size(64 << 10);
                connections.extend(connection.spawn(move || echo(stream, &role, &stopped)));
            }
            for connection in connections {
                // A client that has gone away is no error here; the client tells.
                let _ = connection.join();
            }
        });
        let thread = Some(thread.context("start the echo server's thread")?);
        Ok(Self { host: host.clone(), port, stop, thread })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // So that the thread leaves accept(2) and looks.
        let _ = self.host.enter(|| TcpStream::connect((Ipv6Addr::LOCALHOST, self.port)));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn echo(mut stream: TcpStream, role: &str, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(format!("{role}\n").as_bytes())?;
    let mut buffer = [0; MESSAGE];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Many long connections to [`EchoServer`]s; dropping them ends them.
#[derive(Debug)]
pub struct Conversations {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What conversations have come to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Connections that were opened, by who answered.
    pub per_backend: BTreeMap<String, u64>,
    /// Why some ended before they were asked to.
    pub broken: Vec<String>,
    /// Messages that came back as they were.
    pub messages: u64,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    stop: AtomicBool,
    messages: AtomicU64,
    report: Mutex<Report>,
}

impl Conversations {
    /// Opens `count` connections from `client` to `address` and waits until all are open.
    pub fn start(client: &Host, address: SocketAddr, count: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            address,
            stop: AtomicBool::new(false),
            messages: AtomicU64::new(0),
            report: Mutex::default(),
        });
        let mut conversations = Self { shared, workers: Vec::new() };
        for number in 0..count {
            let shared = conversations.shared.clone();
            let worker = client.namespace().clone().spawn(move || {
                if let Err(error) = shared.converse(number) {
                    shared.report().broken.push(format!("conversation {number}: {error}"));
                }
            });
            conversations.workers.push(worker.context("start a client's thread")?);
        }
        until(&format!("{count} open connections to {address}"), DEADLINE, || {
            let report = conversations.shared.report();
            let open = report.per_backend.values().sum::<u64>();
            (open + report.broken.len() as u64 >= count).then_some(())
        })?;
        Ok(conversations)
    }

    /// Waits until so many more messages have come back.
    pub fn run_for_messages(&self, messages: u64) -> Result<()> {
        let goal = self.messages() + messages;
        until(&format!("{messages} more messages"), DEADLINE, || {
            (self.messages() >= goal).then_some(())
        })
    }

    /// How many have broken so far.
    pub fn broken(&self) -> usize {
        self.shared.report().broken.len()
    }

    /// What they have come to so far.
    pub fn report(&self) -> Report {
        Report { messages: self.messages(), ..self.shared.report().clone() }
    }

    /// Ends them and tells what became of each.
    pub fn stop(mut self) -> Report {
        self.end();
        self.report()
    }

    fn messages(&self) -> u64 {
        self.shared.messages.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so on standard error.
            let _ = worker.join();
        }
    }
}

impl Drop for Conversations {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn converse(&self, number: u64) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut reader = BufReader::with_capacity(MESSAGE, stream.try_clone()?);
        let mut backend = String::new();
        reader.read_line(&mut backend)?;
        *self.report().per_backend.entry(backend.trim_end().to_owned()).or_default() += 1;

        let mut sent = [0; MESSAGE];
        let mut echoed = [0; MESSAGE];
        for message in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // No two messages of any two connections are the same.
            for (word, place) in sent.chunks_exact_mut(8).enumerate() {
                let value = (number << 48) | ((word as u64) << 40) | message;
                place.copy_from_slice(&value.to_be_bytes());
            }
            stream.write_all(&sent)?;
            reader.read_exact(&mut echoed)?;
            if sent != echoed {
                return Err(io::Error::other(format!("message {message} came back changed")));
            }
            self.messages.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The report stays true when a worker panicked: each change is one call.
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
