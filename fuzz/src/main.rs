//! One property after the other, by libFuzzer: `make fuzz`. Which one is said by PEILI_FUZZ; with PEILI_FUZZ_PREPARE its
//! dictionary and its seeds are written into that directory, and that is all.
#![no_main]

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use peili::testing::fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("PEILI_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("PEILI_FUZZ={name:?}: write one of {}", names.join(", "))
    })
});

fn prepare() {
    let Some(directory) = std::env::var_os("PEILI_FUZZ_PREPARE").map(PathBuf::from) else {
        return;
    };
    let name = TARGET.name;
    let mut words = String::new();
    for word in TARGET.words {
        let _ = writeln!(words, "\"{}\"", escaped(word));
    }
    fs::write(directory.join(format!("{name}.dict")), words).expect("the dictionary");
    for (number, seed) in (TARGET.seeds)().iter().enumerate() {
        let file = directory.join("corpus").join(name).join(format!("seed-{number}"));
        fs::write(file, seed).expect("a seed");
    }
    std::process::exit(0);
}

/// As libFuzzer's dictionaries have it.
fn escaped(word: &str) -> String {
    let each = |b: u8| match b {
        b' '..=b'~' if b != b'"' && b != b'\\' => char::from(b).to_string(),
        _ => format!("\\x{b:02X}"),
    };
    word.bytes().map(each).collect()
}

fuzz_target!(init: prepare(), |bytes: &[u8]| (TARGET.holds)(bytes));
