//! Network namespaces for tests. They have no name: a thread holds each,
//! and when it ends the kernel clears up.

use std::{
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
};

use tokio::sync::watch;

type Task = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that lives in it.
pub(crate) struct Namespace {
    /// The thread's number.
    id: i32,
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
    /// Dropped: what was spawned ends.
    stop: watch::Sender<()>,
}

impl Namespace {
    /// `None`, and a line that says so, without the privileges.
    pub(crate) fn new() -> Option<Self> {
        let (tasks, todo) = mpsc::channel::<Task>();
        let (id_here, id) = mpsc::channel();
        let thread = thread::spawn(move || {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            let _ = id_here.send(made.map(|()| nix::unistd::gettid().as_raw()));
            for task in todo {
                task();
            }
        });
        match id.recv().expect("the thread answers") {
            Ok(id) => {
                let (stop, _) = watch::channel(());
                Some(Self { id, tasks: Some(tasks), thread: Some(thread), stop })
            }
            Err(error) => {
                eprintln!("skipped: a network namespace needs root ({error})");
                None
            }
        }
    }

    /// Runs `task` inside, and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let task = move || {
            let _ = done.send(task());
        };
        self.tasks.as_ref().expect("not dropped").send(Box::new(task)).expect("the thread lives");
        result.recv().expect("the task did not panic")
    }

    /// Runs `future` inside, on a thread of its own, until this is dropped.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.subscribe();
        self.run(move || {
            // A new thread inherits the namespace.
            thread::spawn(move || {
                block_on(async {
                    let mut stop = stop;
                    tokio::select! {
                        () = future => {}
                        _ = stop.changed() => {}
                    }
                });
            });
        });
    }

    /// Runs `ip` inside with these words.
    pub(crate) fn ip(&self, words: &str) {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(&words).output());
        let output = output.expect("`ip` (iproute2) is installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip: {error}");
    }

    /// Joins two namespaces by a veth pair: `eth0` here, `eth0` there, both up, with these
    /// addresses and MACs ending so.
    pub(crate) fn join(&self, there: &Self, here: [&str; 2], far: [&str; 2], macs: [u8; 2]) {
        self.ip(&format!(
            "link add eth0 address 02:00:00:00:00:{:02x} type veth \
             peer name eth0 address 02:00:00:00:00:{:02x} netns {}",
            macs[0], macs[1], there.id
        ));
        for (namespace, addresses) in [(self, here), (there, far)] {
            namespace.ip("link set lo up");
            // The kernel asks from its link-local address, which duplicate address detection
            // keeps unusable for the first 1 to 2 s.
            namespace
                .run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0"))
                .expect("set accept_dad");
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("address add {address} dev eth0 {nodad}"));
            }
            namespace.ip("link set eth0 up");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A runtime for one thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
