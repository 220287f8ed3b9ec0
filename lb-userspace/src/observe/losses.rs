//! Frames that were lost after our program's decision: what the kernel tells, gathered by kind.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_common::losses::Loss;
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{State, trouble};
use crate::{
    control::api::{self, EventKind},
    datapath::Losses,
    journal::Entry,
};

/// After so long without another one, what was lost is over.
const QUIET: Duration = Duration::from_secs(10);

/// Kind of a loss, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// The interface where the frames arrived.
    pub interface: String,
    /// What the program had answered.
    pub action: &'static str,
    /// Why they could not be redirected, and where they were to go; `None`: it was no redirect.
    pub redirect: Option<(i32, String)>,
}

/// How many, and when the last of them.
#[derive(Clone, Copy, Debug)]
struct Lost {
    frames: u64,
    last: Instant,
}

/// All that were lost since the daemon began to watch.
#[derive(Default)]
pub struct Book {
    /// `None`: nobody tells.
    watch: Option<Losses>,
    /// As the kernel counts them.
    counted: BTreeMap<Loss, u64>,
    lost: BTreeMap<Kind, Lost>,
}

impl Kind {
    fn of(loss: &Loss) -> Self {
        let redirect = (loss.error != 0).then(|| (loss.error as i32, name(loss.target)));
        Self { interface: name(loss.interface), action: action(loss.action), redirect }
    }

    /// The error's own name, as `ENETDOWN`.
    fn error(&self) -> Option<String> {
        let (error, _) = self.redirect.as_ref()?;
        Some(format!("{:?}", Errno::from_raw(*error)))
    }
}

/// As `enum xdp_action` in `linux/bpf.h` numbers them.
const fn action(number: u32) -> &'static str {
    match number {
        0 => "aborted",
        1 => "drop",
        2 => "pass",
        3 => "transmit",
        4 => "redirect",
        _ => "unknown",
    }
}

/// The interface with this index; of one that is gone the index.
fn name(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    // Of one that is gone nix tells an empty name.
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("#{index}"))
}

impl Book {
    /// Takes in what has been counted; tells the kinds that have begun.
    fn take(&mut self, counted: BTreeMap<Loss, u64>, now: Instant) -> Vec<Kind> {
        let mut begun = Vec::new();
        for (loss, count) in counted {
            let before = self.counted.insert(loss, count).unwrap_or(0);
            let more = count.saturating_sub(before);
            if more == 0 {
                continue;
            }
            let kind = Kind::of(&loss);
            let known = self.lost.get(&kind).copied();
            if known.is_none_or(|known| is_over(known.last, now)) {
                begun.push(kind.clone());
            }
            let frames = known.map_or(0, |known| known.frames) + more;
            self.lost.insert(kind, Lost { frames, last: now });
        }
        begun
    }

    /// What is being lost.
    pub(super) fn present(&self, now: Instant) -> impl Iterator<Item = (&Kind, u64)> {
        let present = self.lost.iter().filter(move |(_, lost)| !is_over(lost.last, now));
        present.map(|(kind, lost)| (kind, lost.frames))
    }
}

fn is_over(last: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last) > QUIET
}

impl State {
    /// Begins to watch what is lost; where that can't be, it is said here, once.
    pub fn watch_losses(&mut self) {
        match Losses::watch() {
            Ok(watch) => self.losses.watch = Some(watch),
            Err(error) => tracing::warn!(
                "frames that are lost after the program's decision are not counted: {error:#}"
            ),
        }
    }

    /// Takes in what was lost; what begins is noted.
    pub fn take_losses(&mut self, now: Instant) {
        let Some(watch) = &mut self.losses.watch else { return };
        let counted = match watch.read(|program| self.datapath.runs(program)) {
            Ok(counted) => counted,
            Err(error) => return tracing::warn!("{error:#}"),
        };
        let begun = self.losses.take(counted, now);
        let entries = begun.iter().map(|kind| {
            let says = trouble::losses::says(kind);
            Entry::new(format!("{} {says}", kind.interface))
        });
        self.journal.note_all(EventKind::Trouble, entries);
    }

    /// Whether losses are counted.
    pub(super) const fn watches_losses(&self) -> bool {
        self.losses.watch.is_some()
    }

    /// What was lost, for those who ask.
    pub(super) fn lost(&self) -> Vec<api::Loss> {
        let lost = self.losses.lost.iter();
        lost.map(|(kind, lost)| api::Loss {
            interface: kind.interface.clone(),
            action: kind.action.to_owned(),
            error: kind.error(),
            target: kind.redirect.as_ref().map(|(_, target)| target.clone()),
            frames_total: lost.frames,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_is_told_once_until_it_was_over() {
        let (loopback, start) = (1, Instant::now());
        let loss = |program, target| Loss {
            program,
            interface: loopback,
            action: 4,
            error: Errno::ENETDOWN as u32,
            target,
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut book = Book::default();
        let take = |book: &mut Book, counted: &[(Loss, u64)], seconds| {
            let begun = book.take(counted.iter().copied().collect(), at(seconds));
            begun.iter().map(|kind| kind.redirect.clone().map(|to| to.1)).collect::<Vec<_>>()
        };
        let to = |name: &str| vec![Some(name.to_owned())];
        assert_eq!(take(&mut book, &[(loss(7, 999_999), 5)], 0), to("#999999"));
        assert_eq!(take(&mut book, &[(loss(7, 999_999), 6)], 1), []);
        // Another build's program goes on; the kind is the same.
        let upgraded = [(loss(7, 999_999), 6), (loss(8, 999_999), 2), (loss(8, 1), 1)];
        assert_eq!(take(&mut book, &upgraded, 2), to("lo"));
        let frames: Vec<u64> = book.present(at(2)).map(|(_, frames)| frames).collect();
        assert_eq!(frames, [8, 1]);
        assert_eq!(book.present(at(13)).count(), 0);
        assert_eq!(take(&mut book, &[(loss(8, 1), 3)], 20), to("lo"));
        let first = book.present(at(20)).next().map(|(kind, frames)| (kind.error(), frames));
        assert_eq!(first, Some((Some("ENETDOWN".to_owned()), 3)));
    }
}
