//! One property after the other, by libFuzzer: `make fuzz`. Which one is said by PEILI_FUZZ.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use peili::testing::fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("PEILI_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("PEILI_FUZZ={name:?}: it must be one of {}", names.join(", "))
    })
});

fuzz_target!(|bytes: &[u8]| (TARGET.holds)(bytes));
