use rand::SeedableRng;

use super::*;
use crate::routing::kad::records::RECORD_LIFE;

fn store() -> (Store, Instant) {
    let policy = Policy::of(&["10.0.0.1".parse().unwrap()]);
    let rng = StdRng::seed_from_u64(1);
    let mut store = Store::new(PeerId::random(), policy, rng);
    store.announce(vec!["/ip4/10.0.0.1/tcp/5001".parse().unwrap()]);
    (store, Instant::now())
}

fn key(n: u32) -> RecordKey {
    RecordKey::new(&n.to_be_bytes())
}

fn record(n: u32, provider: PeerId, told: Instant) -> ProviderRecord {
    ProviderRecord {
        key: key(n),
        provider,
        expires: Some((told + RECORD_LIFE).into_std()),
        addresses: vec!["/ip4/10.0.0.2/tcp/5001".parse().unwrap()],
    }
}

fn providers(store: &Store, n: u32, now: Instant) -> Vec<PeerId> {
    let answer = store.answer(&key(n), now);
    answer.into_iter().map(|record| record.provider).collect()
}

#[test]
fn our_own_record_is_kept_and_answered_however_many_others_there_are() {
    let (mut store, now) = store();
    for _ in 0..100 {
        store.insert(record(1, PeerId::random(), now), now).unwrap();
    }

    store.insert(record(1, store.me, now), now).unwrap();

    assert_eq!(store.provided().count(), 1);
    let answer = store.answer(&key(1), now);
    assert_eq!(answer.len(), ANSWER);
    let own = answer.iter().find(|record| record.provider == store.me);
    assert_eq!(own.unwrap().addresses, store.own_addresses);
}

#[test]
fn different_askers_hear_of_different_providers() {
    let (mut store, now) = store();
    for _ in 0..60 {
        store.insert(record(1, PeerId::random(), now), now).unwrap();
    }

    let answers: Vec<_> = (0..10).map(|_| providers(&store, 1, now)).collect();

    assert!(answers.iter().all(|answer| answer.len() == ANSWER));
    let all: HashSet<_> = answers.into_iter().flatten().collect();
    assert!(all.len() > 2 * ANSWER, "{}", all.len());
}

#[test]
fn a_full_key_forgets_who_has_been_silent_longest() {
    let (mut store, now) = store();
    let first = PeerId::random();
    store.insert(record(1, first, now), now).unwrap();
    for second in 1..=MAX_PER_KEY as u64 {
        let later = now + Duration::from_secs(second);
        store
            .insert(record(1, PeerId::random(), later), later)
            .unwrap();
    }

    let told = &store.remote[&key(1)];
    assert_eq!(told.len(), MAX_PER_KEY);
    let slot = store.peers.slot(&first).unwrap();
    assert!(told.iter().all(|told| told.peer != slot));
}

#[test]
fn an_expired_record_is_not_answered_and_is_swept_with_its_peer() {
    let (mut store, now) = store();
    let (old, new) = (PeerId::random(), PeerId::random());
    store.insert(record(1, old, now), now).unwrap();
    let later = now + RECORD_LIFE;
    store.insert(record(2, new, later), later).unwrap();

    assert_eq!(providers(&store, 1, now), [old]);
    assert_eq!(providers(&store, 1, later), []);
    store.sweep(later);

    assert_eq!(store.remote.len(), 1);
    assert_eq!(store.peers.slots.len(), 1);
    let another = PeerId::random();
    store.insert(record(1, another, later), later).unwrap();
    assert_eq!(store.peers.peers.len(), 2, "the slot is used again");
    assert_eq!(providers(&store, 1, later), [another]);
    assert_eq!(providers(&store, 2, later), [new]);
}

#[test]
fn a_peer_that_is_gone_is_hidden_until_it_is_heard_of_or_a_minute_is_over() {
    let (mut store, now) = store();
    let peer = PeerId::random();
    store.insert(record(1, peer, now), now).unwrap();

    store.gone(peer, now);
    assert_eq!(providers(&store, 1, now), []);
    assert_eq!(providers(&store, 1, now + GONE_FOR), [peer]);

    store.heard(&peer);
    assert_eq!(providers(&store, 1, now), [peer]);

    store.gone(peer, now);
    store.insert(record(2, peer, now), now).unwrap();
    assert_eq!(providers(&store, 1, now), [peer], "a new record is news");
}

#[test]
fn addresses_that_nobody_can_use_are_not_kept_and_the_newest_count() {
    let (mut store, now) = store();
    let peer = PeerId::random();
    let mut first = record(1, peer, now);
    first.addresses = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.0.0.3/tcp/1",
        "/ip6/fe80::1/tcp/1",
    ]
    .map(|address| address.parse().unwrap())
    .to_vec();
    store.insert(first, now).unwrap();
    assert_eq!(
        store.addresses(&peer),
        ["/ip4/10.0.0.3/tcp/1".parse().unwrap()]
    );

    store.insert(record(2, peer, now), now).unwrap();
    let mut silent = record(3, peer, now);
    silent.addresses.clear();
    store.insert(silent, now).unwrap();

    let moved = ["/ip4/10.0.0.2/tcp/5001".parse().unwrap()];
    assert_eq!(store.addresses(&peer), moved);
    assert_eq!(store.answer(&key(1), now)[0].addresses, moved);
}

#[test]
fn a_million_records_of_one_peer_take_nothing_from_the_others() {
    const HONEST: u32 = 200;
    const KEYS: u32 = 100;
    let (mut store, now) = store();
    let honest: Vec<PeerId> = (0..HONEST).map(|_| PeerId::random()).collect();
    let greedy = PeerId::random();
    let tell = |store: &mut Store, n: u32, keys: std::ops::Range<u32>| {
        for key in keys {
            let of = record(key * HONEST + n, honest[n as usize], now);
            store.insert(of, now).unwrap();
        }
    };
    let bounded = |store: &Store| {
        assert!(store.remote.len() <= MAX_REMOTE_KEYS);
        assert!(store.records <= MAX_REMOTE_RECORDS);
        let counted: u32 = store.peers.records.iter().sum();
        assert_eq!(counted as usize, store.records);
    };
    // Half of them are there before it, half come when it is at work, and it goes on.
    let mut refused = 0;
    for n in 0..HONEST / 2 {
        tell(&mut store, n, 0..KEYS);
    }
    for n in 0..1_000_000 {
        let flood = record(u32::MAX - n, greedy, now);
        refused += u32::from(store.insert(flood, now).is_err());
        if n % 10_000 == 9_999 {
            tell(&mut store, HONEST / 2 + n / 10_000, 0..KEYS);
        }
    }
    bounded(&store);
    assert!(refused > 100_000, "{refused}");

    for n in 0..HONEST * KEYS {
        let provider = honest[(n % HONEST) as usize];
        assert_eq!(providers(&store, n, now), [provider], "key {n}");
    }
    // Nor by telling that it has what they have.
    for n in 0..HONEST * KEYS {
        let _ = store.insert(record(n, greedy, now), now);
        let provider = honest[(n % HONEST) as usize];
        assert!(providers(&store, n, now).contains(&provider), "key {n}");
    }
    bounded(&store);
    let own = record(7, store.me, now);
    assert!(store.insert(own, now).is_ok());
}

#[test]
fn those_who_tell_of_the_same_keys_all_make_room() {
    let (mut store, now) = store();
    let greedy = [PeerId::random(), PeerId::random(), PeerId::random()];
    for n in 0..MAX_REMOTE_KEYS as u32 {
        for peer in greedy {
            store.insert(record(n, peer, now), now).unwrap();
        }
    }
    let one = PeerId::random();

    store.insert(record(u32::MAX, one, now), now).unwrap();

    assert_eq!(providers(&store, u32::MAX, now), [one]);
    assert!(store.remote.len() < MAX_REMOTE_KEYS - MAX_REMOTE_KEYS / FREED);
}

#[test]
fn who_has_told_the_most_is_cut_to_what_the_next_has() {
    // records of each, how many are to go, what is left to each
    for (counts, excess, share) in [
        (vec![100], 10, 90),
        (vec![100, 10], 50, 50),
        (vec![100, 10], 90, 10),
        (vec![100, 10], 100, 5),
        (vec![50, 50, 1], 50, 25),
        (vec![5, 0, 0], 5, 0),
        (vec![], 5, 0),
    ] {
        assert_eq!(level(counts.clone(), excess), share, "{counts:?} {excess}");
    }
}

#[test]
fn withdrawing_leaves_the_others() {
    let (mut store, now) = store();
    let peer = PeerId::random();
    store.insert(record(1, peer, now), now).unwrap();
    store.insert(record(1, store.me, now), now).unwrap();

    store.forget(&key(1), &store.me.clone());
    assert_eq!(providers(&store, 1, now), [peer]);
    store.forget(&key(1), &peer);
    assert_eq!(providers(&store, 1, now), []);
}

#[test]
fn values_are_refused() {
    let (mut store, _) = store();
    assert!(store.put(Record::new(key(1), vec![1])).is_err());
    assert_eq!(store.records().count(), 0);
}

#[test]
fn a_peer_that_left_is_hidden_until_it_connects_again_or_minutes_are_over() {
    let (mut store, now) = store();
    let peer = PeerId::random();
    store.insert(record(1, peer, now), now).unwrap();
    let hidden = |store: &Store, at| providers(store, 1, at).is_empty();

    store.left(peer, now);
    assert!(hidden(&store, now + GONE_FOR));
    // It was on its way when the goodbye was.
    store.heard(&peer);
    store.insert(record(1, peer, now), now).unwrap();
    assert!(hidden(&store, now));
    // A refusal says nothing new.
    store.gone(peer, now);
    assert!(hidden(&store, now + GONE_FOR) && store.has_left(&peer));
    assert!(!hidden(&store, now + LEFT_FOR));

    store.met(&peer);
    assert!(!hidden(&store, now));
}

#[test]
fn the_number_of_records_is_bounded_and_a_full_store_is_shared_by_all() {
    let (mut store, now) = store();
    let peers: Vec<PeerId> = (0..=MAX_PER_KEY).map(|_| PeerId::random()).collect();
    let keys = (MAX_REMOTE_RECORDS / MAX_PER_KEY) as u32;
    for n in 0..keys {
        for peer in &peers[..MAX_PER_KEY] {
            store.insert(record(n, *peer, now), now).unwrap();
        }
    }
    assert_eq!(store.records, MAX_REMOTE_RECORDS);

    // All have told as much as all others.
    assert!(store.insert(record(keys, peers[0], now), now).is_err());
    // Who knows a key still hears news of it.
    let later = now + GONE_FOR;
    let newcomer = peers[MAX_PER_KEY];
    store.insert(record(0, newcomer, later), later).unwrap();
    assert_eq!(store.records, MAX_REMOTE_RECORDS);
    // A newcomer gets in.
    store.insert(record(keys, newcomer, later), later).unwrap();
    assert_eq!(providers(&store, keys, later), [newcomer]);
    assert!(store.records < MAX_REMOTE_RECORDS);
}
