//! Records that are told: for others, and by the hundred thousand.

use libp2p::kad::RecordKey;
use libp2p::{Multiaddr, PeerId};
use peili::oci::Key;
use peili::routing::Router as _;
use peili::routing::kad::place;
use peili::routing::messenger::Meeting;
use peili::testing::conformance::routing::{all, content, eventually};
use peili::testing::noise;
use prost::Message as _;

use crate::liar::{KAD, Liar};
use crate::whole::Peili;

/// Of go-libp2p-kad-dht's `dht.proto`, what ADD_PROVIDER has.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Told {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub key: Vec<u8>,
    #[prost(message, repeated, tag = "9")]
    pub providers: Vec<Provider>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Provider {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub addresses: Vec<Vec<u8>>,
}

/// The message that says so, with its length before it.
pub fn add_provider(key: &RecordKey, provider: PeerId, at: &[Multiaddr]) -> Vec<u8> {
    const ADD_PROVIDER: i32 = 2;
    let message = Told {
        kind: ADD_PROVIDER,
        key: key.to_vec(),
        providers: vec![Provider {
            id: provider.to_bytes(),
            addresses: at.iter().map(Multiaddr::to_vec).collect(),
        }],
    };
    message.encode_length_delimited_to_vec()
}

/// Under which content is recorded.
pub fn record_key(key: &Key) -> RecordKey {
    let Key::Content(digest) = key else {
        panic!("{key} is no content")
    };
    place(&Meeting::Content(digest.clone()))
}

#[tokio::test]
async fn a_node_tells_what_it_has_itself_and_nothing_for_others() {
    let node = Peili::start("127.0.9.11", None).await;
    let holder = Peili::start("127.0.9.12", Some(&node.router())).await;
    let liar = Liar::at("/ip4/127.0.9.13/tcp/0").await;
    liar.dial(node.router()).await;
    node.node.knows(2).await;
    let (mine, others) = (content("the liar's own"), content("others'"));
    let at: Vec<Multiaddr> = vec!["/ip4/127.0.9.14/tcp/5001".parse().unwrap()];

    let mut words = add_provider(&record_key(&others), holder.id(), &at);
    words.extend(add_provider(&record_key(&others), PeerId::random(), &at));
    words.extend(add_provider(&record_key(&others), node.id(), &at));
    words.extend(add_provider(&record_key(&mine), liar.id, &at));
    liar.says(node.id(), KAD, words).await.unwrap();

    // They were read one after the other.
    let found = eventually("its own is there", async || {
        let found = all(&node.node.kad, &mine).await;
        (!found.is_empty()).then_some(found)
    })
    .await;
    assert_eq!(found[0].id.as_str(), liar.id.to_base58());
    assert_eq!(all(&node.node.kad, &others).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_tells_of_thousands_of_keys_the_others_find_what_they_look_for() {
    const RECORDS: usize = 20_000;
    const STREAM: usize = 500;
    let node = Peili::start("127.0.9.21", None).await;
    let holder = Peili::start("127.0.9.22", Some(&node.router())).await;
    let liar = Liar::at("/ip4/127.0.9.23/tcp/0").await;
    liar.dial(node.router()).await;
    node.node.knows(2).await;
    let at: Vec<Multiaddr> = vec!["/ip4/127.0.9.23/tcp/5001".parse().unwrap()];

    let flood = async {
        for stream in 0..RECORDS / STREAM {
            let mut words = Vec::new();
            for n in 0..STREAM {
                let key = content(&format!("{stream} {n}"));
                words.extend(add_provider(&record_key(&key), liar.id, &at));
            }
            // The end of the stream says that all of it was read.
            liar.says(node.id(), KAD, words).await.unwrap();
        }
    };
    let honest = async {
        let mut found = 0;
        for n in 0..10 {
            let layer = noise(10_000, n);
            let digest = holder.holds(layer.clone()).await;
            found += usize::from(
                eventually("the layer comes", async || {
                    let answer = node.blob(&digest).await;
                    (answer.status == 200).then_some(answer)
                })
                .await
                .body
                    == layer,
            );
        }
        found
    };
    let ((), found) = tokio::join!(flood, honest);

    assert_eq!(found, 10);
    let last = content(&format!("{} {}", RECORDS / STREAM - 1, STREAM - 1));
    assert!(
        !all(&node.node.kad, &last).await.is_empty(),
        "the flood came"
    );
    let ours = content("ours");
    holder.node.kad.advertise(vec![ours.clone()]).await.unwrap();
    eventually("what is told afterwards is found", async || {
        (!all(&node.node.kad, &ours).await.is_empty()).then_some(())
    })
    .await;
}
