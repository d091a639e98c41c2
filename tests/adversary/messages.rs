//! Messages that are none, too many of them, and too many who come.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use libp2p::StreamProtocol;
use libp2p::kad::RecordKey;
use peili::testing::conformance::routing::eventually;
use peili::testing::noise;
use tokio::net::TcpSocket;

use crate::liar::{FLIGHT, KAD, Liar};
use crate::place::Place;
use crate::records::add_provider;
use crate::whole::Peili;

/// A varint of LEB128.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// With its length before it, as Kademlia has it.
fn kad(message: &[u8]) -> Vec<u8> {
    [varint(message.len() as u64), message.to_vec()].concat()
}

/// With its length before it, as meeting points have it.
fn flight(length: u32, message: &[u8]) -> Vec<u8> {
    [&length.to_be_bytes(), message].concat()
}

fn malformed() -> Vec<(&'static str, StreamProtocol, Vec<u8>)> {
    let nested = (0..6000).fold(Vec::new(), |inner: Vec<u8>, _| {
        if inner.len() > 12_000 {
            inner
        } else {
            [vec![0x4a], kad(&inner)].concat()
        }
    });
    let zeros = vec![0; 80_000];
    let standing = [0x0a, 3, 0x0a, 1, b'x'];
    let report: Vec<u8> = standing.repeat(10_000);
    let report = [vec![0x12], kad(&report[..])].concat();
    vec![
        ("the longest length", KAD, varint(u64::MAX)),
        (
            "a length of 1 GiB",
            KAD,
            [varint(1 << 30), noise(1 << 16, 1)].concat(),
        ),
        ("more than 16 KiB", KAD, kad(&noise(17 << 10, 2))),
        ("a length without end", KAD, vec![0xff; 1000]),
        ("noise", KAD, kad(&noise(8000, 3))),
        ("nothing", KAD, kad(&[])),
        ("an unknown kind", KAD, kad(&[8, 99])),
        (
            "PUT_VALUE",
            KAD,
            kad(&[8, 0, 0x12, 1, b'k', 0x1a, 4, 0x0a, 2, b'k', b'k']),
        ),
        ("nested", KAD, kad(&nested)),
        (
            "a key of 15 KiB",
            KAD,
            add_provider(
                &RecordKey::new(&noise(15 << 10, 4)),
                libp2p::PeerId::random(),
                &[],
            ),
        ),
        ("a message too long", FLIGHT, flight(65_537, &zeros)),
        ("the longest", FLIGHT, flight(u32::MAX, &zeros)),
        ("noise", FLIGHT, flight(60_000, &noise(60_000, 5))),
        ("nothing", FLIGHT, flight(0, &[])),
        (
            "10,000 standings",
            FLIGHT,
            flight(report.len() as u32, &report),
        ),
        ("half a message", FLIGHT, flight(50_000, &zeros[..100])),
    ]
}

/// Both find what the other holds, at once.
async fn are_well(node: &Peili, holder: &Peili, seed: u64) {
    let layer = noise(20_000, seed);
    let digest = holder.holds(layer.clone()).await;
    let answer = eventually("the layer comes", async || {
        let answer = node.blob(&digest).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert!(answer.body == layer);
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_the_others_are_served() {
    let node = Peili::start("127.0.9.41", None).await;
    let holder = Peili::start("127.0.9.42", Some(&node.router())).await;
    let liar = Liar::at("/ip4/127.0.9.43/tcp/0").await;
    liar.dial(node.router()).await;
    node.node.knows(2).await;

    for (name, on, bytes) in malformed() {
        let answer = liar.says(node.id(), on.clone(), bytes);
        let answer = tokio::time::timeout(Duration::from_secs(15), answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("{on} {name}: neither an answer nor an end"));
        // An answer of Kademlia is a message; one of the meeting points never comes, except to a report.
        let length = answer.as_ref().map_or(0, Vec::len);
        assert!(length <= 16 << 10, "{on} {name}: {length} bytes");
    }
    are_well(&node, &holder, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_streams_of_one_peer_leave_the_others_theirs() {
    let node = Peili::start("127.0.9.51", None).await;
    let holder = Peili::start("127.0.9.52", Some(&node.router())).await;
    let liar = Liar::at("/ip4/127.0.9.53/tcp/0").await;
    liar.dial(node.router()).await;
    node.node.knows(2).await;

    let flood = async {
        for _ in 0..4 {
            // Half a message each, so that all wait for the rest; and whole ones that nobody understands.
            let streams = (0..400).map(|n| match n % 2 {
                0 => liar.says(node.id(), FLIGHT, flight(50_000, &[0; 20_000])),
                _ => liar.says(node.id(), KAD, kad(&noise(10_000, n))),
            });
            join_all(streams).await;
        }
    };
    let honest = async {
        for seed in 0..5 {
            are_well(&node, &holder, 200 + seed).await;
        }
    };
    tokio::join!(flood, honest);
    are_well(&node, &holder, 300).await;
}

#[tokio::test]
async fn who_says_too_much_of_itself_is_not_known_and_the_others_are_served() {
    /// Field `tag` of identify's message.
    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        [vec![tag << 3 | 2], kad(bytes)].concat()
    }
    let node = Peili::start("127.0.9.61", None).await;
    let holder = Peili::start("127.0.9.62", Some(&node.router())).await;
    let agent = field(6, &vec![b'a'; 1 << 20]);
    let address = libp2p::Multiaddr::from(SocketAddr::from(([10, 0, 0, 1], 1)).ip());
    let addresses = field(2, &address.to_vec()).repeat(100_000);
    let mut liars = Vec::new();
    for (n, identity) in [agent, addresses, noise(4000, 1), vec![0xff; 10]]
        .into_iter()
        .enumerate()
    {
        let identity = kad(&identity);
        let liar = Liar::that_says(&format!("/ip4/127.0.9.{}/tcp/0", 63 + n), Some(identity)).await;
        liar.dial(node.router()).await;
        let id = node.id();
        eventually("it is connected", async || {
            let connected = liar.does(move |swarm| swarm.is_connected(&id)).await;
            connected.then_some(())
        })
        .await;
        liars.push(liar);
    }

    are_well(&node, &holder, 400).await;
    let known = node.node.kad.neighbours().await;
    for liar in &liars {
        let name = liar.id.to_base58();
        assert!(known.iter().all(|it| it.peer.id.as_str() != name));
    }
}

#[tokio::test]
async fn one_peer_has_four_connections_however_often_it_calls() {
    let node = Peili::start("127.0.9.71", None).await;
    let liar = Liar::at("/ip4/127.0.9.73/tcp/0").await;
    liar.dial(node.router()).await;
    node.node.knows(1).await;
    for _ in 0..20 {
        liar.dial_again(node.id(), node.router()).await;
    }
    // A caller takes a connection for made before the other side has refused it.
    let id = node.id();
    eventually("all but four are refused", async || {
        let (pending, established) = liar
            .does(move |swarm| {
                assert!(swarm.is_connected(&id));
                let info = swarm.network_info();
                let counters = info.connection_counters();
                (counters.num_pending(), counters.num_established())
            })
            .await;
        (pending == 0 && established <= 4).then_some(())
    })
    .await;
}

/// Handshakes that never go on, from one address: there is room for others.
#[test]
fn silent_callers_of_one_address_leave_room_for_others() {
    const SILENT: usize = 1500;
    let Some(place) = Place::with(&[]) else {
        return;
    };
    place.run(async || {
        let node = Peili::start("10.9.0.1", None).await;
        let at = node.node.kad.listen_addrs()[0];
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("10.9.6.6:0".parse().unwrap()).unwrap();
            // One that is refused is closed, which is no error here.
            silent.push(socket.connect(at).await.unwrap());
        }
        let began = Instant::now();
        let holder = Peili::start("10.9.0.2", Some(&node.router())).await;
        node.node.knows(1).await;
        let took = began.elapsed();
        // Long before the first of the silent ones is given up.
        assert!(took < Duration::from_secs(3), "{took:?}");
        are_well(&node, &holder, 500).await;
        drop(silent);
    });
}
