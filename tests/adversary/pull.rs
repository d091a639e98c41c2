//! A pull of a real containerd among neighbours that mean harm.

use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use peili::oci::Key;
use peili::testing::eventually;
use tokio::sync::oneshot;

use crate::addresses::FORBIDDEN;
use crate::lab::{ImageSpec, NodeOptions, PeiliOptions, lab_or_skip};
use crate::liar::{KAD, Liar};
use crate::place::inside;
use crate::records::{add_provider, record_key};
use crate::registry::{Hostile, Says};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the hostile registry of a neighbour says to every request, be it for a tag, a manifest or a layer.
fn harms() -> Vec<Says> {
    let forged = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;
    let head = |lines: &str| Says::head(&format!("HTTP/1.1 {lines}"));
    let named = FORBIDDEN.join(", ");
    vec![
        // A tag is whatever he says; here the registry is asked first.
        Says::Once(
            [
                head(&format!("200 OK\ncontent-length: {}", forged.len())),
                forged.into(),
            ]
            .concat(),
        ),
        Says::Once(head(
            "307 There\ncontent-length: 0\nlocation: http://169.254.169.254/",
        )),
        Says::Once(head(&format!(
            "503 Busy\ncontent-length: 0\nx-peili-holders: {named}"
        ))),
        Says::ForEver(
            head("200 OK\ntransfer-encoding: chunked"),
            b"1\r\nx\r\n".to_vec(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_pulls_the_registrys_image_among_neighbours_that_mean_harm() {
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("test/app:v1").index().layers([MIB; 3]);
    let image = lab.push(spec).await.unwrap();
    let registry = format!("http://{}", lab.registry.host());
    let options = PeiliOptions::default().unconfigured();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let node = lab.node(NodeOptions::default()).await.unwrap();
        let more = [
            "--mirrored-registries",
            registry.as_str(),
            "--tag-resolution",
            "upstream-first",
        ];
        node.peili()
            .configure(node.netns(), node.containerd(), &lab.registry.host(), &more)
            .await
            .unwrap();
        node.start_peili_with(&options).await.unwrap();
        nodes.push(node);
    }
    nodes[0].cri_pull(&image.reference()).await.unwrap();
    let mut ends = Vec::new();
    for says in harms() {
        let neighbour = lab.node(NodeOptions::default()).await.unwrap();
        let (ip, victims) = (neighbour.ip(), [nodes[0].ip(), nodes[1].ip()]);
        let (end, ended) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let digests = image.pulled().map(|blob| blob.digest.parse().unwrap());
        let keys: Vec<Key> = digests.map(Key::Content).collect();
        let thread = inside(neighbour.netns().file(), move || async move {
            let registry = Hostile::at(&format!("{ip}:5000"), says).await;
            let liar = Liar::at(&format!("/ip4/{ip}/tcp/5001")).await;
            let me: Multiaddr = format!("/ip4/{ip}/tcp/5001").parse().unwrap();
            for victim in victims {
                let at = format!("/ip4/{victim}/tcp/5001");
                liar.dial(at.parse().unwrap()).await;
            }
            let known = eventually("it is connected", PATIENCE, async || {
                let known = liar
                    .does(|swarm| swarm.connected_peers().copied().collect::<Vec<_>>())
                    .await;
                (known.len() == victims.len()).then_some(known)
            })
            .await;
            for victim in known {
                let told = |key| add_provider(&record_key(key), liar.id, std::slice::from_ref(&me));
                let all: Vec<u8> = keys.iter().flat_map(told).collect();
                liar.says(victim, KAD, all).await.unwrap();
            }
            let _ = ready.send(());
            let _ = ended.await;
            registry.asked().len()
        });
        is_ready.await.unwrap();
        ends.push((neighbour, end, thread));
    }
    let puller = &nodes[1];
    eventually(
        "the neighbours are known",
        Duration::from_secs(30),
        async || {
            let known = puller.metric("peili_peers", &[("state", "known")]).await;
            known.is_ok_and(|known| known >= 5.0).then_some(())
        },
    )
    .await;

    let began = Instant::now();
    puller.cri_pull(&image.reference()).await.unwrap();
    let took = began.elapsed();

    // containerd has checked every byte; and the tag is the registry's.
    assert!(puller.holds(&image.top().digest));
    assert!(took < Duration::from_secs(60), "{took:?}");
    let mut asked = 0;
    for (neighbour, end, thread) in ends {
        end.send(()).unwrap();
        asked += thread.join().unwrap();
        drop(neighbour);
    }
    assert!(asked > 0, "no neighbour was asked");
    println!("pulled in {took:?}, {asked} requests to neighbours that mean harm");
}
