//! One network namespace, under a name that `ip netns` knows.

use std::{
    fs::File,
    io,
    panic::resume_unwind,
    path::PathBuf,
    process::Command,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::check;

/// A network namespace; dropping it removes its name, and with the last process and socket in
/// it the kernel removes the rest.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    pub(super) fn create(name: &str) -> Result<Self> {
        let output = Command::new("ip").args(["netns", "add", name]).output().context("run ip")?;
        check(&output, &format!("make network namespace {name}"))?;
        match File::open(path_of(name)) {
            Ok(file) => Ok(Self { name: name.to_owned(), file }),
            Err(error) => {
                delete(name);
                Err(error).with_context(|| format!("open network namespace {name}"))
            }
        }
    }

    /// As in `ip netns list`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `work` inside, in a thread of its own: sockets it opens and programs it starts
    /// belong to the namespace, and stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter_thread();
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a thread that lives inside.
    pub(super) fn spawn<T: Send + 'static>(
        self: std::sync::Arc<Self>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        thread::Builder::new().name(self.name.clone()).stack_size(256 << 10).spawn(move || {
            self.enter_thread();
            drop(self);
            work()
        })
    }

    fn enter_thread(&self) {
        // Root, an open descriptor of the right kind: what is left to fail is the kernel.
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|error| panic!("enter network namespace {}: {error}", self.name));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

pub(super) fn delete(name: &str) {
    let deleted = Command::new("ip").args(["netns", "del", name]).output();
    let deleted = deleted.context("run ip").and_then(|output| check(&output, "ip netns del"));
    if let Err(error) = deleted {
        eprintln!("network namespace {name} stays: {error:#}");
    }
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}
