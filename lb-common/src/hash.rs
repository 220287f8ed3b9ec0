//! The keyed hash of a flow: multilinear, two halves of 32 bits, and one finaliser.
//!
//! Multilinear-HM over 32-bit halves (Lemire and Kaser, "Strongly universal string hashing
//! is fast", 2014, §3) is universal: without the keys nobody can aim at a bucket of the flow
//! table or at a slot. It costs 3 ns in the kernel, where SipHash-1-3 costs 21.

use crate::{
    address::Address,
    parse::{Family, Ports, Segment},
    service,
};

/// Key words.
pub const KEYS: usize = 2 * HALF;
/// Key words of one half.
const HALF: usize = 2 * WORDS;
/// Words that are hashed at most.
const WORDS: usize = 3;

/// Hashes words; each position has its own keys.
#[inline(always)]
fn multilinear<const N: usize>(words: [u64; N], keys: &[u64; KEYS]) -> u64 {
    const { assert!(N <= WORDS) };
    // The paper adds the lower half of a word here, not all of it. That need not be: of two
    // inputs that differ, the sums differ by a key times the difference of two halves still.
    let pair = |word: u64, key: usize| {
        word.wrapping_add(keys[key]).wrapping_mul((word >> 32).wrapping_add(keys[key + 1]))
    };
    let (mut a, mut b) = (0u64, 0u64);
    let mut i = 0;
    while i < N {
        a = a.wrapping_add(pair(words[i], 2 * i));
        b = b.wrapping_add(pair(words[i], 2 * i + HALF));
        i += 1;
    }
    // The upper halves are the universal ones; then one round that lets every bit of both
    // reach every bit of the result.
    let hash = a ^ (b >> 32);
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// Of a segment's whole 5-tuple.
#[inline(always)]
pub fn of_flow(segment: &Segment, keys: &[u64; KEYS]) -> u64 {
    of_tuple(segment.source, segment.destination, segment.ports, segment.family, keys)
}

/// Of a 5-tuple. Of the destination a digest: nobody outside chooses among VIPs with like ones, and
/// what translated packets come back to is compared as a whole.
#[inline(always)]
pub fn of_tuple(
    source: Address,
    destination: Address,
    ports: Ports,
    family: Family,
    keys: &[u64; KEYS],
) -> u64 {
    let [a, b] = source.words();
    let c = u64::from(ports.word()) | service::digest(destination) >> 32 << 32;
    match family {
        Family::Ipv4 => multilinear([b, c], keys),
        Family::Ipv6 => multilinear([a, b, c], keys),
    }
}

/// Of the client's address alone.
#[inline(always)]
pub fn of_client(client: Address, keys: &[u64; KEYS]) -> u64 {
    multilinear(client.words(), keys)
}

/// Another hash of the same flow, made of the last one: for who looks at several of its slots.
#[inline(always)]
pub const fn next(hash: u64) -> u64 {
    // Plus one, or zero would be followed by itself.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [u64; KEYS] {
        core::array::from_fn(|i| (i as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    #[test]
    fn every_input_bit_moves_half_of_the_output_bits() {
        let keys = keys();
        let base = [1u64, 2, 3];
        for bit in 0..192 {
            let mut total = 0;
            for salt in 0..256u64 {
                let mut one = base;
                one[0] ^= salt << 20;
                let mut other = one;
                other[bit / 64] ^= 1 << (bit % 64);
                total += (multilinear(one, &keys) ^ multilinear(other, &keys)).count_ones();
            }
            let average = f64::from(total) / 256.0;
            assert!((24.0..40.0).contains(&average), "input bit {bit}: {average} bits change");
        }
    }

    #[test]
    fn hashes_in_a_row_reach_all_slots_evenly() {
        const SLOTS: u32 = 101;
        const FLOWS: u64 = 1000;
        const LENGTH: u32 = 32;
        let mut reached = [0u32; SLOTS as usize];
        for flow in 0..FLOWS {
            let mut hash = multilinear([flow, 0], &keys());
            for _ in 0..LENGTH {
                hash = next(hash);
                reached[crate::maglev::slot_of(hash, SLOTS) as usize] += 1;
            }
        }
        // 317 each, give or take 18 (one standard deviation of throws at random).
        assert!(reached.iter().all(|count| (230..400).contains(count)), "{reached:?}");
        assert_ne!(next(0), 0);
    }

    #[test]
    fn other_keys_give_another_hash() {
        let mut other = keys();
        other[3] ^= 1 << 40;
        assert_ne!(multilinear([1, 2, 3], &keys()), multilinear([1, 2, 3], &other));
    }
}
