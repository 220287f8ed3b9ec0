//! What is done to an instance, step by step; load and checks go on between two steps.

/// A change that must break nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A backend takes no new flows, then takes them again.
    Drain,
    /// A backend less, then the same again.
    Remove,
    /// A backend more, then it goes.
    Add,
    /// Other weights, then the first ones.
    Reweigh,
    /// A file with other backends, then the first one.
    Apply,
    /// The same by the config file and SIGHUP.
    Sighup,
    /// The daemon ends in peace and starts again.
    Restart,
    /// The daemon is killed, stays dead for a while, and starts again.
    Kill9,
    /// Another build's kernel program comes in, then the first one again.
    Upgrade,
    /// The flow table has room for a quarter of the flows.
    SmallTable,
    /// Half of the pool takes no new flows, then takes them again.
    DrainHalf,
    /// A backend is gone from the network without a word.
    Death,
}

/// A part of a change.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Drains whole servers, without waiting: their connections are long.
    Drain(&'static [&'static str]),
    /// Enables them again.
    Enable(&'static [&'static str]),
    /// Adds a server to every service.
    Add(&'static str),
    /// Removes it from every service.
    Remove(&'static str),
    /// Gives weights, in every service.
    Weigh(&'static [(&'static str, u16)]),
    /// `sluice apply` of a file with other backends, or of the first one.
    Apply(File),
    /// The same in the config file, and SIGHUP.
    Reload(File),
    /// SIGTERM, and a new start.
    Restart,
    /// SIGKILL.
    Kill,
    /// A start.
    Start,
    /// `sluice upgrade` by a build.
    Upgrade(Build),
}

/// Who brings its kernel program.
#[derive(Clone, Copy, Debug)]
pub(super) enum Build {
    /// The one under test, which the daemon is of.
    This,
    /// Another that does the same.
    Other,
}

/// A config.
#[derive(Clone, Copy, Debug)]
pub(super) enum File {
    /// As the instance was started with.
    First,
    /// A backend less, one more, and another weight.
    Other,
}

impl Change {
    /// All, in the order in which they are made; the last leaves traces for longest.
    pub const ALL: [Self; 12] = [
        Self::Drain,
        Self::Remove,
        Self::Add,
        Self::Reweigh,
        Self::Apply,
        Self::Sighup,
        Self::Restart,
        Self::Kill9,
        Self::Upgrade,
        Self::DrainHalf,
        Self::SmallTable,
        Self::Death,
    ];

    /// As in the table and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Reweigh => "reweigh",
            Self::Apply => "apply",
            Self::Sighup => "sighup",
            Self::Restart => "restart",
            Self::Kill9 => "kill-9",
            Self::Upgrade => "upgrade",
            Self::SmallTable => "small-table",
            Self::DrainHalf => "drain-half",
            Self::Death => "death",
        }
    }

    /// What is done; a death is not made of steps.
    pub(super) const fn steps(self) -> &'static [Step] {
        match self {
            Self::Drain => &[Step::Drain(&["web-2"]), Step::Enable(&["web-2"])],
            Self::Remove => &[Step::Remove("web-3"), Step::Add("web-3")],
            Self::Add => &[Step::Add("web-5"), Step::Remove("web-5")],
            Self::Reweigh => &[
                Step::Weigh(&[("web-2", 10), ("web-4", 300)]),
                Step::Weigh(&[("web-2", 100), ("web-4", 100)]),
            ],
            Self::Apply => &[Step::Apply(File::Other), Step::Apply(File::First)],
            Self::Sighup => &[Step::Reload(File::Other), Step::Reload(File::First)],
            Self::Restart | Self::SmallTable => &[Step::Restart],
            Self::Kill9 => &[Step::Kill, Step::Start],
            Self::Upgrade => &[Step::Upgrade(Build::Other), Step::Upgrade(Build::This)],
            Self::DrainHalf => {
                &[Step::Drain(&["web-1", "web-2"]), Step::Enable(&["web-1", "web-2"])]
            }
            Self::Death => &[],
        }
    }
}
