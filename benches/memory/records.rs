//! Peers that tell the node under measurement what they hold, as many as we like: clients of the DHT, whom nobody asks for
//! anything.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use futures::StreamExt as _;
use futures::future::try_join_all;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::kad::{self, RecordKey};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const KAD: StreamProtocol = StreamProtocol::new("/spegel/kad/1.0.0");
/// Announcements of one peer under way at once.
const AT_ONCE: usize = 16;

/// `peers` peers in the namespace of `from` tell `to` of `keys` keys each, and go.
pub async fn tell(
    namespace: PathBuf,
    from: Ipv4Addr,
    to: SocketAddr,
    peers: usize,
    keys: usize,
) -> Result<()> {
    let (done, told) = tokio::sync::oneshot::channel();
    // Sockets belong to the namespace of the thread that makes them.
    std::thread::spawn(move || {
        let all = || -> Result<()> {
            let namespace = File::open(namespace)?;
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind)?;
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build()?;
            runtime.block_on(async {
                let peers = (0..peers).map(|peer| one(peer, from, to, keys));
                try_join_all(peers).await.map(drop)
            })
        };
        let _ = done.send(all());
    });
    told.await.context("the peers' thread panicked")?
}

async fn one(number: usize, from: Ipv4Addr, to: SocketAddr, keys: usize) -> Result<()> {
    let mut swarm = swarm(keys)?;
    let me = Multiaddr::from(from).with(Protocol::Tcp(5001));
    swarm.add_external_address(me);
    let to = Multiaddr::from(to.ip()).with(Protocol::Tcp(to.port()));
    swarm.dial(to.clone())?;
    let node = loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    };
    swarm.behaviour_mut().add_address(&node, to);
    let (mut begun, mut done) = (0, 0);
    while done < keys {
        while begun < keys && begun - done < AT_ONCE {
            swarm.behaviour_mut().start_providing(key(number, begun))?;
            begun += 1;
        }
        if let SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed {
            result: kad::QueryResult::StartProviding(result),
            ..
        }) = swarm.select_next_some().await
        {
            result.map_err(|error| anyhow!("{error}"))?;
            done += 1;
        }
    }
    Ok(())
}

fn swarm(keys: usize) -> Result<Swarm<kad::Behaviour<MemoryStore>>> {
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_behaviour(|keypair| {
            let me = keypair.public().to_peer_id();
            let room = MemoryStoreConfig {
                max_provided_keys: keys,
                ..MemoryStoreConfig::default()
            };
            let store = MemoryStore::with_config(me, room);
            let mut config = kad::Config::new(KAD);
            config.set_provider_publication_interval(None);
            let mut kad = kad::Behaviour::with_config(me, store, config);
            // Nobody is to look for anything here.
            kad.set_mode(Some(kad::Mode::Client));
            kad
        })?
        .build();
    Ok(swarm)
}

/// A multihash as that of any content: sha2-256, 32 bytes.
fn key(peer: usize, number: usize) -> RecordKey {
    use sha2::{Digest as _, Sha256};
    let mut multihash = vec![0x12, 0x20];
    multihash.extend_from_slice(&Sha256::digest(format!("{peer} {number}")));
    RecordKey::from(multihash)
}
