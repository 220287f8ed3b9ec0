//! libFuzzer drives [`sluice_fuzz::targets::icmp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_fuzz::targets::icmp::run(input));
