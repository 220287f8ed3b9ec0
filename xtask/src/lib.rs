//! What `cargo xtask` and `lb-userspace/build.rs` share: how the kernel program is built.
//!
//! The commands themselves are in the binary; a library that only the build needs stays small,
//! because a change here rebuilds the daemon.

pub mod bpf;
