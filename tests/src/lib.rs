//! What the privileged tests, the demo and the bench share.
//!
//! [`lab`] builds machines out of network namespaces and runs real programs in them. It drives
//! `sluice` as its users do, through the binary, and imports nothing of it. [`mod@bench`] measures the
//! kernel program by itself; [`churn`] counts the connections that changes break.

pub mod bench;
pub mod churn;
pub mod kernel;
pub mod lab;
pub mod signals;
