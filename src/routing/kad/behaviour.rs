//! The protocols this node speaks, and with which settings.
//!
//! What a Peili and a Spegel node must agree on to find each other's content is here: noise and yamux over TCP, identify,
//! and Kademlia under Spegel's name with buckets of 20, always as a server. In a closed swarm there are no Spegels: noise is
//! followed by a proof there (`membership`).

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::upgrade;
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, Swarm, Transport, identify, kad, noise, ping, swarm, tcp, yamux};
use rand::rngs::StdRng;

use super::acquaintances::agent_version;
use super::addresses::Policy;
use super::inbound::{Capped, MAX_INBOUND, RUNNING};
use super::leave;
use super::membership::Membership;
use super::messages;
use super::records::RECORD_LIFE;
use super::store::Store;
use super::tell;
use super::transport::{Careful, Carrier};
use crate::membership::Members;

pub const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/spegel/kad/1.0.0");

/// Kademlia's k, as Spegel's nodes have it.
pub const REPLICATION: NonZeroUsize = NonZeroUsize::new(20).expect("20 is not 0");

/// Lookups end much sooner by themselves. This bounds announcements: libp2p waits 10 s for a peer that hangs, and a
/// busy swarm takes a while, so it leaves room for two of those.
const QUERY: Duration = Duration::from_secs(30);

/// TCP, noise, the proof of membership and yamux together. Milliseconds within a cluster; a host that drops packets is not waited for longer.
pub const DIAL: Duration = Duration::from_secs(5);

/// Kademlia keeps no connection alive. At 200 nodes, 5 s of idleness cost twice the CPU of 60 s, because every step of a
/// lookup dials again; a connection costs 46 KiB (measured).
const IDLE: Duration = Duration::from_secs(60);

/// In both directions. [`MAX_INBOUND`] is reached long before; the rest is this node's own dials, which its own work bounds.
const MAX_ESTABLISHED: u32 = 4096;

/// Two nodes that dial each other in the same moment have two connections for a while, after a restart four.
const MAX_PER_PEER: u32 = 4;

#[derive(NetworkBehaviour)]
pub struct Behaviour {
    limits: connection_limits::Behaviour,
    pub kad: Capped<kad::Behaviour<Store>>,
    pub leave: leave::Behaviour,
    pub messages: messages::Behaviour,
    pub tell: tell::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// What bytes go over.
pub fn tcp() -> tcp::tokio::Transport {
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
}

/// A swarm that does not listen yet and announces nothing. With `members` it is closed to everybody else.
pub fn swarm(
    carrier: impl Carrier,
    keypair: &Keypair,
    policy: Policy,
    zone: Option<&str>,
    members: Option<Arc<Members>>,
    rng: StdRng,
) -> Result<Swarm<Behaviour>, noise::Error> {
    let me = keypair.public().to_peer_id();
    let noise = noise::Config::new(keypair)?;
    let connecting = Careful::new(carrier, policy).upgrade(upgrade::Version::V1Lazy);
    let transport = match members {
        None => connecting
            .authenticate(noise)
            .multiplex(yamux::Config::default())
            .timeout(DIAL)
            .boxed(),
        Some(members) => connecting
            .authenticate(Membership::new(noise, members, me))
            .multiplex(yamux::Config::default())
            .timeout(DIAL)
            .boxed(),
    };

    let store = Store::new(me, policy, rng);
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_replication_factor(REPLICATION)
        .set_query_timeout(QUERY)
        .set_provider_record_ttl(Some(RECORD_LIFE))
        // One job for all keys at once and without jitter; `records` has its own.
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None)
        // Who may come into the routing table is decided where peers say who they are (`events`).
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        // Every bootstrap refreshes every bucket, hundreds of requests per node; the event loop knows when.
        .set_periodic_bootstrap_interval(None);
    let mut kad = kad::Behaviour::with_config(me, store, config);
    kad.set_mode(Some(kad::Mode::Server));

    let identify = identify::Config::new("/peili/1".into(), keypair.public())
        .with_agent_version(agent_version(zone))
        // Otherwise every interface is announced, loopback and the container bridge among them.
        .with_hide_listen_addrs(true);
    let limits = ConnectionLimits::default()
        .with_max_established(Some(MAX_ESTABLISHED))
        .with_max_established_per_peer(Some(MAX_PER_PEER));
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        kad: Capped::new(kad, MAX_INBOUND, RUNNING),
        leave: leave::Behaviour::default(),
        messages: messages::behaviour(),
        tell: tell::Behaviour::default(),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
    };
    let config = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE)
        // Every request has a stream of its own: asked first whether its protocol is understood, the other side costs each
        // step of a lookup a second round trip. Now the request goes with the question. Whoever does not understand it says
        // so as before, and the stream fails when it is read.
        .with_substream_upgrade_protocol_override(upgrade::Version::V1Lazy);
    Ok(Swarm::new(transport, behaviour, me, config))
}

/// The port of the listener that `ip` reaches.
pub fn port_for(ip: IpAddr, listening: &[SocketAddr]) -> Option<u16> {
    let exact = listening.iter().find(|socket| socket.ip() == ip);
    let any = || {
        listening.iter().find(|socket| {
            socket.ip().is_unspecified() && (socket.is_ipv6() || socket.is_ipv4() == ip.is_ipv4())
        })
    };
    // Behind a host port the announced IP is on no interface of ours.
    let first = || listening.first();
    exact
        .or_else(any)
        .or_else(first)
        .map(|socket| socket.port())
}
