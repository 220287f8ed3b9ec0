//! Whether a running instance is adopted as it is, gets this build's program, is migrated to
//! new maps, or is refused: decided by what its settings say, before anything is touched.

use lb_common::abi::{ABI_VERSION, Settings, map};

/// An ABI other than ours whose instances this build can take over.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub abi_version: u32,
    /// Maps that are the same in both ABIs and go on as they are. All others are made anew and
    /// filled from the old ones, which [`migrate`](super::migrate) opens with our layouts: if
    /// their keys or values have other sizes, it refuses.
    pub shared: &'static [&'static str],
}

/// An ABI that is ours in everything but the number, and that no release has: what the tests of
/// a migration mark an instance with. It shares only the Maglev tables, which before Linux 6.8
/// take 20 ms a service to put into another map; all else is copied.
pub const TWIN: u32 = u32::MAX;

/// All of them. When [`ABI_VERSION`] changes, its predecessor joins this list, or does not, and
/// is refused: what is copied must mean the same to the new program, which no size can tell.
const KNOWN: [Known; 1] = [Known { abi_version: TWIN, shared: &[map::SLOTS] }];

/// What is to become of a running instance.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// It runs this build's program.
    Adopt,
    /// Another program on the same maps: link by link it is replaced.
    Replace,
    /// Another ABI that we know: new maps, filled from the old ones.
    Migrate(&'static Known),
    /// It is left alone.
    Refuse(Refusal),
}

/// Why an instance is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An ABI that came after ours.
    #[error(
        "it speaks ABI {0}, this binary only {ABI_VERSION} and there is no way back: go on with \
         the newer binary, or `sluice detach` (connections break) and start this one anew"
    )]
    Newer(u32),
    /// An ABI from before ours that nobody taught us.
    #[error(
        "it speaks ABI {0}, this binary {ABI_VERSION} and it does not know how to take that over: \
         go by way of a release that does, or `sluice detach` (connections break) and start anew"
    )]
    Older(u32),
    /// It is attached elsewhere.
    #[error("it is attached in another network namespace: run sluice there")]
    ElsewhereAttached,
}

/// Decides. `object_id` and `network_namespace` are ours.
pub fn decide(running: &Settings, object_id: u64, network_namespace: u32) -> Decision {
    if running.network_namespace != network_namespace {
        return Decision::Refuse(Refusal::ElsewhereAttached);
    }
    let abi = running.abi_version;
    match KNOWN.iter().find(|known| known.abi_version == abi) {
        _ if abi == ABI_VERSION && running.object_id == object_id => Decision::Adopt,
        _ if abi == ABI_VERSION => Decision::Replace,
        Some(known) => Decision::Migrate(known),
        None if abi > ABI_VERSION => Decision::Refuse(Refusal::Newer(abi)),
        None => Decision::Refuse(Refusal::Older(abi)),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn the_abi_decides_and_then_the_object_file() {
        let running = |abi_version, object_id| Settings {
            abi_version,
            object_id,
            network_namespace: 7,
            ..Settings::new_zeroed()
        };
        let (newer, older) = (ABI_VERSION + 1, ABI_VERSION - 1);
        for (what, settings, expected) in [
            ("the same build", running(ABI_VERSION, 1), Decision::Adopt),
            ("another build", running(ABI_VERSION, 2), Decision::Replace),
            ("a known ABI", running(TWIN, 2), Decision::Migrate(&KNOWN[0])),
            ("a known ABI, strangely", running(TWIN, 1), Decision::Migrate(&KNOWN[0])),
            ("a newer ABI", running(newer, 2), Decision::Refuse(Refusal::Newer(newer))),
            ("an unknown older ABI", running(older, 2), Decision::Refuse(Refusal::Older(older))),
        ] {
            assert_eq!(decide(&settings, 1, 7), expected, "{what}");
            let elsewhere = Decision::Refuse(Refusal::ElsewhereAttached);
            assert_eq!(decide(&settings, 1, 8), elsewhere, "{what}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for refusal in [Refusal::Newer(9), Refusal::Older(0)] {
            assert!(refusal.to_string().contains("sluice detach"), "{refusal}");
        }
    }
}
