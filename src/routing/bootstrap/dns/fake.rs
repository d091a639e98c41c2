//! A name server on loopback, over UDP and TCP, for tests: it knows what it is told and misbehaves on command.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::Resolver;

#[derive(Clone, Debug)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Code(ResponseCode),
    /// No packet.
    Silence,
}

#[derive(Clone, Default)]
struct Zone {
    /// What is not in it does not exist.
    names: Arc<Mutex<HashMap<(String, RecordType), Answer>>>,
    asked: Arc<AtomicUsize>,
}

pub struct NameServer {
    address: SocketAddr,
    zone: Zone,
}

impl NameServer {
    pub async fn start() -> Self {
        let zone = Zone::default();
        // The same number must be free for both.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let known = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, asker)) = udp.recv_from(&mut buffer).await {
                let Some(mut answer) = answer(&buffer[..length], &known) else {
                    continue;
                };
                let bytes = answer.to_vec().unwrap();
                // RFC 1035, 4.2.1; nobody here is told of a larger limit.
                if bytes.len() <= 512 {
                    let _ = udp.send_to(&bytes, asker).await;
                } else {
                    answer.metadata.truncation = true;
                    answer.answers.clear();
                    let _ = udp.send_to(&answer.to_vec().unwrap(), asker).await;
                }
            }
        });
        let known = zone.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let known = known.clone();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut bytes = vec![0; length.into()];
                        stream.read_exact(&mut bytes).await.unwrap();
                        let Some(answer) = answer(&bytes, &known) else {
                            continue;
                        };
                        let bytes = answer.to_vec().unwrap();
                        stream.write_u16(bytes.len() as u16).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                });
            }
        });
        Self { address, zone }
    }

    /// What is answered from now on for a name (with its dot) and a family.
    pub fn set(&self, name: &str, family: RecordType, answer: Answer) {
        let mut names = self.zone.names.lock().unwrap();
        names.insert((name.to_string(), family), answer);
    }

    /// How many questions there have been.
    pub fn asked(&self) -> usize {
        self.zone.asked.load(Ordering::SeqCst)
    }

    /// The same for both families; addresses are those of each.
    pub fn set_both(&self, name: &str, answer: Answer) {
        for family in [RecordType::A, RecordType::AAAA] {
            let answer = match &answer {
                Answer::Addresses(ips) => {
                    let of = |ip: &&IpAddr| ip.is_ipv4() == (family == RecordType::A);
                    Answer::Addresses(ips.iter().filter(of).copied().collect())
                }
                other => other.clone(),
            };
            self.set(name, family, answer);
        }
    }

    /// One that asks here, with this search list.
    pub fn resolver(&self, search: &[&str]) -> Resolver {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut c| {
            c.port = self.address.port();
            c
        });
        let server = NameServerConfig::new(self.address.ip(), true, connections.into());
        let search = search.iter().map(|name| name.parse::<Name>().unwrap());
        let config = ResolverConfig::from_parts(None, search.collect(), vec![server]);
        let mut options = ResolverOpts::default();
        options.attempts = 1;
        options.ndots = 5;
        options.try_tcp_on_error = false;
        Resolver::new(config, options).unwrap()
    }
}

fn answer(request: &[u8], zone: &Zone) -> Option<Message> {
    let request = Message::from_vec(request).unwrap();
    let question = request.queries[0].clone();
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.add_query(question.clone());
    let key = (question.name().to_string(), question.query_type());
    zone.asked.fetch_add(1, Ordering::SeqCst);
    match zone.names.lock().unwrap().get(&key) {
        Some(Answer::Silence) => return None,
        Some(Answer::Code(code)) => answer.metadata.response_code = *code,
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Answer::Addresses(ips)) => {
            for ip in ips {
                let data = match ip {
                    IpAddr::V4(ip) => RData::A((*ip).into()),
                    IpAddr::V6(ip) => RData::AAAA((*ip).into()),
                };
                answer.add_answer(Record::from_rdata(question.name().clone(), 5, data));
            }
        }
    }
    Some(answer)
}
