use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::op::ResponseCode;

use super::dns::fake::{Answer, NameServer};
use super::*;

const NAME: &str = "peili.example.";

/// Asks one name, of which this is known.
async fn name_server(answer: Answer) -> Bootstrapper {
    let server = NameServer::start().await;
    server.set_both(NAME, answer);
    names(&server, &[NAME])
}

fn names(server: &NameServer, names: &[&str]) -> Bootstrapper {
    let domains = names.iter().map(|name| Domain {
        name: name.to_string(),
        port: 5001,
    });
    Bootstrapper::Dns {
        resolver: server.resolver(&[]),
        domains: domains.collect(),
    }
}

fn v4(range: std::ops::RangeInclusive<u8>) -> Vec<IpAddr> {
    range.map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect()
}

#[tokio::test]
async fn three_of_all_addresses_of_both_families_are_tried_and_not_always_the_same() {
    let v6 = (1..=8).map(|n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
    let dns = name_server(Answer::Addresses(v4(1..=8).into_iter().chain(v6).collect())).await;

    let mut seen = HashSet::new();
    for _ in 0..20 {
        let found = dns.find(&[]).await.unwrap();
        assert_eq!(found.candidates.len(), 3);
        // And others, for the case that these are silent.
        assert_eq!(found.others.len(), 12);
        assert!(
            found
                .others
                .iter()
                .all(|other| !found.candidates.contains(other))
        );
        seen.extend(found.candidates.iter().map(Multiaddr::to_string));
    }

    assert!(seen.len() > 8, "{seen:?}");
    assert!(
        seen.iter()
            .any(|a| a.starts_with("/ip4/10.0.0.") && a.ends_with("/tcp/5001"))
    );
    assert!(
        seen.iter()
            .any(|a| a.starts_with("/ip6/fd00::") && a.ends_with("/tcp/5001"))
    );
}

#[tokio::test]
async fn a_name_without_addresses_says_that_nobody_else_is_there() {
    for answer in [
        Answer::Addresses(vec![]),
        Answer::Code(ResponseCode::NXDomain),
    ] {
        let dns = name_server(answer).await;

        let found = dns.find(&[]).await.unwrap();

        assert_eq!(found.candidates, []);
        assert!(found.authoritative);
    }
}

#[tokio::test]
async fn a_node_that_finds_only_itself_is_alone() {
    let own = "10.0.0.1:5001".parse().unwrap();
    let dns = name_server(Answer::Addresses(v4(1..=1))).await;

    let alone = dns.find(&[own]).await.unwrap();
    assert_eq!((alone.candidates, alone.authoritative), (vec![], true));
    assert_eq!(dns.find(&[]).await.unwrap().candidates.len(), 1);
}

#[tokio::test]
async fn a_name_server_in_trouble_is_an_error_and_no_answer() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let dns = name_server(Answer::Code(code)).await;

        let error = dns.find(&[]).await.unwrap_err().to_string();

        assert!(error.contains("peili.example."), "{error}");
    }
}

#[tokio::test]
async fn of_several_names_each_gives_some_and_one_that_fails_does_not_harm() {
    let server = NameServer::start().await;
    server.set_both("large.test.", Answer::Addresses(v4(10..=200)));
    server.set_both("small.test.", Answer::Addresses(v4(1..=1)));
    let here = "/ip4/10.0.0.1/tcp/5001".parse().unwrap();
    let both = names(&server, &["large.test.", "small.test."]);
    let found = both.find(&[]).await.unwrap();
    assert_eq!(found.candidates.len(), 4);
    assert!(found.candidates.contains(&here), "{found:?}");
    assert_eq!(found.trouble, None);

    server.set_both("large.test.", Answer::Code(ResponseCode::ServFail));
    let found = both.find(&[]).await.unwrap();
    assert_eq!(found.candidates, std::slice::from_ref(&here));
    assert!(
        found
            .trouble
            .unwrap()
            .contains("cannot resolve large.test.: ")
    );

    // A name server that hangs for one of them does not hold up the other one.
    server.set_both("large.test.", Answer::Silence);
    let begun = Instant::now();
    let found = both.find(&[]).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(found.candidates, [here]);
    assert!(found.trouble.is_some());

    // This node is alone behind one name, and nobody knows who is behind the other.
    server.set_both("large.test.", Answer::Code(ResponseCode::ServFail));
    let own = "10.0.0.1:5001".parse().unwrap();
    let found = both.find(&[own]).await.unwrap();
    assert_eq!((found.candidates, found.authoritative), (vec![], false));

    server.set_both("small.test.", Answer::Code(ResponseCode::ServFail));
    let error = both.find(&[]).await.unwrap_err().to_string();
    assert!(
        error.contains("large.test.") && error.contains("small.test."),
        "{error}"
    );
}

#[tokio::test]
async fn static_addresses_are_all_tried_except_our_own() {
    let list = "/ip4/10.0.0.1/tcp/5001, /ip4/10.0.0.2/tcp/5001,/ip4/10.0.0.1/tcp/5002,\
                /ip6/fd00::1/tcp/5001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN,\
                /ip6/::ffff:10.0.0.1/tcp/5001";
    let list = list
        .split(',')
        .map(|text| parse_address(text.trim()).unwrap());
    let bootstrapper = Bootstrapper::new(Bootstrap::Static(list.collect())).unwrap();

    let own = "10.0.0.1:5001".parse().unwrap();
    let found = bootstrapper.find(&[own]).await.unwrap();

    let candidates: Vec<String> = found.candidates.iter().map(Multiaddr::to_string).collect();
    assert_eq!(candidates.len(), 3, "{candidates:?}");
    assert!(!candidates.contains(&"/ip4/10.0.0.1/tcp/5001".to_string()));
}

#[test]
fn a_wrong_address_is_refused_with_what_is_wrong() {
    for (text, reason) in [
        ("10.0.0.1:5001", ""),
        ("/dns4/peili/tcp/5001", "must begin with /ip4/"),
        ("/ip4/10.0.0.1", "/tcp/"),
        ("/ip4/10.0.0.1/tcp/0", "/tcp/"),
        ("/ip4/10.0.0.1/udp/5001/quic-v1", "/tcp/"),
        ("/ip4/10.0.0.1/tcp/5001/ws", "only /p2p/"),
        ("/ip4/10.0.0.256/tcp/5001", ""),
    ] {
        let error = parse_address(text).unwrap_err().to_string();

        assert!(error.contains(reason), "{text}: {error}");
    }
}
