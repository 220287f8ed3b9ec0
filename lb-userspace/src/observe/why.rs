//! Why a backend takes new flows, or does not: in the words of `sluice backend list`.

use crate::{
    choice::Tier,
    drain::Admin,
    health::{Because, Standing},
    model::Backend,
};

/// One reason, the strongest: `tier` is who takes the service's new flows, `takes` whether this
/// backend is among them.
pub fn why(backend: &Backend, standing: Option<&Standing>, tier: Tier, takes: bool) -> String {
    let because = standing.map(|standing| standing.because);
    let fault = standing.and_then(|standing| standing.fault.clone());
    if takes {
        return match tier {
            Tier::Healthy => fit(backend, standing),
            Tier::Backup => "backup, and no other is healthy".to_owned(),
            Tier::FailOpen => match fault {
                Some(fault) => format!("nobody is healthy (fail_open): {fault}"),
                None => "nobody is healthy (fail_open)".to_owned(),
            },
            Tier::Draining => "draining, but nobody else is left".to_owned(),
            Tier::Nobody => String::new(),
        };
    }
    if backend.leaving {
        return "removed".to_owned();
    }
    match backend.admin {
        Admin::Draining(_) => return "draining".to_owned(),
        Admin::Drained(_) => return "drained".to_owned(),
        Admin::Disabled => return "disabled".to_owned(),
        Admin::Enabled => {}
    }
    if backend.weight == 0 {
        return "weight 0".to_owned();
    }
    match because {
        None => "not looked at yet".to_owned(),
        Some(Because::Ill) => fault.unwrap_or_else(|| "not checked yet".to_owned()),
        Some(Because::Outlier) => Because::Outlier.to_string(),
        Some(Because::Healthy | Because::Presumed | Because::Held) if backend.backup => {
            "backup: others are healthy".to_owned()
        }
        Some(because) => because.to_string(),
    }
}

/// Why one that is fit is so.
fn fit(backend: &Backend, standing: Option<&Standing>) -> String {
    let Some(standing) = standing else { return String::new() };
    let mut text = standing.because.to_string();
    if let (Because::Held, Some(fault)) = (standing.because, &standing.fault) {
        text = format!("{text}; {fault}");
    }
    if standing.weight != backend.weight {
        text = format!("{text}; slow start: weight {} of {}", standing.weight, backend.weight);
    }
    text
}

#[cfg(test)]
mod tests {
    use lb_common::service::BackendState;

    use super::*;
    use crate::{health::State, model::sample};

    #[test]
    fn the_strongest_reason_is_told() {
        let service = sample::service("web", 1);
        let backend = &service.backends[0];
        let standing = |health, because, fault: Option<&str>, weight| Standing {
            health,
            fault: fault.map(str::to_owned),
            cause: None,
            because,
            flows: BackendState::Forward,
            weight,
        };
        let well = standing(State::Healthy, Because::Healthy, None, 100);
        let slow = standing(State::Healthy, Because::Healthy, None, 20);
        let ill = standing(State::Unhealthy, Because::Ill, Some("connection refused"), 100);
        let new = standing(State::Unknown, Because::Ill, None, 100);
        let held = standing(State::Unreachable, Because::Held, Some("no answer"), 100);
        let backup = Backend { backup: true, ..backend.clone() };
        let disabled = Backend { admin: Admin::Disabled, ..backend.clone() };
        let weightless = Backend { weight: 0, ..backend.clone() };
        let leaving = Backend { leaving: true, ..backend.clone() };
        let cases = [
            (backend, Some(&well), Tier::Healthy, true, "healthy"),
            (backend, Some(&slow), Tier::Healthy, true, "healthy; slow start: weight 20 of 100"),
            (backend, Some(&held), Tier::Healthy, true, "held: the fault may be ours; no answer"),
            (
                backend,
                Some(&ill),
                Tier::FailOpen,
                true,
                "nobody is healthy (fail_open): connection refused",
            ),
            (backend, Some(&ill), Tier::Healthy, false, "connection refused"),
            (backend, Some(&new), Tier::Healthy, false, "not checked yet"),
            (backend, None, Tier::Healthy, false, "not looked at yet"),
            (&backup, Some(&well), Tier::Healthy, false, "backup: others are healthy"),
            (&backup, Some(&well), Tier::Backup, true, "backup, and no other is healthy"),
            (&backup, Some(&ill), Tier::Healthy, false, "connection refused"),
            (&disabled, Some(&ill), Tier::Healthy, false, "disabled"),
            (&weightless, Some(&well), Tier::Healthy, false, "weight 0"),
            (&leaving, Some(&well), Tier::Healthy, false, "removed"),
        ];
        for (backend, standing, tier, takes, expected) in cases {
            assert_eq!(why(backend, standing, tier, takes), expected);
        }
    }
}
