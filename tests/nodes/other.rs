//! A node of the DHT that is not ours, as Spegel's are: Kademlia and identify as libp2p has them, and no messages.

use libp2p::kad::store::MemoryStore;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, SwarmBuilder, identify, kad, noise, tcp, yamux};
use peili::routing::PeerId;
use tokio::sync::{mpsc, oneshot};

use super::multiaddr;

const KAD: libp2p::StreamProtocol = libp2p::StreamProtocol::new("/spegel/kad/1.0.0");

#[derive(NetworkBehaviour)]
struct Behaviour {
    kad: kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
}

/// Runs until its runtime ends. It knows only whom it is told, and looks for nobody by itself.
pub struct Other {
    id: libp2p::PeerId,
    pub address: Multiaddr,
    known: mpsc::UnboundedSender<(libp2p::PeerId, Multiaddr)>,
}

impl Other {
    /// At this address, with a free port, and with a connection to `seed`.
    pub async fn start(ip: &str, seed: Option<Multiaddr>) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|key| {
                let me = key.public().to_peer_id();
                let mut config = kad::Config::new(KAD);
                config.set_kbucket_inserts(kad::BucketInserts::Manual);
                let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
                kad.set_mode(Some(kad::Mode::Server));
                // What it says of itself is no zone: it is not ours.
                let identify = identify::Config::new("spegel/1".into(), key.public())
                    .with_agent_version("spegel/1;zone=north".into());
                Behaviour {
                    kad,
                    identify: identify::Behaviour::new(identify),
                }
            })
            .unwrap()
            .build();
        let at = multiaddr(format!("{ip}:0").parse().unwrap());
        swarm.listen_on(at).unwrap();
        let id = *swarm.local_peer_id();
        let (listens, address) = oneshot::channel();
        let (known, mut told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            use futures::StreamExt as _;
            let mut listens = Some(listens);
            loop {
                tokio::select! {
                    Some((peer, address)) = told.recv() => {
                        swarm.behaviour_mut().kad.add_address(&peer, address);
                    }
                    event = swarm.select_next_some() => {
                        let SwarmEvent::NewListenAddr { address, .. } = event else {
                            continue;
                        };
                        swarm.add_external_address(address.clone());
                        if let Some(seed) = &seed {
                            swarm.dial(seed.clone()).unwrap();
                        }
                        let _ = listens.take().map(|listens| listens.send(address));
                    }
                }
            }
        });
        Self {
            id,
            address: address.await.unwrap(),
            known,
        }
    }

    pub fn id(&self) -> PeerId {
        PeerId::new(self.id.to_base58())
    }

    /// From now on it names `other` to those who ask.
    pub fn knows(&self, other: &Self) {
        self.known.send((other.id, other.address.clone())).unwrap();
    }
}
