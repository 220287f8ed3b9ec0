//! `sluice trace`: the frames that a filter picks, with what became of them.
//!
//! The attached program has no code for it. A second build of it, which has, stands in its place as
//! long as somebody watches (`datapath::Tracer`), so that a trace costs nothing when there is none.
//! It tells so many bytes a second at most, and none to nobody: what may be told is granted anew at
//! each look, by who looks. Here is the rest: [`Question`] becomes the kernel's filter, what is told
//! becomes a [`Line`] or a capture file.

mod capture;
mod line;
mod names;

use std::{io::Write, time::Duration};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use lb_common::{
    address::Address,
    reason::Reason,
    trace::{Filter, MAX_SNAP, Tally, verdict},
};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    task::block_in_place,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

pub use self::line::{Line, Verdict};
use self::{capture::Capture, line::Told, names::Names};
use crate::{
    control::client::Client,
    datapath::{Reading, Tracer, preflight},
    instance::Instance,
};

/// How often it is looked at what was told.
const LOOK: Duration = Duration::from_millis(50);
/// Looks between two questions whether the traced program still runs.
const CHECK: u32 = 10;

/// Bytes of a frame that are copied when only its headers are wanted: two VLAN tags, a tunnel, and
/// the longest headers of IPv4 and TCP among them.
pub const HEADERS: u32 = 256;
/// Bytes of a frame that are copied at most.
pub const WHOLE: u32 = MAX_SNAP as u32;

/// Which frames are wanted; what is `None` or empty does not matter.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Source or destination.
    pub network: Option<IpNet>,
    /// A service by name, or by VIP and port.
    pub service: Option<String>,
    /// A backend by name or address.
    pub backend: Option<String>,
    /// What became of them.
    pub verdicts: Vec<Verdict>,
    /// Why they were not forwarded.
    pub reasons: Vec<Reason>,
    /// TCP flags of which a segment has one at least; 0: any frame.
    pub flags: u8,
    /// One in so many; 1: all.
    pub one_in: u32,
    /// Bytes copied of each, at most [`WHOLE`].
    pub snap: u32,
    /// Also what is not addressed to any VIP: the host's own traffic.
    pub all: bool,
}

/// When it ends.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes that are copied in a second at most.
    pub bytes_per_second: u32,
    /// Frames that are told at most.
    pub frames: Option<u64>,
    /// How long it lasts at most.
    pub time: Option<Duration>,
}

/// What is done with the frames that are told.
pub enum Sink<'s> {
    /// Handed on, one by one; it returns whether to go on.
    Lines(&'s mut dyn FnMut(&Line) -> Result<bool>),
    /// Written as a pcapng file.
    Capture(&'s mut dyn Write),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Frames shown or written.
    pub shown: u64,
    /// Frames that matched, as the kernel program counted them.
    pub tally: Tally,
    /// Another program was put on the interfaces meanwhile: an upgrade, or `sluice detach`.
    pub is_replaced: bool,
}

/// Traces until a bound is reached, `interrupted` says so, or nobody listens any more. `started` is
/// told the interfaces as soon as frames are looked at.
///
/// # Errors
/// If this process may not, the instance is not attached here, a name is nobody's, somebody else
/// traces, or the kernel or the sink refuses. The plain program is back by then.
pub async fn trace(
    client: &Client,
    instance: &Instance,
    question: &Question,
    bounds: &Bounds,
    sink: Sink<'_>,
    started: impl FnOnce(&[&str]),
    interrupted: impl Future<Output = ()>,
) -> Result<Ended> {
    preflight()?;
    let status = client.status().await.ok();
    let reading = block_in_place(|| Reading::open(instance))?;
    let names = Names::read(&reading.maps, status.as_ref())?;
    let filter = filter(question, &names)?;
    let tracer = block_in_place(|| Tracer::start(instance, &filter))?;
    started(&reading.interfaces().collect::<Vec<_>>());
    let mut watch = Watch::new(tracer, reading, names, sink)?;
    let watched = watch.run(bounds, interrupted).await;
    let ended = watched.and_then(|is_replaced| {
        Ok(Ended { shown: watch.shown, tally: watch.tracer.tally()?, is_replaced })
    });
    block_in_place(|| watch.tracer.stop())?;
    ended
}

/// The kernel's filter for a question.
fn filter(question: &Question, names: &Names) -> Result<Filter> {
    let mut filter = Filter {
        flags: question.flags.into(),
        one_in: question.one_in.max(1),
        snap: question.snap.clamp(1, WHOLE),
        verdicts: verdicts(question),
        ..Filter::ALL
    };
    if let Some(network) = question.network {
        (filter.address, filter.mask) = masked(network);
    }
    let service = question.service.as_deref().map(|name| names.find_service(name)).transpose()?;
    if let Some((index, vip)) = service {
        filter.service_index = index.into();
        filter.service = vip.key();
    }
    if let Some(name) = &question.backend {
        let service = service.map(|(index, _)| index);
        filter.backend = names.find_backend(name, service)?.into();
    }
    Ok(filter)
}

/// A bit for each number that is wanted.
fn verdicts(question: &Question) -> u64 {
    let not_ours = [Reason::NotIp, Reason::NotVip];
    let reasons = |is_wanted: &dyn Fn(Reason) -> bool| {
        let wanted = Reason::ALL.iter().filter(|reason| is_wanted(**reason));
        wanted.fold(0, |bits, reason| bits | 1 << *reason as u64)
    };
    let mut bits = reasons(&|reason| question.reasons.contains(&reason));
    for wanted in &question.verdicts {
        bits |= match wanted {
            Verdict::Forward => 1 << verdict::FORWARDED,
            Verdict::Return => 1 << verdict::RETURNED,
            Verdict::Leave(class) => reasons(&|reason| reason.class() == *class),
        };
    }
    if question.reasons.is_empty() && question.verdicts.is_empty() {
        bits = u64::MAX;
    }
    // Who names them wants them.
    let named = reasons(&|reason| question.reasons.contains(&reason));
    let others = reasons(&|reason| not_ours.contains(&reason)) & !named;
    if question.all { bits } else { bits & !others }
}

/// An address and its mask, both in the form of [`Address`].
fn masked(network: IpNet) -> (Address, Address) {
    let mask = match network {
        // The bits before the IPv4 address are always the same ones.
        IpNet::V4(network) => {
            let bits = u128::from(network.netmask().to_bits()) | !u128::from(u32::MAX);
            Address::v6(bits.to_be_bytes())
        }
        IpNet::V6(network) => Address::v6(network.netmask().octets()),
    };
    (network.network().into(), mask)
}

/// A trace under way.
struct Watch<'s> {
    tracer: Tracer,
    reading: Reading,
    names: Names,
    sink: To<'s>,
    /// Nanoseconds from the kernel's monotonic clock to that of the wall.
    epoch: i128,
    shown: u64,
}

/// A [`Sink`], opened.
enum To<'s> {
    Lines(&'s mut dyn FnMut(&Line) -> Result<bool>),
    Capture(Capture<&'s mut dyn Write>),
}

impl<'s> Watch<'s> {
    fn new(tracer: Tracer, reading: Reading, names: Names, sink: Sink<'s>) -> Result<Self> {
        let sink = match sink {
            Sink::Lines(each) => To::Lines(each),
            Sink::Capture(file) => To::Capture(Capture::begin(file)?),
        };
        let now = |clock| {
            let time = clock_gettime(clock).context("read the clock")?;
            anyhow::Ok(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
        };
        let epoch = now(ClockId::CLOCK_REALTIME)? - now(ClockId::CLOCK_MONOTONIC)?;
        Ok(Self { tracer, reading, names, sink, epoch, shown: 0 })
    }

    /// Until it ends; tells whether another program has come meanwhile.
    async fn run(
        &mut self,
        bounds: &Bounds,
        interrupted: impl Future<Output = ()>,
    ) -> Result<bool> {
        let mut interrupted = std::pin::pin!(interrupted);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let grant = u64::from(bounds.bytes_per_second) * LOOK.as_millis() as u64 / 1000;
        let grant = u32::try_from(grant).unwrap_or(u32::MAX);
        let end = bounds.time.map(|time| Instant::now() + time);
        let mut look = 0u32;
        loop {
            tokio::select! {
                () = &mut interrupted => break,
                () = async { sleep_until(end.unwrap_or_else(Instant::now)).await }, if end.is_some() => break,
                _ = looks.tick() => {}
            }
            if !block_in_place(|| self.look(bounds.frames))? {
                return Ok(false);
            }
            look = look.wrapping_add(1);
            if look.is_multiple_of(CHECK) && !block_in_place(|| self.tracer.is_attached())? {
                return Ok(true);
            }
            self.tracer.grant(grant)?;
        }
        // What was told in the last moment.
        self.tracer.grant(0)?;
        block_in_place(|| self.look(bounds.frames))?;
        Ok(false)
    }

    /// Shows what was told since the last look; tells whether to go on.
    fn look(&mut self, most: Option<u64>) -> Result<bool> {
        let Self { tracer, reading, names, sink, epoch, shown } = self;
        let mut goes_on = true;
        tracer.drain(|bytes| {
            if !goes_on || most.is_some_and(|most| *shown >= most) {
                return Ok(());
            }
            let Some(told) = Told::read(bytes) else {
                bail!("the kernel program told what nobody understands");
            };
            if !names.knows(&told) {
                names.read_again(&reading.maps)?;
            }
            let line = Line::of(&told, names, *epoch);
            goes_on = match sink {
                To::Lines(each) => each(&line)?,
                To::Capture(capture) => capture.write(&told, &line, *epoch).map(|()| true)?,
            };
            *shown += 1;
            Ok(())
        })?;
        if let To::Capture(capture) = sink {
            capture.flush()?;
        }
        Ok(goes_on && most.is_none_or(|most| *shown < most))
    }
}

#[cfg(test)]
mod tests;
