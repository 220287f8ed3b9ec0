//! Tells the bench where its kernel programs are: `include_bytes!(env!("BENCH_OBJECT"))`.
//! `lb-userspace` has built them with its own.

use std::env;

fn main() {
    let built = "DEP_SLUICE_PROGRAMS_BENCH";
    println!("cargo::rerun-if-env-changed={built}");
    // Where the compiler is missing, lb-userspace has said so, and this is not reached.
    match env::var(built) {
        Ok(object) => println!("cargo::rustc-env=BENCH_OBJECT={object}"),
        Err(error) => println!("cargo::error=lb-userspace has not built the bench ({error})"),
    }
}
