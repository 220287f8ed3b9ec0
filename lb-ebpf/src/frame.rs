//! Packet memory: the only packet pointers in the program.

use core::intrinsics::is_val_statically_known;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::frame::Frame;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Headers end well before: 22 bytes of Ethernet, 40 of IPv6, 1,024 of its extensions.
const MAX_OFFSET: usize = 0x3fff;

/// The frame an XDP program was called with.
pub struct XdpFrame {
    /// What the program was called with.
    pub ctx: *mut xdp_md,
}

impl XdpFrame {
    /// The frame of this call.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.as_ptr().cast() }
    }

    /// Where the frame begins and ends now.
    ///
    /// Volatile: LLVM would hand what it has read to a function as 32 bits, which the verifier
    /// no longer takes for a pointer.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe {
            let data = (&raw const (*self.ctx).data).read_volatile();
            let end = (&raw const (*self.ctx).data_end).read_volatile();
            (data as usize, end as usize)
        }
    }

    /// A pointer to a `T` at `offset`, after the comparison that the verifier wants.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let (data, end) = self.bounds();
        // The verifier refuses pointers that might reach 64 KiB into the packet, and forgets what
        // an earlier comparison said of this offset; LLVM does not.
        let offset = if is_val_statically_known(offset) { offset } else { opaque(offset) };
        if offset > MAX_OFFSET {
            return None;
        }
        let start = opaque(data + offset);
        if start + size_of::<T>() > end { None } else { Some(start as *mut T) }
    }
}

/// The same value, as one of which LLVM knows nothing: else it adds `offset` elsewhere, or
/// concludes the outcome of one comparison from another and leaves it out; the verifier knows
/// only the pointer that was compared.
#[inline(always)]
pub fn opaque(value: usize) -> usize {
    let mut same = value;
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) same, options(pure, nomem, nostack)) };
    same
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn len(&self) -> usize {
        let (data, end) = self.bounds();
        // In 64 bits: the verifier refuses to subtract halves of pointers.
        opaque(end - data)
    }

    #[inline(always)]
    fn whole_len(&self) -> usize {
        // SAFETY: the context is valid. Needs Linux 5.18.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared the whole range with the frame's end; any bytes are a `T`.
        self.at::<T>(offset).map(|p| unsafe { p.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` has compared the whole range with the frame's end, and nothing else
        // holds a reference into the frame.
        self.at::<T>(offset).map(|p| unsafe { p.write_unaligned(value) })
    }

    #[inline(always)]
    fn grow_front(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: the context is valid; pointers into the frame are made anew at each access.
        (unsafe { bpf_xdp_adjust_head(self.ctx, -(bytes as i32)) } == 0).then_some(())
    }

    #[inline(always)]
    fn shrink_front(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_head(self.ctx, bytes as i32) } == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let change = len as i64 - self.whole_len() as i64;
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_tail(self.ctx, change as i32) } == 0).then_some(())
    }
}
