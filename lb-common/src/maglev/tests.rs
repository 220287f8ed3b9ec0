use std::{format, println, vec, vec::Vec};

use proptest::prelude::*;
use siphasher::sip::SipHasher24;

use super::*;

/// As the daemon makes them: two keyed hashes of the name.
fn hashes(name: &str) -> [u64; 2] {
    [[1; 16], [2; 16]].map(|key| SipHasher24::new_with_key(&key).hash(name.as_bytes()))
}

// Computed apart from this code, from the paper's permutation lists, in another language.
const GOLDEN_13: [u16; 13] = [1, 1, 1, 2, 3, 2, 3, 3, 3, 1, 3, 1, 1];
const GOLDEN_3: u64 = 0x5c38_be1b_0a31_f26e;
const GOLDEN_100: u64 = 0xe2a5_6dfb_0db8_3698;
const GOLDEN_WEIGHTED: u64 = 0x15de_dfbd_db36_0f28;

/// Members `web-0001`, `web-0002` and so on, sorted by name, with these weights.
fn members(weights: impl IntoIterator<Item = u16>) -> Vec<Member> {
    (1..)
        .zip(weights)
        .map(|(backend, weight)| {
            let hashes = hashes(&format!("web-{backend:04}"));
            Member { backend, weight, hashes }
        })
        .collect()
}

fn table(members: &[Member], slots: u32) -> Vec<u16> {
    // As dirty as memory can be: nothing of it may show.
    let mut table = vec![0xdead; slots as usize];
    let dirty = Progress { next: 7, skip: 7, credit: 7 };
    fill(members, &mut table, &mut vec![dirty; members.len()]);
    table
}

fn count(table: &[u16], backend: u16) -> usize {
    table.iter().filter(|&&slot| slot == backend).count()
}

/// FNV-1a over the slots, low byte first.
fn checksum(table: &[u16]) -> u64 {
    table.iter().flat_map(|slot| slot.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn moved(before: &[u16], after: &[u16]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

/// Table 1 of the paper (§3.4): three backends, seven slots, and then without B1.
#[test]
fn the_papers_example_comes_out() {
    // Offsets 3, 0, 3 and skips 4, 2, 1.
    let all = [(1, [3, 3]), (2, [0, 1]), (3, [3, 0])].map(|(backend, hashes)| Member {
        backend,
        weight: 1,
        hashes,
    });
    assert_eq!(table(&all, 7), [2, 1, 2, 1, 3, 3, 1]);
    assert_eq!(table(&[all[0], all[2]], 7), [1, 1, 1, 1, 3, 3, 3]);
}

#[test]
fn a_small_weighted_table_is_as_written_here() {
    let all = members([100, 50, 100]);
    assert_eq!(table(&all, 13), GOLDEN_13);
    assert_eq!(table(&all[..1], 13), [1; 13]);
}

/// The same on every machine, or two balancers of one VIP would part connections.
#[test]
fn whole_tables_have_the_checksums_written_here() {
    for (name, all, golden) in [
        ("three alike", members([100; 3]), GOLDEN_3),
        ("a hundred alike", members([100; 100]), GOLDEN_100),
        ("weighted", members([1, 10, 100, 1000, 0, 333, 77]), GOLDEN_WEIGHTED),
    ] {
        let found = checksum(&table(&all, DEFAULT_SLOTS));
        assert_eq!(found, golden, "{name}: {found:#018x}");
    }
}

#[test]
fn backends_with_other_indices_take_the_same_places() {
    let all = members([100, 70, 100, 30]);
    let elsewhere: Vec<Member> =
        all.iter().map(|m| Member { backend: 1000 - m.backend * 7, ..*m }).collect();
    let translated: Vec<u16> =
        table(&all, 4099).into_iter().map(|backend| 1000 - backend * 7).collect();
    assert_eq!(table(&elsewhere, 4099), translated);
}

#[test]
fn weights_relative_to_each_other_are_what_counts() {
    let scaled = |factor: u16| table(&members([1, 2, 3].map(|w| w * factor)), 4099);
    assert_eq!(scaled(1), scaled(100));
}

#[test]
fn without_weight_there_is_no_slot() {
    let all = members([100, 0, 100]);
    let with_zero = table(&all, 4099);
    assert_eq!(count(&with_zero, 2), 0);
    assert_eq!(with_zero, table(&[all[0], all[2]], 4099), "as if it were not there");
    assert_eq!(table(&members([0, 0]), 13), [0; 13]);
    assert_eq!(table(&[], 13), [0; 13]);
}

#[test]
fn more_members_than_slots_is_no_harm() {
    let filled = table(&members([1; 20]), 7);
    assert!(filled.iter().all(|backend| (1..=20).contains(backend)), "{filled:?}");
    assert!(table(&members([3; 5]), 2).iter().all(|backend| (1..=5).contains(backend)));
}

/// The measure is the largest and the smallest share over the mean one; §3.4 promises it where
/// a backend has 100 slots or more.
#[test]
fn alike_backends_differ_by_less_than_one_percent() {
    for number in [1, 2, 3, 10, 100, 327, 655] {
        let all = members(vec![100; number]);
        let table = table(&all, DEFAULT_SLOTS);
        let mean = table.len() as f64 / number as f64;
        for member in &all {
            let ratio = count(&table, member.backend) as f64 / mean;
            assert!(
                (0.99..1.01).contains(&ratio),
                "backend {} of {number} has {ratio:.4} of the mean",
                member.backend
            );
        }
    }
}

#[test]
fn shares_follow_the_weights() {
    let cases: [Vec<u16>; 6] = [
        vec![1, 1, 2],
        vec![100, 50, 25, 10],
        vec![1000, 1],
        vec![3, 7],
        vec![100, 100, 100, 99],
        (1..=100).collect(),
    ];
    for weights in cases {
        let all = members(weights.clone());
        let table = table(&all, DEFAULT_SLOTS);
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        for member in &all {
            let fair = table.len() as f64 * f64::from(member.weight) / total;
            let off = (count(&table, member.backend) as f64 - fair).abs();
            // Turns are whole: a share of few slots may be one or two off.
            assert!(
                off <= fair * 0.01 + 2.0,
                "{weights:?}: weight {} is {off:.1} slots off {fair:.1}",
                member.weight
            );
        }
    }
}

/// Slots that move when one of so many leaves, over the slots it had: the smaller the shares,
/// the more of other's slots move along (§3.4: "minimal disruption" is not perfect here), but
/// never more than about one in a hundred of the whole table.
#[test]
fn one_that_leaves_takes_little_more_than_its_share_along() {
    for (number, limit) in [(2, 1.01), (3, 1.01), (10, 1.05), (50, 1.3), (100, 1.7)] {
        let all = members(vec![100; number]);
        let before = table(&all, DEFAULT_SLOTS);
        let mut worst = 0.0f64;
        for gone in (0..number).step_by(number.div_ceil(10)) {
            let mut rest = all.clone();
            let gone = rest.remove(gone).backend;
            let after = table(&rest, DEFAULT_SLOTS);
            let own = count(&before, gone);
            let moved = moved(&before, &after);
            worst = worst.max(moved as f64 / own as f64);
            assert!(moved - own < before.len() / 100, "{number}: {} too many", moved - own);
        }
        println!("one of {number}: {worst:.3} times its share moves");
        assert!(worst < limit, "one of {number}: {worst:.3} times its share moves");
    }
}

#[test]
fn one_that_changes_its_weight_moves_little_more_than_the_difference() {
    let all = members([100; 10]);
    let before = table(&all, DEFAULT_SLOTS);
    for weight in [0, 1, 50, 99, 101, 200] {
        let mut changed = all.clone();
        changed[3].weight = weight;
        let after = table(&changed, DEFAULT_SLOTS);
        let difference = count(&before, 4).abs_diff(count(&after, 4));
        let extra = (moved(&before, &after) - difference) as f64 / before.len() as f64;
        assert!(extra < 0.005, "100 to {weight}: {:.2} % of others' slots move", extra * 100.0);
    }
}

#[test]
fn hashes_fill_the_slots_evenly_and_never_beyond_the_last() {
    for slots in [1, 2, 251, DEFAULT_SLOTS, 1_048_573] {
        assert_eq!(slot_of(0, slots), 0);
        assert_eq!(slot_of(!0, slots), slots - 1);
        // Slot k begins at the smallest h with h * slots >= k * 2^32.
        for k in [1, slots / 3, slots - 1].into_iter().filter(|&k| k > 0 && k < slots) {
            let first = (u64::from(k) << 32).div_ceil(u64::from(slots));
            assert_eq!(slot_of(first << 32, slots), k);
            assert_eq!(slot_of((first << 32) - 1, slots), k - 1);
        }
    }
}

proptest! {
    #[test]
    fn every_slot_goes_to_a_member_with_weight(
        weights in prop::collection::vec(0u16..=1000, 0..40),
        slots in prop::sample::select(vec![2u32, 3, 13, 251, 4099]),
    ) {
        let all = members(weights);
        let table = table(&all, slots);
        let nobody = all.iter().all(|member| member.weight == 0);
        for backend in table {
            let owner = all.iter().find(|member| member.backend == backend);
            prop_assert!(owner.map_or(nobody && backend == 0, |member| member.weight > 0));
        }
    }

    #[test]
    fn any_hashes_will_do(
        hashes in prop::collection::vec(any::<[u64; 2]>(), 1..10),
        same: bool,
    ) {
        let first = hashes[0];
        let all: Vec<Member> = (1..)
            .zip(hashes)
            .map(|(backend, hashes)| Member {
                backend,
                weight: 1,
                hashes: if same { first } else { hashes },
            })
            .collect();
        let table = table(&all, 251);
        // Turn by turn: nobody is more than one ahead.
        let counts: Vec<usize> = all.iter().map(|m| count(&table, m.backend)).collect();
        prop_assert!(counts.iter().max().zip(counts.iter().min()).is_some_and(|(a, b)| a - b <= 1));
    }

    #[test]
    fn a_slot_is_below_the_number_of_slots(hash: u64, slots in 1u32..=1_048_573) {
        prop_assert!(slot_of(hash, slots) < slots);
    }
}
