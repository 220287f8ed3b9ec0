//! Many elements of a map by one system call: `BPF_MAP_LOOKUP_BATCH` and
//! `BPF_MAP_UPDATE_BATCH` (Linux 5.6; for arrays of maps 5.16). aya 0.14 has neither.
//!
//! What it saves: a change of an array of maps waits for all running programs (10 to 14 ms on an
//! idle machine), one by one for single updates, once for a batch; and reading 65,536 backends
//! takes one call in place of as many.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use zerocopy::{FromBytes, IntoBytes};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// `struct { … } batch` of `union bpf_attr` (`include/uapi/linux/bpf.h`).
#[derive(Default)]
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes descriptors of maps into an array of maps. Where the kernel can't do so at once, it
/// returns [`io::ErrorKind::Unsupported`] and nothing has been written.
pub(super) fn set_maps(map: BorrowedFd<'_>, elements: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
    let keys: Vec<u32> = elements.iter().map(|(key, _)| *key).collect();
    let values: Vec<u32> = elements.iter().map(|(_, fd)| fd.as_raw_fd() as u32).collect();
    let mut attributes = Attributes {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: elements.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    // SAFETY: `keys` and `values` hold `count` elements of the 4 bytes that an array of maps has
    // for both, and outlive the call.
    match unsafe { batch(BPF_MAP_UPDATE_BATCH, &mut attributes) } {
        Err(error) if attributes.count == 0 && is_unsupported(&error) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        result => result,
    }
}

/// The first elements of an array, whose value has the size of a `T` and no more: as many as
/// `values` is long.
pub(super) fn read_array<T: FromBytes + IntoBytes>(
    map: BorrowedFd<'_>,
    values: &mut [T],
) -> io::Result<()> {
    const { assert!(size_of::<T>().is_multiple_of(8), "arrays pad their elements to 8 bytes") };
    let mut keys = vec![0u32; values.len()];
    let mut last = 0u32;
    let mut attributes = Attributes {
        out_batch: (&raw mut last) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: values.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    // SAFETY: `keys` and `values` have room for `count` elements of the map's key and value, all
    // byte patterns are a `T`, and `last` for one key; they outlive the call.
    match unsafe { batch(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
        // Told where the array ends with the last element asked for.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }?;
    if attributes.count as usize == values.len() {
        return Ok(());
    }
    let (count, wanted) = (attributes.count, values.len());
    Err(io::Error::other(format!("the map has {count} elements, not {wanted}")))
}

/// `ENOTSUPP`, which is no error number of user space, is what the kernel says of maps without
/// batches.
fn is_unsupported(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
}

/// # Safety
/// The attributes' addresses and their count must suit the command and the map.
unsafe fn batch(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are what the command wants, says the caller.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<Attributes>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
