//! What holds of whatever comes from outside (`peili::testing::fuzz`), asked with the corpora and with changes of them,
//! each for a second, in CI for three. Nothing is measured here: `make fuzz` is guided by where the bytes have led, and takes its time.
//!
//! PEILI_FUZZ_SEED and PEILI_FUZZ_MILLIS say which changes, and for how long.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use peili::testing::fuzz::{TARGETS, Target};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// Longer inputs find no more, and are slower.
const MAX: usize = 2048;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| {
        let number = text.parse();
        number.unwrap_or_else(|e| panic!("{name}={text:?}: {e}: write a number"))
    })
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let files = fs::read_dir(folder.join(target.name)).into_iter().flatten();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let files = files.iter().map(|file| fs::read(file).unwrap());
    files.chain((target.seeds)()).collect()
}

/// One to four changes.
fn changed(input: &[u8], corpus: &[Vec<u8>], target: &Target, chance: &mut SmallRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..chance.random_range(1..=4) {
        let at = chance.random_range(0..=bytes.len());
        let until = (at + chance.random_range(0..=16)).min(bytes.len());
        match chance.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = chance.random(),
            2 => drop(bytes.drain(at..until)),
            3 => {
                let again = bytes[at..until].to_vec();
                bytes.splice(at..at, again);
            }
            4 => bytes.insert(at, *b"\n\"'[]{}=.:/@-#0 \xff".choose(chance).unwrap()),
            5 => {
                let word = target.words.choose(chance).copied().unwrap_or("\0");
                bytes.splice(at..at, word.bytes());
            }
            _ => {
                let other = corpus.choose(chance).unwrap();
                let from = chance.random_range(0..=other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
    }
    bytes.truncate(MAX);
    bytes
}

/// Whether the property holds of it.
fn holds(target: &Target, input: &[u8]) -> bool {
    let asked = catch_unwind(AssertUnwindSafe(|| (target.holds)(input)));
    if asked.is_err() {
        let input = input.escape_ascii();
        eprintln!("{} does not hold of b\"{input}\"", target.name);
    }
    asked.is_ok()
}

/// Asks for so long; whether it always held. Ends with the first that is wrong.
fn always_holds(target: &Target, seed: u64, time: Duration) -> bool {
    let mut corpus = corpus(target);
    assert!(corpus.len() >= 4, "a corpus for {}", target.name);
    if !corpus.iter().all(|input| holds(target, input)) {
        return false;
    }
    corpus.push(Vec::new());
    let mut chance = SmallRng::seed_from_u64(seed);
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < time {
        let input = corpus.choose(&mut chance).unwrap();
        let input = changed(input, &corpus, target, &mut chance);
        if !holds(target, &input) {
            return false;
        }
        count += 1;
    }
    println!("{}: {count} inputs", target.name);
    true
}

#[test]
fn what_comes_from_outside_breaks_no_promise() {
    // Half a minute for all of them, where nobody waits for it.
    let usual = match std::env::var_os("CI") {
        Some(_) => 3000,
        None => 1000,
    };
    let time = Duration::from_millis(number("PEILI_FUZZ_MILLIS", usual));
    let seed = number("PEILI_FUZZ_SEED", 1);
    let broken = TARGETS.iter().filter(|it| !always_holds(it, seed, time));
    let broken: Vec<&str> = broken.map(|target| target.name).collect();
    assert!(broken.is_empty(), "seed {seed}: {broken:?}");
}
