//! The kernel's answer to what was decided.

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect};
use lb_common::forward::Action;

use crate::notes;

/// The program's return value.
#[inline(always)]
pub fn emit(action: Action) -> u32 {
    match action {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
        Action::Transmit => xdp_action::XDP_TX,
        Action::Redirect(interface) => {
            notes::redirected(interface);
            // SAFETY: no memory is involved; an interface that is gone makes the kernel drop the
            // frame and fire `xdp_redirect_err`.
            unsafe { bpf_redirect(interface, 0) as u32 }
        }
    }
}
