//! The short form of `cargo xtask test churn`.

use sluice_tests::{
    churn::{self, Plan, Table},
    lab::is_privileged,
};

#[test]
fn no_change_breaks_a_connection() {
    if !is_privileged() {
        return;
    }
    let report = churn::run(&Plan::short(), |case| println!("{case}")).unwrap();
    assert!(report.is_flawless(), "{}", Table(&report));
}
