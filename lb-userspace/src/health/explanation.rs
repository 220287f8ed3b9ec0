//! Why a backend that is asked by way of the VIP does not answer: what its own address does tells,
//! as far as it can be known from here. The probe's verdict is another matter, and stands.

use super::{Seen, Target, Thresholds};
use crate::doctor::{Met, cause};

/// So many failures later the backend may be ill for another reason that looks the same.
const REFRESHED_AFTER: u32 = 10;

/// What came of asking a backend's own address while probes by way of the VIP failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the probes met then.
    pub met: Met,
    /// Failures in a row then.
    pub failures: u32,
    /// The cause, and what to do about it, in one sentence.
    pub says: String,
}

impl Seen {
    /// What the probes by way of the VIP meet, if its cause is worth a look: `fall` of them have
    /// failed, and what they meet is not explained yet, or was so a while ago.
    pub(super) fn unexplained(&self, thresholds: Thresholds) -> Option<Met> {
        let met = Met::by(&self.last.as_ref()?.outcome);
        let is_riddle = match met {
            Met::Refused | Met::Silence => true,
            // The failure's own words name the cause.
            Met::Ill | Met::Narrow | Met::NoWay => false,
            Met::Well | Met::NotTried => false,
        };
        let is_open = self.explanation.as_ref().is_none_or(|known| {
            known.met != met || self.failures.saturating_sub(known.failures) >= REFRESHED_AFTER
        });
        (is_riddle && is_open && self.failures >= thresholds.fall).then_some(met)
    }

    /// Takes in why probes that `met` this failed; tells whether that is news. An answer that comes
    /// when the backend is well again, or fails in another way, is no explanation.
    pub(super) fn explain(&mut self, met: Met, says: String) -> bool {
        let still = self.last.as_ref().is_some_and(|probe| Met::by(&probe.outcome) == met);
        if !still {
            return false;
        }
        let is_news = self.cause() != Some(&says);
        self.explanation = Some(Explanation { met, failures: self.failures, says });
        is_news
    }

    /// Why the last probe failed, and what to do about it, if a look at the backend's own address
    /// has told.
    pub fn cause(&self) -> Option<&str> {
        let met = Met::by(&self.last.as_ref()?.outcome);
        self.explanation.as_ref().filter(|known| known.met == met).map(|known| &*known.says)
    }
}

impl Target {
    /// Why probes by way of the VIP meet one thing, and the backend's own address another; `None`
    /// if that address could not be asked.
    pub(super) fn explanation(&self, by_vip: Met, direct: Met) -> Option<String> {
        if direct == Met::NotTried {
            return None;
        }
        let cause = cause(Some(by_vip), direct)?;
        Some(cause.explained(self.forwarding, self.address(), self.directly().address()))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::{
        super::{Failure, Probe},
        *,
    };
    use crate::{drain::Moment, model::sample};

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn after(seen: Seen, outcome: Result<(), Failure>) -> Seen {
        let probe = Probe { at: Moment(0), duration: Duration::from_millis(1), outcome };
        seen.next(probe, THRESHOLDS)
    }

    fn silence() -> Result<(), Failure> {
        Err(Failure::NoAnswer(Duration::from_secs(1)))
    }

    /// After `fall` probes without an answer.
    fn silent() -> Seen {
        (0..THRESHOLDS.fall).fold(Seen::unknown(Moment(0)), |seen, _| after(seen, silence()))
    }

    #[test]
    fn the_cause_is_looked_for_when_it_has_fallen_and_again_after_a_while() {
        let mut seen = Seen::unknown(Moment(0));
        for _ in 1..THRESHOLDS.fall {
            seen = after(seen, silence());
            assert_eq!(seen.unexplained(THRESHOLDS), None, "it may be one lost packet");
        }
        seen = after(seen, silence());
        assert_eq!(seen.unexplained(THRESHOLDS), Some(Met::Silence));
        assert!(seen.explain(Met::Silence, "no VIP".to_owned()));
        for _ in 1..REFRESHED_AFTER {
            seen = after(seen, silence());
            assert_eq!(seen.unexplained(THRESHOLDS), None);
        }
        seen = after(seen, silence());
        assert_eq!(seen.unexplained(THRESHOLDS), Some(Met::Silence));
        assert!(!seen.explain(Met::Silence, "no VIP".to_owned()), "it is known already");
        assert_eq!(seen.unexplained(THRESHOLDS), None);
        assert_eq!(seen.cause(), Some("no VIP"));
    }

    #[test]
    fn an_explanation_holds_for_what_it_explains() {
        let mut seen = silent();
        assert!(!seen.explain(Met::Refused, "the answer came too late".to_owned()));
        assert!(seen.explain(Met::Silence, "no VIP".to_owned()));

        let refused = after(seen.clone(), Err(Failure::Refused));
        assert_eq!((refused.cause(), refused.unexplained(THRESHOLDS)), (None, Some(Met::Refused)));

        let not_made = after(seen.clone(), Err(Failure::NotMade("no file".to_owned())));
        assert_eq!((not_made.cause(), not_made.unexplained(THRESHOLDS)), (None, None));
        assert_eq!(after(not_made, silence()).cause(), Some("no VIP"));

        let mut well = after(seen, Ok(()));
        assert_eq!((well.cause(), &well.explanation), (None, &None));
        assert!(!well.explain(Met::Silence, "no VIP".to_owned()));
    }

    #[test]
    fn what_names_its_own_cause_is_not_looked_into() {
        let outcomes = [
            Failure::NoWay("no route".to_owned()),
            Failure::PathMtu { segment: 1460 },
            Failure::Closed { request: "GET /".to_owned() },
        ];
        for outcome in outcomes {
            let seen = (0..5).fold(silent(), |seen, _| after(seen, Err(outcome.clone())));
            assert_eq!(seen.unexplained(THRESHOLDS), None, "{outcome}");
        }
    }

    #[test]
    fn the_cause_is_told_with_its_mend_in_the_words_of_the_doctor() {
        let service = sample::service("web", 1);
        let check = Arc::new(service.health.clone().unwrap_or_default());
        let target = Target::new(&service, &service.backends[0], &check);
        let says = target.explanation(Met::Silence, Met::Well).expect("the VIP is missing");
        assert!(
            says.starts_with("10.0.0.11 is up, but takes no frames for 203.0.113.10: "),
            "{says}"
        );
        assert!(says.contains("`sluice agent run --interface IF --vip 203.0.113.10`"), "{says}");
        assert_eq!(target.explanation(Met::Silence, Met::NotTried), None);
    }
}
