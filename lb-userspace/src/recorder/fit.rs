//! How a second gets into its share of the file: who finds no room for a line of its own is
//! counted with others, so that sums stay right.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use lb_common::counters::Event;

use super::{
    Figures, Line, Party, Second,
    second::{EMPTY_BYTES, Names, REASON_BYTES},
};

/// A second of `limit` bytes at most, told with these names: all of it if it fits; else all
/// services, and of their backends those with most to tell; else the services with most to tell.
pub(super) fn fit(mut second: Second, names: &Names, limit: usize) -> Second {
    let fixed = EMPTY_BYTES + REASON_BYTES * second.reasons.len();
    let room = limit.saturating_sub(fixed);
    let costs: Vec<usize> = second.lines.iter().map(|line| names.cost(line)).collect();
    if costs.iter().sum::<usize>() <= room {
        return second;
    }
    let sums = others(&second.lines);
    let sum_costs: Vec<usize> = sums.iter().map(|line| names.cost(line)).collect();
    let all_sums = sum_costs.iter().sum::<usize>();
    second.lines = if all_sums <= room {
        // What is taken out of a sum makes it no longer.
        let (mut lines, left) = take(second.lines, &costs, room - all_sums);
        lines.extend(others(&left));
        lines
    } else {
        let rest = names.cost(&together(Party::Rest, &sums));
        let (mut lines, left) = take(sums, &sum_costs, room.saturating_sub(rest));
        lines.push(together(Party::Rest, &left));
        lines
    };
    second
}

/// Those with most to tell that cost no more than `room`, and the others.
fn take(lines: Vec<Line>, costs: &[usize], mut room: usize) -> (Vec<Line>, Vec<Line>) {
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_cached_key(|place| {
        let Line { figures, before, .. } = &lines[*place];
        let new_flows = figures.event(Event::NewFlow);
        Reverse((before.is_some(), figures.troubles(), new_flows, figures.packets, figures.active))
    });
    let mut taken = HashSet::new();
    for place in order {
        if costs[place] <= room {
            room -= costs[place];
            taken.insert(place);
        }
    }
    let (taken, left): (Vec<_>, Vec<_>) =
        lines.into_iter().enumerate().partition(|(place, _)| taken.contains(place));
    let lines = |placed: Vec<(usize, Line)>| placed.into_iter().map(|(_, line)| line).collect();
    (lines(taken), lines(left))
}

/// One line for each service.
fn others(lines: &[Line]) -> Vec<Line> {
    let mut by_service: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        by_service.entry(line.party.service().unwrap_or_default()).or_default().push(line);
    }
    let sums = by_service
        .into_iter()
        .map(|(service, lines)| together(Party::Others { service: service.to_owned() }, lines));
    sums.collect()
}

fn together<'l>(party: Party, lines: impl IntoIterator<Item = &'l Line>) -> Line {
    let mut figures = Figures::default();
    for line in lines {
        figures.add(&line.figures);
    }
    Line { party, figures, condition: None, before: None }
}

#[cfg(test)]
mod tests {
    use lb_common::counters::EVENTS;

    use super::*;
    use crate::{
        control::api::{Admin, Health},
        recorder::Condition,
    };

    fn busy(services: u64, backends: u64) -> Second {
        let well = Condition { admin: Admin::Enabled, health: Health::Healthy };
        let line = |service: u64, backend: u64| Line {
            party: Party::Backend {
                service: format!("service-{service}"),
                backend: format!("backend-{service}-{backend}"),
            },
            figures: Figures {
                packets: 10_000 + backend,
                bytes: 10_000_000,
                active: 1000,
                returned: None,
                events: std::array::from_fn(|event| {
                    let counted = [Event::NewFlow as usize, Event::Handshake as usize];
                    if counted.contains(&event) { 300 } else { 0 }
                }),
            },
            condition: Some(well),
            before: None,
        };
        let lines = (0..services).flat_map(|s| (0..backends).map(move |b| (s, b)));
        let lines = lines.map(|(s, b)| line(s, b)).collect();
        Second { at: 1, span_ms: 1000, reasons: vec![(1, 7)], lines }
    }

    fn sum(second: &Second) -> Figures {
        together(Party::Rest, &second.lines).figures
    }

    #[test]
    fn what_does_not_fit_is_counted_with_others() {
        for (services, backends, limit) in [
            (3, 3, 1024),
            (10, 100, 1024),
            (100, 10, 1024),
            (1000, 20, 32 << 10),
            (1000, 1, 1024),
            (1, 2000, 1024),
        ] {
            let second = busy(services, backends);
            let mut names = Names::default();
            for _ in 0..3 {
                let fitted = fit(second.clone(), &names, limit);
                let (bytes, new) = names.encode(&fitted);
                assert!(bytes.len() <= limit, "{services} x {backends}: {}", bytes.len());
                assert_eq!(sum(&fitted), sum(&second), "{services} x {backends}");
                names.learn(new);
            }
        }
    }

    #[test]
    fn with_names_known_every_service_of_a_large_instance_has_its_line() {
        let second = busy(1000, 20);
        let mut names = Names::default();
        let mut services = 0;
        for _ in 0..5 {
            let fitted = fit(second.clone(), &names, 32 << 10);
            let named: HashSet<&str> =
                fitted.lines.iter().filter_map(|line| line.party.service()).collect();
            services = named.len();
            names.learn(names.encode(&fitted).1);
        }
        assert_eq!(services, 1000);
    }

    #[test]
    fn who_changed_or_is_in_trouble_keeps_a_line_of_its_own() {
        let mut second = busy(10, 100);
        let before = Condition { admin: Admin::Enabled, health: Health::Unknown };
        second.lines[417].before = Some(before);
        second.lines[642].figures = Figures { events: [0; EVENTS], ..Figures::default() };
        second.lines[642].figures.events[Event::SynRetransmission as usize] = 1;
        let [changed, troubled] = [417, 642].map(|place| second.lines[place].clone());
        let fitted = fit(second, &Names::default(), 1024);
        assert!(fitted.lines.contains(&changed) && fitted.lines.contains(&troubled));
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let second = busy(3, 3);
        assert_eq!(fit(second.clone(), &Names::default(), 1024), second);
    }
}
