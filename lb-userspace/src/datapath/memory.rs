//! Map memory shared with the kernel: arrays made with `BPF_F_MMAPABLE`.

#![expect(unsafe_code, reason = "mmap(2), and the slice over what it returns")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An array map's values in our address space.
pub struct Mapping {
    start: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway; it is only ever accessed atomically.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// To read and write.
    pub fn writable(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Self::map(fd, bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// To read; a write would be a fault.
    pub fn readable(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Self::map(fd, bytes, libc::PROT_READ)
    }

    fn map(fd: BorrowedFd<'_>, bytes: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping of a descriptor that is open; it replaces nothing.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    /// All words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `bytes` long, and lives as long as `self`;
        // the kernel changes it under us only by whole words, which atomics allow.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes / 8) }
    }
}

/// What lies in these words, which others may write meanwhile: each is read whole, but not all at one
/// moment. Where they are too few, the rest is zeros.
pub fn read<T: FromBytes + IntoBytes>(words: &[AtomicU64]) -> T {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let mut value = T::new_zeroed();
    for (bytes, word) in value.as_mut_bytes().chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    value
}

/// Writes it into these words, one after the other, and none beside them.
pub fn write<T: IntoBytes + Immutable>(words: &[AtomicU64], value: &T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    for (bytes, word) in value.as_bytes().chunks_exact(8).zip(words) {
        let mut copy = [0; 8];
        copy.copy_from_slice(bytes);
        word.store(u64::from_ne_bytes(copy), Ordering::Relaxed);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    /// Two who write beside each other, as a daemon its filter and an upgrade the settings.
    #[test]
    fn a_part_is_written_by_itself() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(48).unwrap();
        let [one, other] = [0; 2].map(|_| Mapping::writable(file.as_fd(), 48).unwrap());
        write(&one.words()[..2], &[1u64, 2]);
        write(&other.words()[2..5], &[3u64, 4, 5]);
        write(&one.words()[..2], &[6u32, 7, 8, 9]);
        assert_eq!(read::<[u32; 4]>(&other.words()[..2]), [6, 7, 8, 9]);
        assert_eq!(read::<[u64; 4]>(&one.words()[2..]), [3, 4, 5, 0]);
        assert_eq!(read::<[u64; 2]>(&one.words()[4..5]), [5, 0]);
    }
}
