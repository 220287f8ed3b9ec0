//! What a frame offers to those who read and rewrite it.
//!
//! In the kernel it is packet memory behind bounds checks (`lb-ebpf/src/frame.rs`), on the
//! host a byte vector ([`HostFrame`]): the same decisions run over both.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An Ethernet frame. Offsets count from its first byte.
pub trait Frame {
    /// Bytes from the destination MAC to the end, padding included, frame check sequence not; of a
    /// frame that lies in several buffers (a jumbo frame), to the end of the first: what can be
    /// read and written.
    fn len(&self) -> usize;

    /// The same, of all buffers. In the kernel this is a call: for those who find [`len`](Self::len)
    /// too short.
    fn whole_len(&self) -> usize {
        self.len()
    }

    /// Whether there is nothing at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index of the interface it arrived on.
    fn interface(&self) -> u32;

    /// A header, or an array of bytes, at `offset`, if all of it is there.
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T>;

    /// Writes it at `offset`; `None`, and nothing written, if there is not room for all of it.
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Makes room for `bytes` more in front; their content is arbitrary until written.
    fn grow_front(&mut self, bytes: usize) -> Option<()>;

    /// Takes `bytes` off the front.
    fn shrink_front(&mut self, bytes: usize) -> Option<()>;

    /// Cuts the whole frame to its first `len` bytes, at least an Ethernet header.
    fn truncate(&mut self, len: usize) -> Option<()>;
}

#[cfg(any(test, feature = "host"))]
mod host {
    use std::{format, string::String, vec::Vec};

    use zerocopy::{FromBytes, Immutable, IntoBytes};

    use super::Frame;

    /// A frame in host memory, for tests and tools.
    #[derive(Clone, PartialEq, Eq)]
    pub struct HostFrame {
        /// The bytes.
        pub bytes: Vec<u8>,
        /// Index of the interface it arrived on.
        pub interface: u32,
        /// Bytes by which it can grow in front.
        pub headroom: usize,
    }

    impl HostFrame {
        /// What XDP leaves in front of a frame: `XDP_PACKET_HEADROOM`, of which the kernel's
        /// own `struct xdp_frame` takes 40 bytes.
        pub const HEADROOM: usize = 256 - 40;

        /// A frame that arrived on interface 1.
        pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
            Self { bytes: bytes.into(), interface: 1, headroom: Self::HEADROOM }
        }
    }

    /// Sixteen bytes a line, so that a failing test shows a frame readably.
    impl std::fmt::Debug for HostFrame {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            for (line, bytes) in self.bytes.chunks(16).enumerate() {
                let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
                writeln!(f, "{:04x}  {}", line * 16, hex.join(" "))?;
            }
            Ok(())
        }
    }

    impl Frame for HostFrame {
        fn len(&self) -> usize {
            self.bytes.len()
        }

        fn interface(&self) -> u32 {
            self.interface
        }

        fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
            T::read_from_prefix(self.bytes.get(offset..)?).ok().map(|(value, _)| value)
        }

        fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
            value.write_to_prefix(self.bytes.get_mut(offset..)?).ok()
        }

        fn grow_front(&mut self, bytes: usize) -> Option<()> {
            self.headroom = self.headroom.checked_sub(bytes)?;
            self.bytes.splice(0..0, std::iter::repeat_n(0xa5, bytes));
            Some(())
        }

        fn shrink_front(&mut self, bytes: usize) -> Option<()> {
            (self.bytes.len() >= bytes + crate::wire::ethernet::LEN).then(|| {
                self.bytes.drain(..bytes);
                self.headroom += bytes;
            })
        }

        fn truncate(&mut self, len: usize) -> Option<()> {
            (crate::wire::ethernet::LEN..=self.bytes.len())
                .contains(&len)
                .then(|| self.bytes.truncate(len))
        }
    }
}

#[cfg(any(test, feature = "host"))]
pub use host::HostFrame;
