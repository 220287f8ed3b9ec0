//! Map memory shared with the kernel: arrays made with `BPF_F_MMAPABLE`.

#![expect(unsafe_code, reason = "mmap(2), and the slice over what it returns")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

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

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
