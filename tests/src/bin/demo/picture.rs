//! What the demo shows: the machines, what has been done, and who got what, live on a terminal
//! and as plain lines elsewhere.

use std::{
    io::{IsTerminal, Write, stdout},
    time::{Duration, Instant},
};

use sluice_tests::lab::{Family, Lab, Tally};

use crate::{DRAINED, MORTAL, SERVICES, death::Death};

/// The time between two looks.
pub const FRAME: Duration = Duration::from_millis(200);

/// One column of the time line.
const COLUMN: Duration = Duration::from_millis(400);
/// One line of progress where lines can't be redrawn.
const LINE: Duration = Duration::from_secs(1);

/// What the daemon is up to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// It runs.
    Running,
    /// It was killed.
    Dead,
}

/// How a server stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// It takes new flows.
    Serving,
    /// It takes none, and has so many left.
    Draining(u64),
    /// It is gone, and nobody knows yet.
    Silent,
    /// It is gone, and that is known.
    Unreachable,
}

/// How things stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// Of the daemon.
    pub daemon: Daemon,
    /// Of [`crate::DRAINED`].
    pub server: Server,
    /// What has happened to [`crate::MORTAL`], if anything has.
    pub death: Option<Death>,
}

impl Stand {
    /// As it should be.
    pub const WELL: Self = Self { daemon: Daemon::Running, server: Server::Serving, death: None };

    fn mortal(&self) -> Server {
        self.death.map_or(Server::Serving, |death| death.server())
    }
}

/// The demo's output.
pub struct Picture {
    start: Instant,
    /// Lines can be drawn again.
    live: bool,
    colour: bool,
    /// Lines of the last drawing that are still on the screen.
    drawn: usize,
    columns: Vec<Column>,
    /// When the last column or line began, and what had been done by then.
    last: (Instant, u64, u64),
    last_tally: Option<(Tally, Stand)>,
}

/// A slice of time.
struct Column {
    requests: u64,
    failed: u64,
    stand: Stand,
}

#[derive(Clone, Copy)]
enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Blue = 34,
    Grey = 90,
}

impl Picture {
    /// Looks at what standard output is.
    pub fn new() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let live = stdout().is_terminal() && set("TERM").is_some_and(|term| term != "dumb");
        let now = Instant::now();
        Self {
            start: now,
            live,
            colour: live && set("NO_COLOR").is_none(),
            drawn: 0,
            columns: Vec::new(),
            last: (now, 0, 0),
            last_tally: None,
        }
    }

    /// The machines and their wires.
    pub fn topology(&mut self, lab: &Lab) {
        let v4 = |host: &sluice_tests::lab::Host| host.address(Family::V4).to_string();
        let [one, two, three] = [0, 1, 2].map(|index| v4(&lab.backends()[index]));
        let client = v4(lab.client());
        let balancer = v4(lab.balancer());
        say!(
            "\n  client    {client:<12} ────┐              ┌──── web-1  {one}  nginx\n\
             \x20                            ├─── bridge ───┼──── web-2  {two}  nginx\n\
             \x20 balancer  {balancer:<12} ────┘              └──── web-3  {three}  nginx\n\
             \x20 sluice: XDP on eth0\n\n\
             \x20 a request: client → balancer → backend; its answer: backend → client, directly,\n\
             \x20            but with nat through the balancer again\n"
        );
    }

    /// Something has been done.
    pub fn step(&mut self, what: &str) {
        let at = format!("{:5.1} s", self.start.elapsed().as_secs_f32());
        let done = self.paint(Colour::Green, "✔");
        self.tell(&format!("{}  {done} {what}", self.paint(Colour::Grey, &at)));
    }

    /// What helps to understand the last step.
    pub fn note(&mut self, what: &str) {
        self.tell(&self.paint(Colour::Grey, &format!("           ({what})")));
    }

    fn tell(&mut self, line: &str) {
        self.erase();
        say!("{line}");
        if self.live
            && let Some((tally, stand)) = self.last_tally.take()
        {
            self.redraw(&tally, stand);
            self.last_tally = Some((tally, stand));
        }
    }

    /// Shows what the load has come to; call it every [`FRAME`].
    pub fn draw(&mut self, tally: &Tally, stand: Stand) {
        let (since, requests, failed) = self.last;
        let now = Instant::now();
        let every = if self.live { COLUMN } else { LINE };
        if now - since >= every {
            self.last = (now, tally.requests, tally.failed());
            let column = Column {
                requests: tally.requests.saturating_sub(requests),
                failed: tally.failed().saturating_sub(failed),
                stand,
            };
            // The first began before the load did.
            if requests > 0 || !self.columns.is_empty() {
                self.columns.push(column);
            }
            if !self.live {
                say!("{:5.1} s    {}", self.start.elapsed().as_secs_f32(), self.line(tally, stand));
            }
        }
        if self.live {
            self.erase();
            self.redraw(tally, stand);
        }
        self.last_tally = Some((tally.clone(), stand));
    }

    /// Leaves the last drawing where it is.
    pub fn end(&mut self) {
        if !self.live
            && let Some((tally, _)) = self.last_tally.take()
        {
            say!();
            for line in self.table(&tally) {
                say!("{line}");
            }
        }
        self.drawn = 0;
        let _ = stdout().flush();
    }

    fn erase(&mut self) {
        if self.drawn > 0 {
            let _ = write!(stdout(), "\x1b[{}A\x1b[J", self.drawn);
            self.drawn = 0;
        }
    }

    fn redraw(&mut self, tally: &Tally, stand: Stand) {
        let mut lines = vec![String::new(), format!("  {}", self.line(tally, stand))];
        lines.extend(self.time_line());
        lines.push(String::new());
        lines.extend(self.table(tally));
        self.drawn = lines.len();
        for line in lines {
            say!("{line}");
        }
        let _ = stdout().flush();
    }

    fn line(&self, tally: &Tally, stand: Stand) -> String {
        let daemon = match stand.daemon {
            Daemon::Running => self.paint(Colour::Green, "daemon running"),
            Daemon::Dead => self.paint(Colour::Red, "daemon dead   "),
        };
        let lost = stand.death.map_or(0, |death| death.lost(tally));
        let others = tally.failed() - lost;
        let mut line = format!("{daemon}   {:>7} requests   ", tally.requests);
        let failed = format!("{others} failed");
        line += &if others > 0 { self.paint(Colour::Red, &failed) } else { failed };
        if lost > 0 {
            line += &self.paint(Colour::Red, &format!(", {lost} by {MORTAL}'s death"));
        }
        for (name, server) in [(DRAINED, stand.server), (MORTAL, stand.mortal())] {
            let (colour, text) = match server {
                Server::Serving => continue,
                Server::Draining(left) => {
                    (Colour::Yellow, format!("   {name} draining: {left} flows left"))
                }
                Server::Silent => (Colour::Red, format!("   {name} silent")),
                Server::Unreachable => (Colour::Yellow, format!("   {name} unreachable")),
            };
            line += &self.paint(colour, &text);
        }
        line
    }

    /// Requests over time, and under it whether the daemon lived and servers took new flows.
    fn time_line(&self) -> [String; 4] {
        let most = self.columns.iter().map(|column| column.requests).max().unwrap_or(0).max(1);
        let requests = self.columns.iter().map(|column| {
            if column.failed > 0 {
                return self.paint(Colour::Red, "✗");
            }
            let height = (column.requests * 8).div_ceil(most).clamp(1, 8) as usize;
            let bar = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"][height - 1];
            self.paint(Colour::Blue, bar)
        });
        let daemon = self.columns.iter().map(|column| match column.stand.daemon {
            Daemon::Running => self.paint(Colour::Green, "━"),
            Daemon::Dead => self.paint(Colour::Red, "x"),
        });
        let server = |of: fn(&Stand) -> Server| {
            let columns = self.columns.iter().map(|column| match of(&column.stand) {
                Server::Serving => self.paint(Colour::Green, "━"),
                Server::Draining(_) | Server::Unreachable => self.paint(Colour::Yellow, "┄"),
                Server::Silent => self.paint(Colour::Red, "x"),
            });
            columns.collect::<String>()
        };
        [
            format!("  requests  {}", requests.collect::<String>()),
            format!("  daemon    {}", daemon.collect::<String>()),
            format!("  {DRAINED:<10}{}", server(|stand| stand.server)),
            format!("  {MORTAL:<10}{}", server(Stand::mortal)),
        ]
    }

    /// Who answered for whom: one line a service, one bar a backend.
    fn table(&self, tally: &Tally) -> Vec<String> {
        const WIDTH: u64 = 7;
        let backends = ["web-1", "web-2", "web-3"];
        let most = tally.answers.values().flat_map(|answers| answers.values());
        let most = most.max().copied().unwrap_or(0).max(1);
        let head = backends.map(|backend| format!("{backend:<15}")).concat();
        let head = format!("  {:<11}{:<24}{head}", "service", "VIP");
        let mut lines = vec![self.paint(Colour::Grey, head.trim_end())];
        for (service, vip, _) in SERVICES {
            let answers = tally.answers.get(service);
            let cells = backends.map(|backend| {
                let count = answers.and_then(|answers| answers.get(backend)).copied().unwrap_or(0);
                let bar = bar(count, most, WIDTH);
                format!("{} {count:<7}", self.paint(Colour::Blue, &bar))
            });
            lines.push(format!("  {service:<11}{vip:<24}{}", cells.concat()).trim_end().to_owned());
        }
        lines
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }
}

/// `value` of `most` as a bar of `width` cells, in eighths of a cell.
fn bar(value: u64, most: u64, width: u64) -> String {
    let eighths = value * width * 8 / most;
    let mut bar = "█".repeat((eighths / 8) as usize);
    bar += ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][(eighths % 8) as usize];
    let cells = bar.chars().count() as u64;
    bar + &" ".repeat(width.saturating_sub(cells) as usize)
}
