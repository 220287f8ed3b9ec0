//! What is said over the control socket, and printed by `--json`. Field names are fixed:
//! scripts read them. Fields may be added.

mod backend;
mod change;
mod event;
mod flow;
mod flow_table;
mod handshakes;
mod interface;
mod probe;
mod reasons;
mod status;
mod trouble;

use serde::{Deserialize, Serialize};

pub use self::change::{
    Action, Change, Changed, ConfigFile, Difference, Drain, DrainFilter, Exported, Plan,
    PlannedFlows, PlannedSlots, Target, Transaction,
};
pub use self::{
    backend::{Admin, Backend, Health, NatPorts},
    event::{Event, EventFilter, EventKind, Events},
    flow::{BackendFlows, ClientFlows, Clients, Flow, FlowFilter, FlowOrder, FlowState, Flows},
    flow_table::{FlowTable, by_state},
    handshakes::HandshakeTimes,
    interface::{Interface, InterfaceCounts, InterfaceReasons, Loss},
    probe::{LastProbe, ProbeTotals},
    reasons::{ReasonCount, Reasons},
    status::{Probes, Reconciliations, Service, Status},
    trouble::{Severity, Trouble, TroubleKind, Verdict},
};
use crate::choice::Tier;

/// This binary's version, in [`Status`] and in the `server` header of every answer.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the server says when it can't do what was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why, in one sentence.
    pub error: String,
}

/// "; there are a, b and 3 more".
fn hint<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let count = names.len();
    let shown: Vec<&str> = names.take(SHOWN).collect();
    match count {
        0 => "; there is none".to_owned(),
        1..=SHOWN => format!("; there are: {}", shown.join(", ")),
        _ => format!("; there are: {} and {} more", shown.join(", "), count - SHOWN),
    }
}

impl Action {
    /// The name used by JSON and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Change => "change",
        }
    }
}

/// The name used by JSON and CLI.
pub const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Healthy => "healthy",
        Tier::Backup => "backup",
        Tier::FailOpen => "fail-open",
        Tier::Draining => "draining",
        Tier::Nobody => "nobody",
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{counters, reason::Class};
    use serde_json::{Value, json};

    use super::*;
    use crate::control::sample;

    /// Every field of `expected` is in `said` with a value of its type.
    fn assert_has(said: &Value, expected: &Value, path: &str) {
        match (said, expected) {
            (Value::Object(said), Value::Object(expected)) => {
                for (name, value) in expected {
                    let path = format!("{path}.{name}");
                    assert_has(said.get(name).unwrap_or_else(|| panic!("no {path}")), value, &path);
                }
            }
            (Value::Array(said), Value::Array(expected)) => {
                assert_has(&said[0], &expected[0], &format!("{path}[0]"));
            }
            _ => assert_eq!(
                std::mem::discriminant(said),
                std::mem::discriminant(expected),
                "{path}: {said} and {expected}"
            ),
        }
    }

    #[test]
    fn the_names_that_the_design_fixes_are_there() {
        let fixed = json!({"instance":"default","version":"0.1.0","ready":true,
         "interfaces":[{"name":"eth0","xdp_mode":"native","attached":true}],
         "services":[{"name":"web","vip":"203.0.113.10:80","forwarding":"l2",
          "backends":[{"name":"web-1","address":"10.0.0.11","weight":100,"admin":"enabled",
           "health":"healthy","active_flows":12,"new_flows_total":3456,"packets_total":99999,
           "bytes_total":12345678}]}]});
        let said = serde_json::to_value(sample::status()).expect("JSON");
        assert_has(&said, &fixed, "status");
    }

    #[test]
    fn every_event_is_a_total_of_its_name() {
        let mut backend = sample::status().services[0].backends[0].clone();
        backend.new_flows_total = 1;
        backend.adopted_flows_total = 2;
        backend.untracked_flows_total = 3;
        backend.syn_retransmissions_total = 4;
        backend.reset_flows_total = 5;
        backend.handshakes_total = 6;
        backend.client_resets_total = 7;
        backend.second_tries_total = 8;
        backend.refusals_total = 9;
        backend.backend_resets_total = 10;
        let json = serde_json::to_value(&backend).expect("JSON");
        for event in counters::Event::ALL {
            assert_eq!(json[format!("{}_total", event.name())], backend.total(event), "{event:?}");
        }
    }

    #[test]
    fn names_are_the_same_in_json_and_for_people() {
        for admin in Admin::ALL {
            assert_eq!(json!(admin), admin.name());
        }
        for health in [Health::Unknown, Health::Healthy, Health::Unhealthy, Health::Unreachable] {
            assert_eq!(json!(health), health.name());
        }
    }

    #[test]
    fn received_is_the_sum_of_all_verdicts() {
        let reasons = sample::reasons();
        let classes =
            [Class::Pass, Class::Drop, Class::Answer].map(|class| reasons.of_class(class));
        assert_eq!(classes, [1_234_888, 4, 56]);
        assert_eq!(reasons.received, reasons.forwarded + classes.iter().sum::<u64>());
        assert_eq!(Reasons::new(0, &[]).received, 0);
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let status = sample::status();
        assert_eq!(
            status.service("wbe").expect_err("there is none"),
            "no service \"wbe\"; there are: api, web"
        );
        assert_eq!(
            status.services[0].backend("x").expect_err("there is none"),
            "no backend \"x\" in service \"api\"; there are: api-1"
        );
        let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
        assert_eq!(
            hint(names.iter().map(String::as_str)),
            "; there are: s0, s1, s2, s3, s4, s5, s6, s7 and 2 more"
        );
    }
}
