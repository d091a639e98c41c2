use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::Resolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record};
use tokio::net::UdpSocket;

use super::*;

/// A name server that knows the same addresses for every name.
async fn name_server(code: ResponseCode, ips: Vec<IpAddr>) -> Bootstrapper {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, asker)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let question = request.queries[0].clone();
            let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
            answer.metadata.message_type = MessageType::Response;
            answer.metadata.response_code = code;
            answer.add_query(question.clone());
            for ip in &ips {
                let data = match ip {
                    IpAddr::V4(ip) => RData::A((*ip).into()),
                    IpAddr::V6(ip) => RData::AAAA((*ip).into()),
                };
                if data.record_type() == question.query_type() {
                    answer.add_answer(Record::from_rdata(question.name().clone(), 5, data));
                }
            }
            let _ = socket.send_to(&answer.to_vec().unwrap(), asker).await;
        }
    });

    let mut connection = ConnectionConfig::udp();
    connection.port = address.port();
    let server = NameServerConfig::new(address.ip(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.options_mut().cache_size = 0;
    builder.options_mut().attempts = 1;
    builder.options_mut().try_tcp_on_error = false;
    Bootstrapper::Dns {
        resolver: Box::new(builder.build().unwrap()),
        domain: "peili.example.".into(),
        port: 5001,
    }
}

#[tokio::test]
async fn three_of_all_addresses_of_both_families_are_tried_and_not_always_the_same() {
    let v4 = (1..=8).map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
    let v6 = (1..=8).map(|n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)));
    let dns = name_server(ResponseCode::NoError, v4.chain(v6).collect()).await;

    let mut seen = HashSet::new();
    for _ in 0..20 {
        let found = dns.find(&[]).await.unwrap();
        assert_eq!(found.candidates.len(), 3);
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
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        let dns = name_server(code, vec![]).await;

        let found = dns.find(&[]).await.unwrap();

        assert_eq!(found.candidates, []);
        assert!(found.authoritative);
    }
}

#[tokio::test]
async fn a_node_that_finds_only_itself_is_alone() {
    let own = "10.0.0.1:5001".parse().unwrap();
    let dns = name_server(ResponseCode::NoError, vec!["10.0.0.1".parse().unwrap()]).await;

    assert_eq!(dns.find(&[own]).await.unwrap().candidates, []);
    assert_eq!(dns.find(&[]).await.unwrap().candidates.len(), 1);
}

#[tokio::test]
async fn a_name_server_in_trouble_is_an_error_and_no_answer() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let dns = name_server(code, vec![]).await;

        let error = dns.find(&[]).await.unwrap_err().to_string();

        assert!(error.contains("peili.example."), "{error}");
    }
}

#[tokio::test]
async fn static_addresses_are_all_tried_except_our_own() {
    let list = "/ip4/10.0.0.1/tcp/5001, /ip4/10.0.0.2/tcp/5001,/ip4/10.0.0.1/tcp/5002,\
                /ip6/fd00::1/tcp/5001/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN,\
                /ip6/::ffff:10.0.0.1/tcp/5001";
    let bootstrapper = Bootstrapper::new(Bootstrap::parse_static(list).unwrap()).unwrap();

    let own = "10.0.0.1:5001".parse().unwrap();
    let found = bootstrapper.find(&[own]).await.unwrap();

    let candidates: Vec<String> = found.candidates.iter().map(Multiaddr::to_string).collect();
    assert_eq!(candidates.len(), 3, "{candidates:?}");
    assert!(!candidates.contains(&"/ip4/10.0.0.1/tcp/5001".to_string()));
}

#[test]
fn every_wrong_address_is_named_with_what_is_wrong() {
    for (text, reason) in [
        ("10.0.0.1:5001", ""),
        ("/dns4/peili/tcp/5001", "must begin with /ip4/"),
        ("/ip4/10.0.0.1", "/tcp/"),
        ("/ip4/10.0.0.1/tcp/0", "/tcp/"),
        ("/ip4/10.0.0.1/udp/5001/quic-v1", "/tcp/"),
        ("/ip4/10.0.0.1/tcp/5001/ws", "only /p2p/"),
        ("/ip4/10.0.0.256/tcp/5001", ""),
    ] {
        let list = format!("/ip4/10.0.0.1/tcp/5001,{text}");
        let errors = Bootstrap::parse_static(&list).unwrap_err();

        assert_eq!(errors.len(), 1);
        let error = errors[0].to_string();
        assert!(error.contains(text) && error.contains(reason), "{error}");
        assert!(error.contains("/ip4/10.0.0.1/tcp/5001"), "{error}");
    }
}
