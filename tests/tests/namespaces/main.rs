//! Real programs over real TCP connections, through the binary `sluice`, in network namespaces.
//! They need root and say so when they are skipped.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod agent;
mod any_port;
mod bench;
mod broken_labs;
mod churn;
mod conservation;
mod death;
mod doctor;
mod drain;
mod drift;
mod echo;
mod events;
mod explain;
mod faults;
mod flood;
mod forwarding;
mod health;
mod laboratory;
mod life;
mod losses;
mod metrics;
mod nat;
mod nat_setup;
mod networks;
mod observe;
mod outliers;
mod own_health;
mod page;
mod passive;
mod path_mtu;
mod pool;
mod probe_path;
mod recorder;
mod rolling_deploy;
mod runtime;
mod scene;
mod status;
mod top;
mod trace;
mod two_balancers;
mod upgrade;
mod watchdog;
mod wrong_input;
