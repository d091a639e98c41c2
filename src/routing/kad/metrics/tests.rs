use super::*;
use crate::oci::{Digest, ImageName};
use libp2p::identity::Keypair;
use libp2p::swarm::ConnectionId;

fn tag(name: &str) -> Key {
    let name: ImageName = name.parse().expect(name);
    Key::Tag(name.tag.expect("a tag"))
}

fn page(registry: &Registry, metrics: &Metrics) -> String {
    let page = metrics::Page::new(registry.clone(), metrics.libp2p());
    page.text().expect("text")
}

#[test]
fn what_is_told_is_counted_by_kind_and_registry() {
    let registry = Registry::new();
    let (metrics, mut advertised) = (Metrics::new(&registry), Advertised::default());
    for key in [
        Key::Content(Digest::sha256(b"one")),
        Key::Content(Digest::sha256(b"two")),
        tag("docker.io/library/a:1"),
        tag("docker.io/library/a:2"),
        tag("ghcr.io/b:1"),
    ] {
        advertised.count(&key, 1);
    }
    metrics.advertised(&mut advertised);
    let before = page(&registry, &metrics);
    advertised.count(&tag("ghcr.io/b:1"), -1);
    advertised.count(&tag("docker.io/library/a:1"), -1);
    metrics.advertised(&mut advertised);
    let after = page(&registry, &metrics);

    for (page, content, docker, ghcr) in [(before, 2, 2, Some(1)), (after, 2, 1, None)] {
        for (labels, count) in [
            ("kind=\"content\",registry=\"\"", Some(content)),
            ("kind=\"tag\",registry=\"docker.io\"", Some(docker)),
            ("kind=\"tag\",registry=\"ghcr.io\"", ghcr),
        ] {
            let series = format!("peili_advertised_keys{{{labels}}}");
            let found = page.lines().find_map(|line| line.strip_prefix(&series));
            let found = found.map(|count| count.trim().parse().expect("a number"));
            assert_eq!(found, count, "{labels}\n{page}");
        }
    }
}

#[test]
fn names_of_registries_are_bounded_and_nothing_is_lost_beyond_them() {
    let registry = Registry::new();
    let (metrics, mut advertised) = (Metrics::new(&registry), Advertised::default());
    for round in 0..5 {
        // Another hundred each time, and one that has the most.
        for n in 0..100 {
            advertised.count(&tag(&format!("r{round}-{n}.example:5000/a:1")), 1);
            advertised.count(&tag(&format!("docker.io/library/a{round}:{n}")), 1);
        }
        metrics.advertised(&mut advertised);

        let page = page(&registry, &metrics);
        let series: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("peili_advertised_keys{kind=\"tag\""))
            .collect();
        assert_eq!(series.len(), MAX_REGISTRIES + 1, "{series:?}");
        let total: i64 = series
            .iter()
            .map(|line| line.rsplit_once(' ').expect("a value").1)
            .map(|count| count.parse::<i64>().expect("a number"))
            .sum();
        assert_eq!(total, 200 * (round + 1));
        let most = format!("registry=\"docker.io\"}} {}", 100 * (round + 1));
        assert!(
            series.iter().any(|line| line.ends_with(&most)),
            "{series:?}"
        );
    }
}

#[test]
fn what_a_peer_says_of_itself_makes_no_labels() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let received = |n: u16| {
        let odd = |rest: &str| -> Multiaddr {
            let nested = "/ws".repeat(usize::from(n % 50));
            format!("/dns4/x{n}.example/tcp/1{nested}{rest}")
                .parse()
                .expect("an address")
        };
        let info = identify::Info {
            public_key: Keypair::generate_ed25519().public(),
            protocol_version: format!("/x/{n}"),
            agent_version: format!("x\"\n{n}"),
            listen_addrs: vec![
                odd(""),
                odd("/p2p-circuit"),
                "/ip4/192.0.2.7/tcp/5001".parse().expect("an address"),
                "/ip4/192.0.2.7/udp/5001/quic-v1"
                    .parse()
                    .expect("an address"),
            ],
            protocols: Vec::new(),
            observed_addr: odd(""),
            signed_peer_record: None,
        };
        identify::Event::Received {
            connection_id: ConnectionId::new_unchecked(usize::from(n)),
            peer_id: info.public_key.to_peer_id(),
            info,
        }
    };
    for n in 0..200 {
        let event = received(n);
        if let identify::Event::Received { info, .. } = &event {
            let address = info.observed_addr.clone();
            metrics.swarm(&SwarmEvent::NewExternalAddrCandidate { address });
        }
        metrics.swarm(&SwarmEvent::Behaviour(BehaviourEvent::Identify(event)));
    }

    let page = page(&registry, &metrics);
    let of = |family: &str| -> Vec<&str> {
        page.lines()
            .filter(|line| line.starts_with(&format!("{family}{{")))
            .collect()
    };
    assert_eq!(
        of("libp2p_identify_remote_listen_addresses"),
        ["libp2p_identify_remote_listen_addresses{listen_address=\"/ip4/tcp\"} 200"]
    );
    assert_eq!(
        of("libp2p_identify_local_observed_addresses"),
        ["libp2p_identify_local_observed_addresses{observed_address=\"\"} 200"]
    );
    assert!(of("libp2p_swarm_external_addr_candidates_total").is_empty());
    assert!(
        !page.contains("example") && !page.contains("x\\\""),
        "{page}"
    );
}
