//! A frame through a program, to see its answer: `BPF_PROG_TEST_RUN`. Nothing is sent.

use std::fmt;

use anyhow::{Context as _, Result};
use aya::{
    TestRun as _,
    programs::{TestRunOptions, Xdp},
};
use lb_common::forward::Action;
use zerocopy::IntoBytes;

/// What programs answer, as `enum xdp_action` in `linux/bpf.h` has it.
pub const ABORTED: u32 = 0;
pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const TRANSMIT: u32 = 3;
pub const REDIRECT: u32 = 4;

/// Room in front of a frame, for a tunnel header.
const HEADROOM: usize = 256;

/// A program's answer to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `enum xdp_action` in `linux/bpf.h`.
    pub action: u32,
    /// The frame as it is afterwards.
    pub frame: Vec<u8>,
}

impl Answer {
    /// What the kernel program answers when this is decided.
    pub const fn of(action: Action, frame: Vec<u8>) -> Self {
        let action = match action {
            Action::Pass => PASS,
            Action::Drop => DROP,
            Action::Transmit => TRANSMIT,
            Action::Redirect(_) => REDIRECT,
        };
        Self { action, frame }
    }
}

/// Runs a frame through a program, as if it had arrived on the interface with this index;
/// `None`: on the loopback interface of this network namespace.
pub fn run(program: &Xdp, frame: &[u8], interface: Option<u32>) -> Result<Answer> {
    let mut out = vec![0; frame.len() + HEADROOM];
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
    // egress_ifindex.
    let context = interface.map(|interface| [0, frame.len() as u32, 0, interface, 0, 0]);
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context.as_ref().map(IntoBytes::as_bytes),
            ..TestRunOptions::default()
        })
        .context("run a frame through the program (BPF_PROG_TEST_RUN)")?;
    out.truncate(result.data_size_out as usize);
    Ok(Answer { action: result.return_value, frame: out })
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.action, self.frame.first_chunk::<6>()) {
            (ABORTED, _) => f.write_str("aborted"),
            (DROP, _) => f.write_str("dropped"),
            (PASS, _) => f.write_str("passed"),
            (TRANSMIT | REDIRECT, Some(mac)) => write!(f, "sent to {}", Mac(*mac)),
            (other, _) => write!(f, "the unknown action {other}"),
        }
    }
}

/// A MAC address, for people.
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
