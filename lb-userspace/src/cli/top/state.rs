//! What is on the screen: one state, and what each event makes of it. No I/O.

use std::time::{Duration, SystemTime};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    rows::{Choice, Id, Row, rows},
    traffic::Traffic,
};
use crate::control::api::{self, Change, Target, Transaction};

/// Lines by which a page goes up or down.
const PAGE: usize = 10;

/// One answer of the daemon.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What is.
    pub status: api::Status,
    /// What became of the frames.
    pub reasons: api::Reasons,
    /// By the wall clock.
    pub at: SystemTime,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The daemon has answered.
    Read(Box<Reading>),
    /// It has not: why.
    Failed(String),
    /// What was asked for was done, or why not.
    Changed(Result<String, String>),
    /// Time goes by.
    Tick,
}

/// What the state asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// An end.
    Quit,
    /// A change.
    Change(Transaction),
}

/// What the keyboard is for now.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mode {
    /// Looking.
    #[default]
    Watch,
    /// Writing the filter.
    Filter,
    /// Answering whether this shall be done.
    Confirm(Question),
    /// Reading what the keys do.
    Help,
}

/// What is done only when somebody says yes.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Of the backend.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Drain it; else enable it.
    pub drains: bool,
    /// Flows that it has.
    pub flows: u64,
}

/// What is shown below the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Panel {
    /// What is wrong.
    #[default]
    Troubles,
    /// Frames that were not forwarded.
    Drops,
    /// More about the line that is chosen.
    Chosen,
}

/// How the daemon does, as far as it is known here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Daemon {
    /// It has not been asked yet.
    #[default]
    Unasked,
    /// It answers.
    Answers,
    /// It has not answered since.
    Gone {
        /// Counted as [`Top::now`].
        since: Duration,
        /// Why.
        why: String,
    },
}

/// Everything that is drawn.
#[derive(Debug, Default)]
pub struct Top {
    /// Since the start.
    pub now: Duration,
    /// Who is asked.
    pub daemon: Daemon,
    /// The last answer.
    pub reading: Option<Reading>,
    /// Rates.
    pub traffic: Traffic,
    /// What is listed.
    pub choice: Choice,
    /// Which line is chosen.
    pub chosen: Option<Id>,
    /// What the keyboard is for.
    pub mode: Mode,
    /// What is shown below.
    pub panel: Panel,
    /// What came of the last change; it goes with the next key.
    pub told: Option<Result<String, String>>,
}

impl Top {
    /// The lines of the list.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let reading = self.reading.as_ref();
        reading.map(|r| rows(&r.status, &self.traffic, &self.choice)).unwrap_or_default()
    }

    /// Which of them is chosen: the first, if what was chosen is not there any more.
    pub fn place(&self, rows: &[Row<'_>]) -> usize {
        let is_chosen = |row: &Row<'_>| self.chosen.as_ref().is_some_and(|id| row.is(id));
        rows.iter().position(is_chosen).unwrap_or(0)
    }

    /// What an event at `now`, counted from the start, makes of it, and what is asked for.
    pub fn next(&mut self, event: Event, now: Duration) -> Option<Ask> {
        self.now = now;
        match event {
            Event::Key(key) => return self.key(key),
            Event::Read(reading) => {
                self.traffic.take(&reading.status, &reading.reasons, now);
                self.reading = Some(*reading);
                self.daemon = Daemon::Answers;
            }
            Event::Failed(why) => {
                let since = match self.daemon {
                    Daemon::Gone { since, .. } => since,
                    Daemon::Unasked | Daemon::Answers => now,
                };
                self.daemon = Daemon::Gone { since, why };
            }
            Event::Changed(told) => self.told = Some(told),
            Event::Tick => {}
        }
        None
    }

    fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && matches!(key.code, KeyCode::Char('c')) {
            return Some(Ask::Quit);
        }
        self.told = None;
        match std::mem::take(&mut self.mode) {
            Mode::Watch => self.key_while_watching(key.code),
            Mode::Filter => {
                self.key_while_filtering(key.code);
                None
            }
            Mode::Help => None,
            // Only a clear yes is one.
            Mode::Confirm(question) => match key.code {
                KeyCode::Char('y' | 'Y') => Some(Ask::Change(question.transaction())),
                _ => {
                    self.told = Some(Ok("nothing was changed".to_owned()));
                    None
                }
            },
        }
    }

    fn key_while_watching(&mut self, code: KeyCode) -> Option<Ask> {
        match code {
            KeyCode::Char('q') => return Some(Ask::Quit),
            KeyCode::Esc => self.choice.filter.clear(),
            KeyCode::Up | KeyCode::Char('k') => self.go(|place, _| place.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|place, _| place + 1),
            KeyCode::PageUp => self.go(|place, _| place.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|place, _| place + PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_, _| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_, last| last),
            KeyCode::Char('s') => self.choice.sort = self.choice.sort.next(),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?') | KeyCode::Char('h') => self.mode = Mode::Help,
            KeyCode::Tab => self.panel = self.panel.next(),
            KeyCode::Enter | KeyCode::Char(' ') => self.turn(),
            KeyCode::Char('d') => self.ask(true),
            KeyCode::Char('e') => self.ask(false),
            _ => {}
        }
        None
    }

    fn key_while_filtering(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => return,
            KeyCode::Esc => {
                self.choice.filter.clear();
                return;
            }
            KeyCode::Backspace => {
                self.choice.filter.pop();
            }
            KeyCode::Char(letter) => self.choice.filter.extend(letter.to_lowercase()),
            _ => {}
        }
        self.mode = Mode::Filter;
    }

    /// Chooses another line: `to` is told the place of this one and of the last.
    fn go(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let rows = self.rows();
        let Some(last) = rows.len().checked_sub(1) else { return };
        let place = to(self.place(&rows), last).min(last);
        self.chosen = Some(rows[place].id());
    }

    /// Opens the chosen line's service, or closes it.
    fn turn(&mut self) {
        let rows = self.rows();
        let Some(row) = rows.get(self.place(&rows)) else { return };
        let service = row.service.name.clone();
        self.chosen = Some(Id { service: service.clone(), backend: None });
        if !self.choice.turned.remove(&service) {
            self.choice.turned.insert(service);
        }
    }

    /// Asks whether the chosen backend shall be drained, or enabled.
    fn ask(&mut self, drains: bool) {
        let rows = self.rows();
        let question = match rows.get(self.place(&rows)) {
            _ if self.daemon != Daemon::Answers => Err("no daemon answers: nothing can be changed"),
            None => Err("there is no backend"),
            Some(Row { backend: None, .. }) => Err("choose a backend: this is a service"),
            Some(Row { backend: Some(backend), .. }) if backend.leaving => {
                Err("it was removed, and goes with its last flow")
            }
            Some(Row { backend: Some(backend), .. })
                if drains && backend.admin != api::Admin::Enabled =>
            {
                Err("it gets no new flows already")
            }
            Some(Row { backend: Some(backend), .. })
                if !drains && backend.admin == api::Admin::Enabled =>
            {
                Err("it is enabled already")
            }
            Some(Row { service, backend: Some(backend) }) => Ok(Question {
                service: service.name.clone(),
                backend: backend.name.clone(),
                drains,
                flows: backend.active_flows,
            }),
        };
        match question {
            Ok(question) => self.mode = Mode::Confirm(question),
            Err(why) => self.told = Some(Err(why.to_owned())),
        }
    }
}

impl Question {
    fn transaction(&self) -> Transaction {
        let target = Target { service: Some(self.service.clone()), backend: self.backend.clone() };
        let change = match self.drains {
            true => Change::Drain { target, deadline_ms: None },
            false => Change::Enable { target },
        };
        Transaction { changes: vec![change], force: false }
    }
}

impl Panel {
    /// All of them, in the order of [`Self::next`].
    pub const ALL: [Self; 3] = [Self::Troubles, Self::Drops, Self::Chosen];

    const fn next(self) -> Self {
        match self {
            Self::Troubles => Self::Drops,
            Self::Drops => Self::Chosen,
            Self::Chosen => Self::Troubles,
        }
    }
}
