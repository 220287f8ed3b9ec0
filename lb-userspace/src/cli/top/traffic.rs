//! Rates: what one reading of the totals has more than the one before, by the time between them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use crate::control::api;

/// Rates that are kept for the plots, one for each reading.
const KEPT: usize = 120;

/// Totals of a backend, of a service, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    new_flows: u64,
    packets: u64,
    bytes: u64,
    syn_retransmissions: u64,
    resets: u64,
}

/// What happens in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// SYNs that chose a backend.
    pub new_flows: f64,
    /// Frames forwarded.
    pub packets: f64,
    /// Bits of these frames, as received.
    pub bits: f64,
    /// SYNs sent again.
    pub syn_retransmissions: f64,
    /// Flows reset.
    pub resets: f64,
}

/// The course of one thing.
#[derive(Clone, Debug, Default)]
pub struct Course {
    totals: Totals,
    /// The last ones, the latest at the end; none between readings that can't be compared.
    rates: VecDeque<Rates>,
}

/// The course of a count of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// All of them.
    pub total: u64,
    /// In a second; `None`: there is nothing to compare with yet.
    pub rate: Option<f64>,
}

/// The course of everything.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    read: Option<Duration>,
    all: Course,
    services: HashMap<String, Course>,
    backends: HashMap<(String, String), Course>,
    reasons: BTreeMap<String, Count>,
}

impl Totals {
    fn of(backend: &api::Backend) -> Self {
        Self {
            new_flows: backend.new_flows_total,
            packets: backend.packets_total,
            bytes: backend.bytes_total,
            syn_retransmissions: backend.syn_retransmissions_total,
            resets: backend.reset_flows_total,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            new_flows: self.new_flows + other.new_flows,
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            syn_retransmissions: self.syn_retransmissions + other.syn_retransmissions,
            resets: self.resets + other.resets,
        }
    }

    /// `None` where a total went back, as when a backend was removed and added again.
    fn since(self, before: Self, elapsed: Duration) -> Option<Rates> {
        let rate = |now: u64, before: u64| per_second(now, before, elapsed);
        Some(Rates {
            new_flows: rate(self.new_flows, before.new_flows)?,
            packets: rate(self.packets, before.packets)?,
            bits: rate(self.bytes, before.bytes)? * 8.0,
            syn_retransmissions: rate(self.syn_retransmissions, before.syn_retransmissions)?,
            resets: rate(self.resets, before.resets)?,
        })
    }
}

fn per_second(now: u64, before: u64, elapsed: Duration) -> Option<f64> {
    let seconds = elapsed.as_secs_f64();
    (seconds > 0.0).then_some(now.checked_sub(before)? as f64 / seconds)
}

impl Course {
    /// The rates of now.
    pub fn now(&self) -> Option<Rates> {
        self.rates.back().copied()
    }

    /// One of the rates over time, the latest at the end.
    pub fn trend(&self, which: fn(&Rates) -> f64) -> Vec<f64> {
        self.rates.iter().map(which).collect()
    }

    fn go_on(mut self, totals: Totals, elapsed: Option<Duration>) -> Self {
        match elapsed.and_then(|elapsed| totals.since(self.totals, elapsed)) {
            Some(rates) => self.rates.push_back(rates),
            None => self.rates.clear(),
        }
        let surplus = self.rates.len().saturating_sub(KEPT);
        self.rates.drain(..surplus);
        Self { totals, rates: self.rates }
    }
}

impl Traffic {
    /// Takes in a reading that was made `at`, counted from any fixed moment.
    pub fn take(&mut self, status: &api::Status, reasons: &api::Reasons, at: Duration) {
        let elapsed = self.read.and_then(|read| at.checked_sub(read));
        // What has no course yet has nothing to be compared with.
        let go_on = |before: Option<Course>, totals| {
            let elapsed = elapsed.filter(|_| before.is_some());
            before.unwrap_or_default().go_on(totals, elapsed)
        };
        let (mut services, mut backends) = (HashMap::new(), HashMap::new());
        let mut all = Totals::default();
        for service in &status.services {
            let mut sum = Totals::default();
            for backend in &service.backends {
                let key = (service.name.clone(), backend.name.clone());
                let totals = Totals::of(backend);
                sum = sum.and(totals);
                let course = go_on(self.backends.remove(&key), totals);
                backends.insert(key, course);
            }
            all = all.and(sum);
            let course = go_on(self.services.remove(&service.name), sum);
            services.insert(service.name.clone(), course);
        }
        self.services = services;
        self.backends = backends;
        self.all = go_on(self.read.map(|_| std::mem::take(&mut self.all)), all);
        let count = |reason: &api::ReasonCount| {
            let before = self.reasons.get(&reason.name).zip(elapsed);
            let rate = before.and_then(|(b, elapsed)| per_second(reason.count, b.total, elapsed));
            (reason.name.clone(), Count { total: reason.count, rate })
        };
        self.reasons = reasons.reasons.iter().map(count).collect();
        self.read = Some(at);
    }

    /// Of everything.
    pub const fn all(&self) -> &Course {
        &self.all
    }

    /// Of a service, or of one of its backends.
    pub fn course(&self, service: &str, backend: Option<&str>) -> Option<&Course> {
        match backend {
            None => self.services.get(service),
            Some(backend) => self.backends.get(&(service.to_owned(), backend.to_owned())),
        }
    }

    /// Of the frames that ended for this reason.
    pub fn reason(&self, name: &str) -> Count {
        self.reasons.get(name).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::sample;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn rates_are_differences_by_the_time_between() {
        let (mut status, mut reasons) = (sample::status(), sample::reasons());
        let mut traffic = Traffic::default();
        traffic.take(&status, &reasons, second(10));
        assert!(traffic.all().now().is_none(), "one reading has no rate");
        assert_eq!(traffic.reason("fragment"), Count { total: 4, rate: None });

        let web_1 = &mut status.services[1].backends[0];
        web_1.new_flows_total += 10;
        web_1.packets_total += 200;
        web_1.bytes_total += 1000;
        status.services[1].backends[1].new_flows_total += 4;
        let fragment = reasons.reasons.iter_mut().find(|reason| reason.name == "fragment");
        fragment.expect("the reason").count += 6;
        traffic.take(&status, &reasons, second(12));
        let rates = |traffic: &Traffic, backend| {
            traffic.course("web", backend).and_then(Course::now).expect("a rate")
        };
        let web_1 = rates(&traffic, Some("web-1"));
        assert_eq!((web_1.new_flows, web_1.packets, web_1.bits), (5.0, 100.0, 4000.0));
        assert_eq!(rates(&traffic, None).new_flows, 7.0);
        assert_eq!(traffic.all().now().map(|rates| rates.new_flows), Some(7.0));
        assert_eq!(traffic.reason("fragment"), Count { total: 10, rate: Some(3.0) });
    }

    #[test]
    fn a_total_that_went_back_has_no_rate() {
        let (mut status, reasons) = (sample::status(), sample::reasons());
        let mut traffic = Traffic::default();
        for at in 1..=3 {
            traffic.take(&status, &reasons, second(at));
        }
        let course = |traffic: &Traffic| traffic.course("web", Some("web-1")).cloned().expect("it");
        assert_eq!(course(&traffic).trend(|rates| rates.new_flows), [0.0, 0.0]);
        status.services[1].backends[0].new_flows_total = 1;
        traffic.take(&status, &reasons, second(4));
        assert!(course(&traffic).now().is_none());
        status.services[1].backends.remove(0);
        traffic.take(&status, &reasons, second(5));
        assert!(traffic.course("web", Some("web-1")).is_none(), "what is gone is forgotten");
        traffic.take(&status, &reasons, second(5));
        assert!(traffic.all().now().is_none(), "no time has gone by");
    }

    #[test]
    fn the_past_is_bounded() {
        let (status, reasons) = (sample::status(), sample::reasons());
        let mut traffic = Traffic::default();
        for at in 0..1000 {
            traffic.take(&status, &reasons, second(at));
        }
        assert_eq!(traffic.all().trend(|rates| rates.packets).len(), KEPT);
    }
}
