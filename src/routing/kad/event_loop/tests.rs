use libp2p::kad::ProviderRecord;
use libp2p::kad::store::RecordStore;

use super::super::behaviour::REPLICATION;
use super::super::records::RECORD_LIFE;
use super::super::{Config, bind};
use super::events::has_place;
use super::*;
use crate::readiness::Readiness;

async fn event_loop() -> EventLoop {
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        advertise: vec!["127.0.0.1".parse().unwrap()],
        registry_port: 5000,
        data_dir: None,
        bootstrap: None,
        resolve_timeout: Duration::from_millis(20),
        zone: None,
        members: None,
    };
    let metrics = Metrics::new(&prometheus::Registry::new());
    let guard = Readiness::new().guard("routing");
    bind(config, metrics, guard).await.unwrap().event_loop
}

#[tokio::test]
async fn what_has_expired_is_dropped_without_anybody_asking_for_it() {
    let mut event_loop = event_loop().await;
    let (peer, now) = (PeerId::random(), Instant::now());
    let store = event_loop.swarm.behaviour_mut().kad.store_mut();
    for n in 0..100_u8 {
        let key = RecordKey::new(&[n]);
        let address = "/ip4/127.0.0.2/tcp/5001".parse().unwrap();
        let record = ProviderRecord::new(key, peer, vec![address]);
        store.add_provider(record).unwrap();
    }

    event_loop.work(now + RECORD_LIFE - SWEEP);
    assert_eq!(
        event_loop.swarm.behaviour_mut().kad.store_mut().remote(),
        100
    );
    // It sleeps no longer than until the next sweep.
    assert!(event_loop.wake_at() <= now + RECORD_LIFE);
    event_loop.work(now + RECORD_LIFE + SWEEP);
    assert_eq!(event_loop.swarm.behaviour_mut().kad.store_mut().remote(), 0);
}

#[tokio::test]
async fn who_has_a_place_keeps_it_and_nobody_else_comes_into_a_full_bucket() {
    let mut event_loop = event_loop().await;
    let kad = &mut event_loop.swarm.behaviour_mut().kad;
    // Half of all nodes are in the furthest bucket.
    let mut peers: Vec<PeerId> = Vec::new();
    while peers.len() <= REPLICATION.get() {
        let peer = PeerId::random();
        let bucket = kad.kbucket(peer).expect("another node");
        if bucket.range().0.ilog2() == Some(255) {
            peers.push(peer);
        }
    }
    let newcomer = peers.pop().expect("one too many");
    for peer in &peers {
        assert!(has_place(kad, *peer));
        kad.add_address(peer, "/ip4/127.0.0.2/tcp/5001".parse().unwrap());
    }

    assert!(!has_place(kad, newcomer));
    assert!(peers.iter().all(|peer| has_place(kad, *peer)));
    kad.remove_peer(&peers[7]);
    assert!(has_place(kad, newcomer));
}
