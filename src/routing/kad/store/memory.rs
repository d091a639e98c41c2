//! What records cost: allocations of this thread are counted, so the figures are the same each time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rand::SeedableRng;

use super::*;
use crate::routing::kad::records::{RECORD_LIFE, Schedule};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

fn counted(change: impl FnOnce(usize) -> usize) {
    // A thread that ends frees what it had after its counter is gone.
    let _ = HELD.try_with(|held| held.set(change(held.get())));
}

// SAFETY: every call is passed on to the system's allocator; only numbers are kept beside it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        counted(|held| held.wrapping_add(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        counted(|held| held.wrapping_sub(layout.size()));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        counted(|held| held.wrapping_sub(layout.size()).wrapping_add(size));
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `make` made and keeps.
fn cost<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    let made = make();
    (made, HELD.get().wrapping_sub(before))
}

fn store() -> Store {
    let policy = Policy::of(&["10.0.0.1".parse().unwrap()]);
    let mut store = Store::new(PeerId::random(), policy, StdRng::seed_from_u64(1));
    store.announce(vec!["/ip4/10.0.0.1/tcp/5001".parse().unwrap()]);
    store
}

/// As it comes from the network: no two messages share a byte.
fn key(n: usize) -> RecordKey {
    let mut key = vec![0x12, 0x20];
    key.extend_from_slice(&[0; 24]);
    key.extend_from_slice(&n.to_be_bytes());
    RecordKey::from(key)
}

fn record(n: usize, provider: PeerId, now: Instant) -> ProviderRecord {
    ProviderRecord {
        key: key(n),
        provider,
        expires: Some((now + RECORD_LIFE).into_std()),
        addresses: vec!["/ip4/10.0.0.2/tcp/5001".parse().unwrap()],
    }
}

#[test]
fn an_own_key_costs_a_third_of_a_kilobyte() {
    const KEYS: usize = 20_000;
    let now = Instant::now();
    let (mut store, mut schedule) = (store(), Schedule::default());

    let ((), bytes) = cost(|| {
        for n in 0..KEYS {
            schedule.add(key(n), now);
        }
        for key in schedule.due(now, KEYS) {
            let rng = &mut StdRng::seed_from_u64(1);
            store.insert(record_of(&key, store.me), now).unwrap();
            schedule.renewed(&[key], now, rng);
        }
    });

    println!("{KEYS} own keys: {} bytes each", bytes / KEYS);
    assert_eq!(store.provided().count(), KEYS);
    assert!(bytes < KEYS * 350, "{} bytes each", bytes / KEYS);
}

fn record_of(key: &RecordKey, provider: PeerId) -> ProviderRecord {
    ProviderRecord::new(key.clone(), provider, Vec::new())
}

#[test]
fn what_remote_records_take_is_bounded_and_comes_back() {
    const PEERS: usize = 200;
    // records, providers of each key, bytes for each record at most
    for (records, providers, most) in [
        (MAX_REMOTE_KEYS, 1, 240),
        (200_000, 2, 140),
        (200_000, 10, 65),
        (200_000, 50, 40),
        (MAX_REMOTE_RECORDS, 4, 90),
    ] {
        let (mut store, now) = (store(), Instant::now());
        let peers: Vec<PeerId> = (0..PEERS).map(|_| PeerId::random()).collect();

        let ((), bytes) = cost(|| {
            for n in 0..records / providers {
                for p in 0..providers {
                    let provider = peers[(n + p * 3) % PEERS];
                    store.insert(record(n, provider, now), now).unwrap();
                }
            }
        });
        let kept: usize = store.remote.values().map(Vec::len).sum();
        let ((), left) = cost(|| store.sweep(now + RECORD_LIFE));

        println!(
            "{records} records, {providers} to a key: {} bytes each, {} KiB in all",
            bytes / records,
            bytes >> 10,
        );
        assert_eq!((kept, store.records), (records, 0));
        assert!(bytes < records * most, "{} bytes each", bytes / records);
        assert_eq!(store.remote.len() + store.peers.slots.len(), 0);
        let freed = left.wrapping_neg();
        assert!(freed > bytes / 10 * 9, "{freed} of {bytes} bytes freed");
    }
}
