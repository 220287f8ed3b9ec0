//! The seed of an instance: hash keys and Maglev tables derive from it, so balancers that
//! share it choose the same backend for a flow.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use lb_common::hash::KEYS;
use sha2::{Digest as _, Sha256};
use siphasher::sip::SipHasher24;

use crate::whole_file;

/// 32 bytes nobody guesses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// From an adopted instance.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From the `hash_seed` that the operator wrote.
    pub fn from_text(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// The one kept in an instance's state directory; made there if there is none. So it outlives
    /// a reboot: connections that were not touched meanwhile find their backends again.
    ///
    /// A directory that can't be written costs that, and a warning.
    pub fn kept(directory: &Path) -> Result<Self> {
        let path = directory.join("seed");
        match fs::read(&path) {
            Ok(bytes) => {
                if let Ok(bytes) = bytes.try_into() {
                    return Ok(Self(bytes));
                }
                tracing::warn!("{} is damaged: making a new seed", path.display());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("can't read {}: {error}", path.display()),
        }
        let seed = Self::random()?;
        if let Err(error) = whole_file::write(&path, &seed.0) {
            tracing::warn!(
                "can't keep the hash seed in {}: {error}; after a reboot flows may choose other \
                 backends",
                path.display()
            );
        }
        Ok(seed)
    }

    /// From the kernel's random numbers.
    fn random() -> Result<Self> {
        let mut bytes = [0; 32];
        fs::File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut bytes))
            .context("read /dev/urandom")?;
        Ok(Self(bytes))
    }

    /// As kept in the instance's settings.
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// Keys of the flow hash.
    pub fn hash_keys(&self) -> [u64; KEYS] {
        std::array::from_fn(|i| {
            let digest = Sha256::new().chain_update(self.0).chain_update([i as u8]).finalize();
            let mut word = [0; 8];
            word.copy_from_slice(&digest[..8]);
            u64::from_le_bytes(word)
        })
    }

    /// The two hashes of a backend's name that make its Maglev preferences.
    pub fn name_hashes(&self, name: &str) -> [u64; 2] {
        [0u8, 16].map(|from| {
            let mut key = [0; 16];
            key.copy_from_slice(&self.0[usize::from(from)..usize::from(from) + 16]);
            SipHasher24::new_with_key(&key).hash(name.as_bytes())
        })
    }
}

/// The seed is a secret: who knows it can aim at one backend.
impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_seed_is_found_again_and_a_damaged_one_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Seed::kept(directory.path()).expect("a seed");
        assert_eq!(Seed::kept(directory.path()).expect("the same"), first);
        fs::write(directory.path().join("seed"), b"short").expect("damage it");
        assert_ne!(Seed::kept(directory.path()).expect("a new one"), first);
    }

    #[test]
    fn a_directory_that_cannot_be_written_does_not_stop_anything() {
        assert!(Seed::kept(Path::new("/proc/nowhere")).is_ok());
    }

    #[test]
    fn the_same_text_gives_the_same_keys_on_every_machine() {
        let seed = Seed::from_text("example");
        assert_eq!(seed.hash_keys()[0], Seed::from_text("example").hash_keys()[0]);
        assert_ne!(seed.hash_keys(), Seed::from_text("other").hash_keys());
        assert_ne!(seed.name_hashes("web-1"), seed.name_hashes("web-2"));
        let [a, b] = seed.name_hashes("web-1");
        assert_ne!(a, b);
    }
}
