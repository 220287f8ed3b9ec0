//! Which program is asked, and what it answers.

use anyhow::{Context as _, Result};
use lb_common::{
    abi::ELSEWHERE, forward::Action, frame::HostFrame, host::HostTables, probe, steer,
};
use lb_userspace::datapath::{ANSWERS, PROBE};

/// A program of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Clients' frames.
    Sluice,
    /// Probes on their way out.
    Probe,
    /// Answers to them, where no clients' frames arrive.
    Answers,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::Sluice, Self::Probe, Self::Answers];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sluice => "sluice",
            Self::Probe => PROBE,
            Self::Answers => ANSWERS,
        }
    }

    /// What the host build makes of a frame.
    pub fn on_host(self, frame: &mut HostFrame, tables: &HostTables) -> Answer {
        match self {
            Self::Sluice => tables.arrives(frame.interface),
            Self::Probe | Self::Answers => tables.place.set(ELSEWHERE),
        }
        Answer::from(match self {
            Self::Sluice => steer::process(frame, tables, 0),
            Self::Probe => probe::send(frame, tables),
            Self::Answers => probe::collect(frame, tables),
        })
    }
}

/// What the program answered (`enum xdp_action` in `linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// An error in the program: never.
    Aborted = 0,
    /// Forget the frame.
    Drop = 1,
    /// Leave it to the network stack.
    Pass = 2,
    /// Send it out of the interface it came from.
    Transmit = 3,
    /// Send it out of another interface; which one, a test run does not tell.
    Redirect = 4,
}

impl Answer {
    pub(super) fn from_number(number: u32) -> Result<Self> {
        let all = [Self::Aborted, Self::Drop, Self::Pass, Self::Transmit, Self::Redirect];
        all.into_iter()
            .find(|answer| *answer as u32 == number)
            .with_context(|| format!("the program answered {number}"))
    }
}

impl From<Action> for Answer {
    fn from(action: Action) -> Self {
        match action {
            Action::Pass => Self::Pass,
            Action::Drop => Self::Drop,
            Action::Transmit => Self::Transmit,
            Action::Redirect(_) => Self::Redirect,
        }
    }
}
