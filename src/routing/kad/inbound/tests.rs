use std::net::{IpAddr, SocketAddr};

use futures::StreamExt;
use libp2p::Swarm;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::routing::kad::addresses::{Policy, multiaddr};
use crate::routing::kad::behaviour::{self, Behaviour};

const SECOND: Duration = Duration::from_secs(1);

fn id(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

#[test]
fn whoever_has_been_idle_for_longest_makes_room_and_nobody_who_is_not() {
    // cap, seconds at which something last ran on connections 0, 1, 2; who goes at second 20
    for (cap, ran, goes) in [
        (4, vec![0, 1, 2], Ok(None)),
        (3, vec![2, 0, 1], Ok(Some(1))),
        (3, vec![9, 10, 11], Ok(Some(0))),
        (3, vec![11, 10, 12], Ok(Some(1))),
        (3, vec![11, 12, 13], Err(Full(3))),
    ] {
        let start = Instant::now();
        let mut guests = Guests::new(cap, RUNNING);
        for (n, at) in ran.iter().enumerate() {
            guests.came(id(n), PeerId::random(), None, start);
            guests.ran(id(n), start + *at * SECOND);
        }

        let admitted = guests.admit(None, start + 20 * SECOND);

        let gone = admitted.map(|evicted| evicted.map(|(_, id)| id));
        assert_eq!(gone, goes.map(|n| n.map(id)), "{ran:?}");
        let left = ran.len() - usize::from(matches!(gone, Ok(Some(_))));
        assert_eq!(guests.connected.len(), left);
    }
}

#[test]
fn what_this_node_asks_a_peer_keeps_all_its_connections() {
    let (start, peer) = (Instant::now(), PeerId::random());
    let mut guests = Guests::new(2, RUNNING);
    guests.came(id(0), peer, None, start);
    guests.came(id(1), peer, None, start);

    guests.ran_with(peer, start + 20 * SECOND);
    assert_eq!(guests.admit(None, start + 21 * SECOND), Err(Full(2)));
    guests.went(id(0));
    assert_eq!(guests.admit(None, start + 21 * SECOND), Ok(None));
}

#[test]
fn the_address_with_the_most_busy_connections_makes_room_for_others() {
    let (now, ip) = (Instant::now(), |n: u8| Some(IpAddr::from([10, 0, 0, n])));
    // the addresses of connections 0, 1, 2, ..., who comes, who goes for it
    for (from, newcomer, goes) in [
        (vec![1, 2, 2, 2], 3, Some(1)),
        (vec![1, 2, 2, 2], 1, Some(1)),
        (vec![1, 1, 1, 1], 1, None),
        (vec![1, 2, 3, 4], 5, None),
    ] {
        let mut guests = Guests::new(from.len(), RUNNING);
        for (n, from) in from.iter().enumerate() {
            let at = now + n as u32 * SECOND / 10;
            guests.came(id(n), PeerId::random(), ip(*from), at);
        }

        let admitted = guests.admit(ip(newcomer), now + SECOND);

        let gone = admitted.ok().flatten().map(|(_, id)| id);
        assert_eq!(gone, goes.map(id), "{from:?} {newcomer}");
    }
}

#[test]
fn one_address_may_have_as_many_handshakes_under_way_as_are_free_for_all_others() {
    let ip = |n: u8| Some(IpAddr::from([10, 0, 0, n]));
    let mut guests = Guests::new(1, RUNNING);
    let mut next = 0;
    let mut begin = |guests: &mut Guests, of: u8| {
        next += 1;
        guests.calls(id(next), ip(of)).is_ok()
    };
    let of_one = (0..2 * MAX_PENDING).filter(|_| begin(&mut guests, 1));
    assert_eq!(of_one.count(), MAX_PENDING / 2);

    // As many others as are left, each with one.
    let others = (0..200).filter(|n| begin(&mut guests, 2 + *n as u8));
    assert_eq!(others.count(), 200);
    assert!(!begin(&mut guests, 1));
    guests.pending.clear();
    assert!(begin(&mut guests, 1));
}

fn swarm() -> Swarm<Behaviour> {
    let policy = Policy::of(&["127.0.0.1".parse().unwrap()]);
    let rng = StdRng::seed_from_u64(1);
    behaviour::swarm(
        behaviour::tcp(),
        &Keypair::generate_ed25519(),
        policy,
        None,
        None,
        rng,
    )
    .unwrap()
}

/// Polls all of them until the first says something that `seen` knows.
async fn until<T>(
    swarms: &mut [Swarm<Behaviour>],
    mut seen: impl FnMut(usize, SwarmEvent<behaviour::BehaviourEvent>) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let polled = swarms
                .iter_mut()
                .enumerate()
                .map(|(n, swarm)| Box::pin(async move { (n, swarm.select_next_some().await) }));
            let ((n, event), _, _) = futures::future::select_all(polled).await;
            if let Some(seen) = seen(n, event) {
                return seen;
            }
        }
    };
    tokio::time::timeout(20 * SECOND, search).await.unwrap()
}

#[tokio::test]
async fn a_newcomer_gets_in_and_an_idle_guest_goes_for_it() {
    const CAP: usize = 3;
    let mut swarms: Vec<Swarm<Behaviour>> = (0..=CAP + 1).map(|_| swarm()).collect();
    let kad = &mut swarms[0].behaviour_mut().kad;
    (kad.guests.cap, kad.guests.running) = (CAP, Duration::ZERO);
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    swarms[0].listen_on(multiaddr(any)).unwrap();
    let address = until(&mut swarms, |_, event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address),
        _ => None,
    })
    .await;

    for guest in 1..=CAP {
        swarms[guest].dial(address.clone()).unwrap();
        until(&mut swarms, |n, event| {
            let established = matches!(event, SwarmEvent::ConnectionEstablished { .. });
            (n == 0 && established).then_some(())
        })
        .await;
    }
    swarms[CAP + 1].dial(address).unwrap();
    let lost = until(&mut swarms, |n, event| match event {
        SwarmEvent::ConnectionClosed { peer_id, .. } if n == 0 => Some(peer_id),
        _ => None,
    })
    .await;

    // Which of them has been idle for longest is the table's to say: here each may ask the host for something of its own
    // at any time, half a second after it has come.
    let (host, others) = swarms.split_first().unwrap();
    let (newcomer, guests) = others.split_last().unwrap();
    assert!(host.is_connected(newcomer.local_peer_id()));
    for guest in guests.iter().map(Swarm::local_peer_id) {
        assert_eq!(host.is_connected(guest), *guest != lost, "{guest}");
    }
}
