//! What every object file has besides its programs.

/// The kernel takes helpers under the GPL from programs that declare it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked: nothing here has a path that panics.
    loop {}
}
