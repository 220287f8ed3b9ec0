//! Who of a pool completes fewer handshakes than the others; see the [module's page](super).

use super::Figures;

/// How far above what was seen the truth may lie, in standard deviations: of counts that come by
/// chance, one in 30,000 lies further off.
const DEVIATIONS: f64 = 4.0;

/// Who is compared, and what makes an outlier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Criterion {
    /// SYNs that it must have been given, and handshakes that were its due, for a judgement.
    pub minimum_samples: u64,
    /// It completes less than this share of what the others do.
    pub ratio: f64,
}

/// How one compares with the others of its pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Standing {
    /// Too little was seen of it or of them, or half of them complete nothing themselves.
    Unknown,
    /// Like the others, or nearly.
    Well,
    /// Much worse.
    Out {
        /// Completed handshakes, as a share of those due to it.
        completed: f64,
    },
}

/// Where each of a pool stands, in the order given.
pub(super) fn standings(pool: &[Figures], criterion: &Criterion) -> Vec<Standing> {
    let rates = Others::of(pool, |one| {
        let enough = one.counts.attempts() >= criterion.minimum_samples && one.due > 0.0;
        enough.then(|| one.counts.handshakes as f64 / one.due)
    });
    let ratios = Others::of(pool, |one| {
        let attempts = one.counts.attempts();
        let enough = attempts > 0 && attempts >= criterion.minimum_samples;
        enough.then(|| one.counts.handshakes as f64 / attempts as f64)
    });
    pool.iter()
        .enumerate()
        .map(|(index, one)| {
            let (Some(rate), Some(ratio)) = (rates.middle(index), ratios.middle(index)) else {
                return Standing::Unknown;
            };
            let due = rate * one.due;
            let attempts = one.counts.attempts() as f64;
            let minimum = criterion.minimum_samples as f64;
            if attempts < minimum || due < minimum || due <= 0.0 {
                return Standing::Unknown;
            }
            let handshakes = one.counts.handshakes as f64;
            let at_most = handshakes + DEVIATIONS * (handshakes + 1.0).sqrt();
            let is_late = at_most < criterion.ratio * due;
            if is_late && handshakes / attempts < criterion.ratio * ratio {
                Standing::Out { completed: handshakes / due }
            } else {
                Standing::Well
            }
        })
        .collect()
}

/// A figure of everybody in a pool of whom enough was seen.
struct Others {
    /// Sorted.
    values: Vec<f64>,
    /// Of each one, where its own stands among them.
    places: Vec<Option<usize>>,
}

impl Others {
    fn of(pool: &[Figures], figure: impl Fn(&Figures) -> Option<f64>) -> Self {
        let mut known: Vec<(usize, f64)> = pool
            .iter()
            .enumerate()
            .filter_map(|(index, one)| Some((index, figure(one)?)))
            .collect();
        known.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut places = vec![None; pool.len()];
        for (place, (index, _)) in known.iter().enumerate() {
            places[*index] = Some(place);
        }
        Self { values: known.into_iter().map(|(_, value)| value).collect(), places }
    }

    /// The median of the others' figures, the lower one of two: at least half of them are no
    /// worse. `None` if there is no other.
    fn middle(&self, index: usize) -> Option<f64> {
        let own = self.places[index];
        let others = self.values.len() - usize::from(own.is_some());
        let middle = others.checked_sub(1)? / 2;
        let skipped = usize::from(own.is_some_and(|own| own <= middle));
        self.values.get(middle + skipped).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::passive::Counts;

    const CRITERION: Criterion = Criterion { minimum_samples: 20, ratio: 0.5 };

    fn one(syns: u64, handshakes: u64, due: f64) -> Figures {
        let counts = Counts { syns, handshakes, ..Counts::default() };
        Figures { counts, due, ..Figures::default() }
    }

    #[test]
    fn who_is_out_depends_on_the_others() {
        use Standing::{Unknown, Well};
        let out = |completed| Standing::Out { completed };
        type Case = (&'static str, Vec<Figures>, Vec<Standing>);
        let well = || one(100, 99, 1.0);
        let cases: [Case; 13] = [
            ("nobody to compare with", vec![one(100, 0, 1.0)], vec![Unknown]),
            ("one of two is dead", vec![one(100, 0, 1.0), well()], vec![out(0.0), Unknown]),
            ("all are dead", vec![one(100, 0, 1.0); 4], vec![Unknown; 4]),
            ("all are slow to answer", vec![one(100, 30, 1.0); 4], vec![Well; 4]),
            (
                "two of five are dead",
                [vec![one(100, 0, 1.0); 2], vec![well(); 3]].concat(),
                vec![out(0.0), out(0.0), Unknown, Unknown, Unknown],
            ),
            ("few come", vec![one(19, 0, 0.2), well(), well()], vec![Unknown, Well, Well]),
            ("few are due", vec![one(100, 0, 0.1), well(), well()], vec![Unknown; 3]),
            ("a flood of one alone", vec![one(90_000, 99, 1.0), well(), well()], vec![Well; 3]),
            (
                "a flood of all",
                vec![one(90_000, 70, 1.0), one(90_000, 120, 1.0), one(90_000, 99, 1.0)],
                vec![Well; 3],
            ),
            ("it merely gets less", vec![one(30, 30, 1.0), well(), well()], vec![Well; 3]),
            ("its share is small", vec![one(30, 30, 0.3), well(), well()], vec![Well; 3]),
            (
                "half of them, perhaps by chance",
                vec![one(25, 9, 0.25), well(), well()],
                vec![Well; 3],
            ),
            (
                "a third of many",
                vec![one(1000, 330, 10.0), well(), well()],
                vec![out(330.0 / 990.0), Well, Well],
            ),
        ];
        for (name, pool, expected) in cases {
            assert_eq!(standings(&pool, &CRITERION), expected, "{name}");
        }
    }

    #[test]
    fn the_middle_of_the_others_leaves_oneself_out() {
        let pool: Vec<Figures> = (0..7).map(|n| one(n, n, 1.0)).collect();
        let others = Others::of(&pool, |one| Some(one.counts.syns as f64));
        let middles: Vec<_> = (0..7).map(|index| others.middle(index)).collect();
        let expected = [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0];
        assert_eq!(middles, expected.map(Some));
        let nobody = Others::of(&pool[..1], |one| Some(one.counts.syns as f64));
        assert_eq!(nobody.middle(0), None);
    }
}
