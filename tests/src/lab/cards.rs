//! The balancer on network cards: two that are joined to each other outside of this machine, as a
//! virtual machine's can be, in place of the veth pair between its `eth0` and the switch.
//!
//! `SLUICE_LAB_CARDS` names their driver: `virtio_net`. A laboratory takes them, so they serve one
//! at a time; when its namespaces go, the kernel gives them back to where it took them from.

use std::{env, fs, path::Path};

use anyhow::Result;

use super::{DEADLINE, until};

/// Says which driver's cards a laboratory takes.
const VARIABLE: &str = "SLUICE_LAB_CARDS";

/// The two cards, if they are to be taken; waits for another laboratory to give them back.
pub(super) fn joined() -> Result<Option<[String; 2]>> {
    let Ok(driver) = env::var(VARIABLE) else { return Ok(None) };
    let found = || <[String; 2]>::try_from(of_driver(&driver)).ok();
    let what = format!("two network cards of the driver {driver} ({VARIABLE})");
    until(&what, DEADLINE, found).map(Some)
}

/// The interfaces of a driver here, in the order of their names.
fn of_driver(driver: &str) -> Vec<String> {
    let interfaces = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> = interfaces
        .filter(|interface| {
            let linked = fs::read_link(interface.path().join("device/driver"));
            linked.is_ok_and(|path| path.file_name() == Path::new(driver).file_name())
        })
        .filter_map(|interface| interface.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}
