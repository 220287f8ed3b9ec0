//! `sluice top`: services and backends as they are, read anew again and again, and drained or
//! enabled from the keyboard.
//!
//! [`state`] holds what is shown and what each key or answer makes of it, [`draw`] makes a frame of
//! it; both are pure. Here are the terminal, the clock and the daemon.

mod draw;
mod rows;
mod state;
#[cfg(test)]
mod tests;
mod theme;
mod traffic;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use crossterm::event::{Event as TerminalEvent, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{MissedTickBehavior, interval},
};

use self::{
    state::{Ask, Event, Reading, Top},
    theme::Theme,
};
use crate::control::{
    api::{Changed, Transaction},
    client::{Client, Error},
};

/// The daemon is left alone for so many times as long as its last answer took.
const REST: u32 = 4;

/// How it watches.
#[derive(Args)]
pub struct Arguments {
    /// Time from one reading to the next, 100ms to 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval_between)]
    interval: Duration,
}

fn interval_between(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_millis(100)..=Duration::from_secs(60);
    allowed.contains(&time).then_some(time).ok_or_else(|| "from 100ms to 1m".to_owned())
}

/// Takes the terminal until somebody quits.
///
/// # Errors
/// If there is no terminal that can be drawn on, or the daemon does not answer at the start; one
/// that stops answering later is waited for.
pub async fn execute(client: &Client, arguments: &Arguments) -> Result<()> {
    let term = std::env::var("TERM").unwrap_or_default();
    fit(&term, io::stdin().is_terminal() && io::stdout().is_terminal())?;
    // Before the screen is taken, so that a refusal is one line.
    let first = read(client).await?;
    let theme = Theme::of_environment(|name| std::env::var(name).ok());
    let mut stops = Stops::listen()?;
    // A panic gives the terminal back too, by a hook.
    let mut terminal = ratatui::try_init().context("take the terminal")?;
    let result = watch(&mut terminal, client, first, arguments.interval, &theme, &mut stops).await;
    let restored = ratatui::try_restore().context("give the terminal back");
    result.and(restored)
}

/// Whether a screen can be drawn there.
fn fit(term: &str, is_terminal: bool) -> Result<()> {
    const INSTEAD: &str = "`sluice status` and `sluice backend list` print the same once";
    if !is_terminal {
        bail!("standard input and output must be a terminal: {INSTEAD}");
    }
    if term.is_empty() || term == "dumb" {
        bail!("this terminal (TERM={term:?}) can't be drawn on: {INSTEAD}");
    }
    Ok(())
}

/// Signals that end it.
struct Stops([tokio::signal::unix::Signal; 3]);

impl Stops {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn come(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

async fn watch(
    terminal: &mut DefaultTerminal,
    client: &Client,
    first: Reading,
    time: Duration,
    theme: &Theme,
    stops: &mut Stops,
) -> Result<()> {
    let start = Instant::now();
    let mut top = Top::default();
    top.next(Event::Read(Box::new(first)), start.elapsed());
    let (say, mut answers): (UnboundedSender<Event>, UnboundedReceiver<Event>) =
        unbounded_channel();
    let mut keys = EventStream::new();
    let mut ticks = interval(time);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one comes at once, and has been asked.
    ticks.tick().await;
    let mut asked = None;
    let mut not_before = Instant::now();
    loop {
        terminal.draw(|frame| draw::draw(frame, &top, theme)).context("draw")?;
        let event = tokio::select! {
            () = stops.come() => return Ok(()),
            Some(event) = answers.recv() => event,
            _ = ticks.tick() => {
                if asked.is_none() && Instant::now() >= not_before {
                    asked = Some(Instant::now());
                    spawn(&say, read_event(client.clone()));
                }
                Event::Tick
            }
            event = keys.next() => match event {
                None => return Ok(()),
                Some(Err(error)) => return Err(error).context("read the keyboard"),
                Some(Ok(TerminalEvent::Key(key))) if key.kind != KeyEventKind::Release => {
                    Event::Key(key)
                }
                // Another size: drawn anew.
                Some(Ok(_)) => Event::Tick,
            },
        };
        if matches!(event, Event::Read(_) | Event::Failed(_)) {
            // A large instance is not asked more than a fifth of the time.
            let now = Instant::now();
            not_before = asked.take().map_or(now, |asked| now + (now - asked) * REST);
        }
        match top.next(event, start.elapsed()) {
            None => {}
            Some(Ask::Quit) => return Ok(()),
            Some(Ask::Change(transaction)) => {
                spawn(&say, change_event(client.clone(), transaction));
            }
        }
    }
}

/// Lets something be done meanwhile; what comes of it is an event.
fn spawn(say: &UnboundedSender<Event>, work: impl Future<Output = Event> + Send + 'static) {
    let say = say.clone();
    tokio::spawn(async move {
        // An error: nobody watches any more.
        let _ = say.send(work.await);
    });
}

async fn read(client: &Client) -> Result<Reading, Error> {
    let (status, reasons) = tokio::try_join!(client.status(), client.reasons())?;
    Ok(Reading { status, reasons, at: SystemTime::now() })
}

async fn read_event(client: Client) -> Event {
    match read(&client).await {
        Ok(reading) => Event::Read(Box::new(reading)),
        Err(error) => Event::Failed(format!("{:#}", anyhow::Error::from(error))),
    }
}

async fn change_event(client: Client, transaction: Transaction) -> Event {
    let changed = client.change(&transaction).await;
    Event::Changed(match changed {
        Ok(changed) => Ok(said(&changed)),
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
    })
}

/// What came of a change, in one line.
fn said(changed: &Changed) -> String {
    let mut texts: Vec<String> = changed
        .differences
        .iter()
        .map(|difference| {
            let names = [difference.service.as_deref(), difference.backend.as_deref()];
            let names: Vec<&str> = names.into_iter().flatten().collect();
            format!("{}: {}", names.join("/"), difference.text)
        })
        .collect();
    if texts.is_empty() {
        texts.push("nothing had to be changed".to_owned());
    }
    texts.extend(changed.warnings.iter().cloned());
    texts.join("; ")
}
