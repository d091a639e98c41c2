//! Nobody sends this node where no node can be: not by records, not by tables, not by what it says of itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use peili::oci::{Digest, Key};
use peili::testing::conformance::routing::{all, content, eventually};
use peili::testing::noise;

use crate::liar::{KAD, Liar};
use crate::place::{Place, Traps};
use crate::records::{add_provider, record_key};
use crate::registry::{Hostile, Says};
use crate::whole::{Peili, REGISTRY};

/// The port of routers.
const ROUTER: u16 = 5001;

/// Where no node of a cluster is: other nodes' loopback, link-local addresses, clouds' metadata.
pub const FORBIDDEN: [&str; 9] = [
    "127.0.0.1",
    "127.8.9.10",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "::1",
    "fd00:ec2::254",
    "fd20:ce::254",
];
/// The same, as they may also be written.
const DISGUISED: [&str; 7] = [
    "0.0.0.0",
    "::",
    "::ffff:169.254.169.254",
    "::ffff:127.0.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "fe80::1",
];
/// Where the true holder is said to be, and is not.
const ELSEWHERE: &str = "10.9.0.8";
/// A node may be here, and none is: that somebody comes shows that those before were believed as far as they could be.
const DECOY: &str = "10.9.0.9";

pub fn place() -> Option<Place> {
    let on_lo = [
        "169.254.169.254/32",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "fe80::1/64",
    ];
    Place::with(&on_lo)
}

pub async fn traps() -> Traps {
    let traps = Traps::default();
    for ip in FORBIDDEN {
        let ip: IpAddr = ip.parse().unwrap();
        let ports = [80, ROUTER, REGISTRY];
        traps.set(ports.map(|port| SocketAddr::new(ip, port))).await;
    }
    traps
}

fn told() -> Vec<Multiaddr> {
    let mut told = Vec::new();
    for ip in FORBIDDEN.iter().chain(&DISGUISED) {
        let ip: IpAddr = ip.parse().unwrap();
        for port in [80, ROUTER, REGISTRY] {
            told.push(Multiaddr::from(ip).with(Protocol::Tcp(port)));
        }
    }
    for text in [
        "/dns4/localhost/tcp/5001",
        "/dns/localhost/tcp/5001",
        "/dnsaddr/localhost/tcp/5001",
        "/ip4/127.0.0.1/tcp/5001/ws",
        "/ip4/127.0.0.1/tcp/5001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
    ] {
        told.push(text.parse().unwrap());
    }
    told
}

fn at(ip: &str, port: u16) -> Multiaddr {
    let ip: IpAddr = ip.parse().unwrap();
    Multiaddr::from(ip).with(Protocol::Tcp(port))
}

#[test]
fn nobody_sends_a_node_to_the_metadata_service_or_to_itself() {
    let Some(place) = place() else { return };
    place.run(async || {
        let traps = traps().await;
        let ip: IpAddr = DECOY.parse().unwrap();
        traps
            .set([ROUTER, REGISTRY].map(|port| SocketAddr::new(ip, port)))
            .await;
        let elsewhere = SocketAddr::new(ELSEWHERE.parse().unwrap(), REGISTRY);
        traps.set([elsewhere]).await;
        let node = Peili::start("10.9.0.1", None).await;
        let holder = Peili::start("10.9.0.2", Some(&node.router())).await;
        let layer = noise(300_000, 1);
        let digest = holder.holds(layer.clone()).await;
        let liar = Liar::at("/ip4/10.9.0.3/tcp/0").await;
        // Too busy, and names others.
        let others: Vec<&str> = FORBIDDEN.iter().chain(&DISGUISED).copied().collect();
        let busy = format!(
            "HTTP/1.1 503 Busy\ncontent-length: 0\nx-peili-holders: {}",
            others.join(", ")
        );
        let busy = Hostile::at("10.9.0.3:5907", Says::Once(Says::head(&busy))).await;

        // In what it says of itself, which has room for 4 KiB.
        let told = told();
        let own: Vec<Multiaddr> = told.iter().step_by(3).cloned().collect();
        liar.does(|swarm| {
            own.into_iter()
                .for_each(|at| swarm.add_external_address(at))
        })
        .await;
        // In records: of others, of the true holder, of this node, and of itself. Twenty go into an answer; anew for each
        // question, as who was not reached is forgotten for a while.
        let everything = told.clone();
        let lie = || {
            let mut lies = vec![
                (PeerId::random(), vec![at(DECOY, ROUTER)]),
                (holder.id(), vec![at(ELSEWHERE, ROUTER)]),
                (node.id(), told.clone()),
                (PeerId::random(), vec![node.router()]),
                (liar.id, vec!["/ip4/10.9.0.3/tcp/1".parse().unwrap()]),
            ];
            let others = told.chunks(4).map(|at| (PeerId::random(), at.to_vec()));
            lies.extend(others);
            assert!(lies.len() <= 20, "{}", lies.len());
            *liar.lies.lock().unwrap() = lies;
        };
        lie();
        for known in [&node, &holder] {
            liar.dial(known.router()).await;
            known.node.knows(2).await;
        }
        // In its table, of which others are told when they look for who is close to a key; a bucket has room for twenty.
        let decoys = vec![at(DECOY, ROUTER); 8];
        let table = decoys.iter().chain(&told);
        let table = table.map(|at| (PeerId::random(), at.clone()));
        liar.knows(table.collect()).await;
        let made_up = Digest::sha256(b"nobody has it");
        let key = record_key(&Key::Content(made_up.clone()));
        for told in everything.chunks(8) {
            let record = add_provider(&key, liar.id, told);
            liar.says(node.id(), KAD, record).await.unwrap();
        }

        let first = eventually("the layer comes", async || {
            let answer = node.blob(&digest).await;
            (answer.status == 200).then_some(answer)
        })
        .await;
        assert!(first.body == layer);
        for n in 0..20 {
            lie();
            let digest = Digest::sha256(&[n]);
            let found = all(&node.node.kad, &Key::Content(digest.clone())).await;
            let ips = found.iter().flat_map(|peer| &peer.registry);
            let to_itself: Vec<_> = ips.filter(|at| at.ip() == node.node.ip).collect();
            assert_eq!(to_itself, Vec::<&SocketAddr>::new());
            lie();
            let missed = node.blob(&digest).await;
            assert_eq!(missed.status, 404, "{}", missed.head);
            assert!(missed.took < Duration::from_secs(6), "{:?}", missed.took);
        }
        let missed = node.blob(&made_up).await;
        assert_eq!(missed.status, 404, "{}", missed.head);
        for tag in ["v1", "latest"] {
            let path = format!("/v2/app/manifests/{tag}?ns=registry.test");
            assert_eq!(node.get(&path, &[]).await.status, 404);
        }

        // It is believed, as far as it may be; and what is forbidden is not asked.
        assert!(!busy.asked().is_empty());
        for port in [ROUTER, REGISTRY] {
            assert!(
                traps.knocks_at(ip, port) > 0,
                "nobody at the decoy's {port}"
            );
        }
        let mut knocks = traps.knocks();
        knocks.retain(|at| at.ip() != ip);
        assert_eq!(knocks, []);
    });
}

#[tokio::test]
async fn where_a_connected_node_is_it_says_itself_and_nobody_else() {
    let node = Peili::start("127.0.9.101", None).await;
    let holder = Peili::start("127.0.9.102", Some(&node.router())).await;
    let liar = Liar::at("/ip4/127.0.9.103/tcp/0").await;
    let elsewhere = "/ip4/127.0.9.104/tcp/5001".parse().unwrap();
    *liar.lies.lock().unwrap() = vec![(holder.id(), vec![elsewhere])];
    liar.dial(node.router()).await;
    node.node.knows(2).await;

    let key = content("the liar alone says that the holder has it");
    let named = eventually("the liar is heard", async || {
        let found = all(&node.node.kad, &key).await;
        let id = holder.id().to_base58();
        found.into_iter().find(|peer| peer.id.as_str() == id)
    })
    .await;
    let ips: Vec<IpAddr> = named.registry.iter().map(SocketAddr::ip).collect();
    assert_eq!(ips, [holder.node.ip]);
}
