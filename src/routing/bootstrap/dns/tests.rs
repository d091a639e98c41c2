use std::net::{Ipv4Addr, SocketAddr};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::net::TcpListener;

use super::fake::{Answer, NameServer};
use super::*;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

const SEARCH: [&str; 3] = ["a.svc.test.", "svc.test.", "test."];

#[test]
fn a_dot_at_the_end_switches_the_search_list_off_and_many_dots_come_first() {
    let search: Vec<Name> = SEARCH.iter().map(|name| name.parse().unwrap()).collect();
    for (name, ndots, names) in [
        ("peers.svc.test.", 5, vec!["peers.svc.test."]),
        (
            "peers",
            5,
            vec![
                "peers.a.svc.test.",
                "peers.svc.test.",
                "peers.test.",
                "peers.",
            ],
        ),
        (
            "b.peers",
            1,
            vec![
                "b.peers.",
                "b.peers.a.svc.test.",
                "b.peers.svc.test.",
                "b.peers.test.",
            ],
        ),
    ] {
        let found = candidates(name, &search, ndots).unwrap();
        let found: Vec<String> = found.iter().map(Name::to_string).collect();
        assert_eq!(found, names, "{name}");
    }
    // With a domain behind it this one would be longer than any name may be.
    let long = [
        "a".repeat(63),
        "b".repeat(63),
        "c".repeat(63),
        "d".repeat(55),
    ]
    .join(".");
    let found = candidates(&long, &search, 5).unwrap();
    assert!(
        found.len() < 4 && found.iter().all(Name::is_fqdn),
        "{found:?}"
    );
    assert!(candidates("a..b", &search, 5).is_err());
}

#[tokio::test]
async fn the_first_name_that_has_addresses_counts_with_both_families() {
    let server = NameServer::start().await;
    server.set_both(
        "peers.svc.test.",
        Answer::Addresses(ips(&["10.0.0.1", "fd00::1"])),
    );
    server.set_both("peers.test.", Answer::Addresses(ips(&["10.0.0.2"])));
    // It exists and has no records: the next one is tried.
    server.set_both("peers.a.svc.test.", Answer::Addresses(vec![]));
    let resolver = server.resolver(&SEARCH);

    let found = resolver.addresses("peers").await.unwrap();
    assert_eq!(found, ips(&["10.0.0.1", "fd00::1"]));
    let found = resolver.addresses("peers.test.").await.unwrap();
    assert_eq!(found, ips(&["10.0.0.2"]));
    for text in ["10.0.0.9", "fd00::9"] {
        assert_eq!(resolver.addresses(text).await.unwrap(), ips(&[text]));
    }
}

#[tokio::test]
async fn only_a_name_server_that_knows_it_says_that_there_is_nobody() {
    let server = NameServer::start().await;
    let resolver = server.resolver(&SEARCH);
    let both = |code| Answer::Code(code);
    assert_eq!(
        resolver.addresses("peers").await.unwrap(),
        [] as [IpAddr; 0]
    );

    // The right name fails, and the last one of the list does not exist.
    for answer in [both(ResponseCode::ServFail), both(ResponseCode::Refused)] {
        server.set_both("peers.svc.test.", answer);
        let error = resolver.addresses("peers").await.unwrap_err();
        assert!(matches!(error, LookupError::Server(_)), "{error}");
    }

    // One family does not exist, and the other one's packet is lost.
    server.set_both("peers.svc.test.", Answer::Addresses(vec![]));
    server.set(
        "peers.svc.test.",
        RecordType::AAAA,
        Answer::Code(ResponseCode::ServFail),
    );
    let error = resolver.addresses("peers.svc.test.").await.unwrap_err();
    assert!(matches!(error, LookupError::Server(_)), "{error}");

    // One family's addresses are better than none.
    let some = Answer::Addresses(ips(&["10.0.0.1"]));
    server.set("peers.svc.test.", RecordType::A, some);
    let found = resolver.addresses("peers").await.unwrap();
    assert_eq!(found, ips(&["10.0.0.1"]));
}

#[tokio::test]
async fn more_addresses_than_fit_a_datagram_are_all_found() {
    let server = NameServer::start().await;
    let many: Vec<IpAddr> = (0..1000_u32)
        .map(|n| Ipv4Addr::from_bits((10 << 24) + n).into())
        .collect();
    server.set_both("peers.test.", Answer::Addresses(many.clone()));

    let found = server.resolver(&[]).addresses("peers.test.").await.unwrap();

    assert_eq!(found, many);
}

#[tokio::test]
async fn a_connection_is_to_whoever_accepts_one() {
    let server = NameServer::start().await;
    let listener = TcpListener::bind("127.0.0.95:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    server.set_both(
        "one.test.",
        Answer::Addresses(ips(&["127.0.0.94", "127.0.0.95"])),
    );
    server.set_both("none.test.", Answer::Addresses(ips(&["127.0.0.94"])));
    let resolver = server.resolver(&[]);
    let connect = |host| resolver.connect(host, port, Duration::from_secs(9));

    let stream = connect("one.test.").await.unwrap();
    assert_eq!(
        stream.peer_addr().unwrap(),
        SocketAddr::from(([127, 0, 0, 95], port))
    );
    for (host, said) in [
        ("none.test.", "refused"),
        ("absent.test.", "has no address"),
    ] {
        let error = connect(host).await.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
