//! What a thousand messages to one node cost, by whom they are carried: libp2p, bare HTTP, and HTTP in envelopes that prove
//! what a libp2p connection proves, which is who speaks at either end.
//!
//! Figures: `cargo test --all-features --test messages -- --nocapture`. Both ends are in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use libp2p::identity::{Keypair, PublicKey};
use libp2p::request_response::{self, Event, Message, ProtocolSupport};
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
use peili::routing::kad::messages::{Frames, PROTOCOL};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

const CALLERS: usize = 1000;
/// As long as a question about one content.
const MESSAGE: usize = 200;
/// For a connection that has been made, until the second message.
const IDLE: Duration = Duration::from_secs(120);

/// CPU time of this process since it began.
fn cpu() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

/// Both ends of a thousand connections are in this process.
fn raise_the_number_of_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit anybody may");
}

/// Lets all callers call in the same moment, once on connections that they make and once on those that they have.
struct Rounds {
    barrier: Barrier,
}

impl Rounds {
    fn new() -> Arc<Self> {
        let barrier = Barrier::new(CALLERS + 1);
        Arc::new(Self { barrier })
    }

    async fn report(&self, name: &str, callers: Vec<tokio::task::JoinHandle<[Duration; 2]>>) {
        let mut spent = Vec::new();
        for _ in 0..2 {
            self.barrier.wait().await;
            let before = cpu();
            self.barrier.wait().await;
            spent.push(cpu() - before);
        }
        let took = join_all(callers).await.into_iter().map(Result::unwrap);
        let took: Vec<[Duration; 2]> = took.collect();
        for (n, connections) in ["new", "existing"].into_iter().enumerate() {
            let mut took: Vec<Duration> = took.iter().map(|took| took[n]).collect();
            took.sort();
            println!(
                "{name:12} {connections:8} connections: p50 {:7.1} ms, p99 {:7.1} ms, {:.2} CPU s",
                took[CALLERS / 2].as_secs_f64() * 1e3,
                took[CALLERS * 99 / 100].as_secs_f64() * 1e3,
                spent[n].as_secs_f64(),
            );
        }
    }
}

trait Caller: Send + 'static {
    /// The answer to `message`.
    fn call(&mut self, message: Bytes) -> impl Future<Output = Bytes> + Send;
}

/// Calls twice, with all others.
async fn call_twice(rounds: Arc<Rounds>, mut caller: impl Caller, n: usize) -> [Duration; 2] {
    let mut took = [Duration::ZERO; 2];
    for took in &mut took {
        let message = Bytes::from(vec![n as u8; MESSAGE]);
        rounds.barrier.wait().await;
        let begin = Instant::now();
        let answer = caller.call(message.clone()).await;
        *took = begin.elapsed();
        assert_eq!(answer, message);
        rounds.barrier.wait().await;
    }
    took
}

type Messages = request_response::Behaviour<Frames>;

fn swarm() -> Swarm<Messages> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_| {
            let config = request_response::Config::default().with_request_timeout(IDLE);
            Messages::with_codec(Frames, [(PROTOCOL, ProtocolSupport::Full)], config)
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build()
}

/// A node that gives each message back.
async fn libp2p_echo() -> (PeerId, Multiaddr) {
    let mut swarm = swarm();
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let id = *swarm.local_peer_id();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(Event::Message {
                message:
                    Message::Request {
                        request, channel, ..
                    },
                ..
            }) = swarm.select_next_some().await
            {
                swarm
                    .behaviour_mut()
                    .send_response(channel, request)
                    .unwrap();
            }
        }
    });
    (id, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_are_answered_by_whatever_carries_their_messages() {
    raise_the_number_of_descriptors();

    let (callee, address) = libp2p_echo().await;
    let rounds = Rounds::new();
    let callers = (0..CALLERS).map(|n| {
        let caller = Libp2pCaller {
            swarm: swarm(),
            callee,
            address: address.clone(),
        };
        tokio::spawn(call_twice(rounds.clone(), caller, n))
    });
    let callers = callers.collect();
    rounds.report("libp2p", callers).await;

    for is_signed in [false, true] {
        let key = Keypair::generate_ed25519();
        let callee = key.public().to_peer_id();
        let address = http_echo(is_signed.then_some(key)).await;
        let rounds = Rounds::new();
        let callers = (0..CALLERS).map(|n| {
            let caller = HttpCaller {
                address,
                callee,
                key: is_signed.then(Keypair::generate_ed25519),
                connection: None,
            };
            tokio::spawn(call_twice(rounds.clone(), caller, n))
        });
        let callers = callers.collect();
        let name = if is_signed {
            "signed HTTP"
        } else {
            "bare HTTP"
        };
        rounds.report(name, callers).await;
    }
}

struct Libp2pCaller {
    swarm: Swarm<Messages>,
    callee: PeerId,
    address: Multiaddr,
}

impl Caller for Libp2pCaller {
    async fn call(&mut self, message: Bytes) -> Bytes {
        let at = vec![self.address.clone()];
        let calls = self.swarm.behaviour_mut();
        calls.send_request_with_addresses(&self.callee, message, at);
        loop {
            match self.swarm.select_next_some().await {
                SwarmEvent::Behaviour(Event::Message {
                    message: Message::Response { response, .. },
                    ..
                }) => return response,
                SwarmEvent::Behaviour(Event::OutboundFailure { error, .. }) => panic!("{error}"),
                _ => {}
            }
        }
    }
}

/// A message, who sends it, and the proof that it is for `callee` in answer to `nonce`.
struct Envelope;

impl Envelope {
    /// In bytes: a public key as libp2p writes it, a nonce, a signature.
    const KEY: usize = 36;
    const NONCE: usize = 16;
    const SIGNATURE: usize = 64;

    fn signed_part(callee: &[u8], nonce: &[u8], message: &[u8]) -> Vec<u8> {
        [b"/peili/flight/1", callee, nonce, message].concat()
    }

    fn seal(key: &Keypair, callee: &[u8], nonce: [u8; Self::NONCE], message: &[u8]) -> Bytes {
        let signature = key.sign(&Self::signed_part(callee, &nonce, message));
        let public = key.public().encode_protobuf();
        [&public, &nonce[..], &signature.unwrap(), message]
            .concat()
            .into()
    }

    /// Whose it is, its nonce and the message; None where it is not what it claims to be.
    fn open(callee: &[u8], bytes: &Bytes) -> Option<(PeerId, [u8; Self::NONCE], Bytes)> {
        let (key, rest) = bytes.split_at_checked(Self::KEY)?;
        let (nonce, rest) = rest.split_at_checked(Self::NONCE)?;
        let (signature, message) = rest.split_at_checked(Self::SIGNATURE)?;
        let key = PublicKey::try_decode_protobuf(key).ok()?;
        let signed = Self::signed_part(callee, nonce, message);
        key.verify(&signed, signature).then(|| {
            (
                key.to_peer_id(),
                nonce.try_into().unwrap(),
                bytes.slice_ref(message),
            )
        })
    }
}

#[test]
fn an_envelope_is_its_senders_alone_and_its_readers_alone() {
    let (key, nonce) = (Keypair::generate_ed25519(), [7; Envelope::NONCE]);
    let sealed = Envelope::seal(&key, b"callee", nonce, b"message");

    let opened = Envelope::open(b"callee", &sealed);

    let id = key.public().to_peer_id();
    assert_eq!(opened, Some((id, nonce, Bytes::from_static(b"message"))));
    assert_eq!(Envelope::open(b"another", &sealed), None);
    for at in [40, 60, sealed.len() - 1] {
        let mut forged = sealed.to_vec();
        forged[at] ^= 1;
        assert_eq!(Envelope::open(b"callee", &forged.into()), None, "{at}");
    }
}

/// Gives each message back; with a key, only to those who prove who they are, and proves who it is.
async fn http_echo(key: Option<Keypair>) -> SocketAddr {
    async fn echo(
        State(key): State<Option<Arc<Keypair>>>,
        body: Bytes,
    ) -> Result<Bytes, StatusCode> {
        let Some(key) = key else {
            return Ok(body);
        };
        let me = key.public().to_peer_id().to_bytes();
        let (caller, nonce, message) = Envelope::open(&me, &body).ok_or(StatusCode::FORBIDDEN)?;
        Ok(Envelope::seal(&key, &caller.to_bytes(), nonce, &message))
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = axum::Router::new()
        .fallback(echo)
        .with_state(key.map(Arc::new));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

struct HttpCaller {
    address: SocketAddr,
    callee: PeerId,
    key: Option<Keypair>,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Caller for HttpCaller {
    async fn call(&mut self, message: Bytes) -> Bytes {
        let nonce: [u8; Envelope::NONCE] = rand::random();
        let sent = match &self.key {
            Some(key) => Envelope::seal(key, &self.callee.to_bytes(), nonce, &message),
            None => message,
        };
        if self.connection.is_none() {
            let stream = TcpStream::connect(self.address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        let request = hyper::Request::post("/peili/flight/1").header("host", "x");
        let sender = self.connection.as_mut().unwrap();
        let request = request.body(Full::new(sent)).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        let Some(key) = &self.key else {
            return answer;
        };
        let me = key.public().to_peer_id().to_bytes();
        let (from, answered, message) = Envelope::open(&me, &answer).expect("a true envelope");
        assert_eq!((from, answered), (self.callee, nonce));
        message
    }
}
