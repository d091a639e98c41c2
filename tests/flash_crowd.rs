//! Nodes that start the same image in the same second: the registry is asked once, and nobody is worse off for it.
//!
//! On real containerds behind links that are as slow as links are. Figures for larger crowds: `make bench-crowd`.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use lab::process::eventually;
use lab::proxy::Rule;
use lab::registry::Served;
use lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, lab_or_skip};

const MIB: u64 = 1 << 20;
/// The kubelet tries a failed pull again after this, for the first time. Until then nobody asks.
const KUBELET: Duration = Duration::from_secs(10);

/// Cold nodes that know each other.
async fn crowd(lab: &Lab, nodes: usize) -> Vec<Node> {
    let crowd = (0..nodes).map(|_| lab.node(NodeOptions::default()));
    let crowd = try_join_all(crowd).await.unwrap();
    try_join_all(crowd.iter().map(Node::start_peili))
        .await
        .unwrap();
    for node in &crowd {
        let others = (nodes - 1) as f64;
        eventually("acquaintance", Duration::from_secs(20), async || {
            let known = node.metric("peili_peers", &[("state", "known")]).await?;
            Ok((known >= others).then_some(()))
        })
        .await
        .unwrap();
    }
    crowd
}

/// Copies of the image that left the registry since `before`, by their bytes.
async fn copies(lab: &Lab, image: &Image, before: &Served) -> f64 {
    let served = lab.registry.served().await.unwrap().since(before);
    let copies = served.bytes() as f64 / image.pulled_bytes() as f64;
    println!("{copies:.3} copies left the registry");
    copies
}

fn largest(image: &Image) -> String {
    let blobs = image.blobs();
    let size = |file: &std::path::Path| std::fs::metadata(file).unwrap().len();
    let largest = blobs.max_by_key(|blob| size(&blob.file)).unwrap();
    largest.digest.clone()
}

fn has_all(node: &Node, image: &Image) -> bool {
    image.blobs().all(|blob| node.holds(&blob.digest))
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_pull_at_once_take_one_copy_from_the_registry() {
    let lab = lab_or_skip!();
    let layers = ImageSpec::new("app:v1").busybox().layers([8 * MIB; 5]);
    let image = lab.push(layers).await.unwrap();
    let nodes = crowd(&lab, 3).await;
    lab.shape_registry(Some(20_000_000), Direction::Up).unwrap();
    let before = lab.registry.served().await.unwrap();

    let reference = image.reference();
    let pulls = join_all(nodes.iter().map(|node| node.cri_pull(&reference))).await;

    for pull in pulls {
        println!("{:?}", pull.unwrap().took);
    }
    let copies = copies(&lab, &image, &before).await;
    assert!(copies <= 1.05, "{copies:.3} copies left the registry");
    assert!(nodes.iter().all(|node| has_all(node, &image)));
    // What the registry did not send came from others, and is told so.
    let mut told = [0.0; 3];
    for node in &nodes {
        for (sum, (name, labels)) in told.iter_mut().zip([
            ("peili_registry_bytes_saved_total", &[][..]),
            ("peili_mirror_bytes_total", &[("source", "in_flight")]),
            ("peili_mirror_bytes_total", &[("source", "peer")]),
        ]) {
            *sum += node.metric(name, labels).await.unwrap();
        }
    }
    let [saved, in_flight, whole] = told;
    let spared = (nodes.len() as f64 - copies) * image.pulled_bytes() as f64;
    println!("saved {saved} of {spared}: {in_flight} in flight, {whole} from who had it whole");
    assert_eq!(saved, in_flight + whole);
    assert!(in_flight > 0.0);
    assert!(
        saved >= spared && saved <= 1.05 * spared,
        "{saved} of {spared}"
    );
}

/// Its own pull must fail, and nobody else's. It begins first, so that it leads what it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_the_registry_refuses_holds_nobody_up() {
    let lab = lab_or_skip!();
    let image = ImageSpec::new("app:v1").busybox().layers([8 * MIB; 3]);
    let image = lab.push(image).await.unwrap();
    let nodes = crowd(&lab, 3).await;
    let refused = Rule::Unauthorized {
        client: nodes[0].ip().into(),
        digests: image.blobs().map(|b| b.digest.clone()).collect(),
    };
    lab.registry.front(vec![refused]).await.unwrap();
    lab.shape_registry(Some(20_000_000), Direction::Up).unwrap();
    let before = lab.registry.served().await.unwrap();

    let reference = image.reference();
    let first = nodes[0].cri_pull(&reference);
    let others = async {
        // Once the first has asked for a blob it leads.
        eventually("a lead", Duration::from_secs(10), async || {
            let led = nodes[0].metric("peili_flights_led_total", &[]).await?;
            Ok((led > 0.0).then_some(()))
        })
        .await
        .unwrap();
        join_all(nodes[1..].iter().map(|node| node.cri_pull(&reference))).await
    };
    let (first, others) = tokio::join!(first, others);

    println!("the first: {:?}", first.map(|pull| pull.took));
    for pull in others {
        println!("another: {:?}", pull.unwrap().took);
    }
    let copies = copies(&lab, &image, &before).await;
    assert!(copies <= 1.05, "{copies:.3} copies left the registry");
}

/// One bit of a blob on a holder's disk has changed since its containerd had checked it.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_fails_one_pull_and_no_second() {
    let lab = lab_or_skip!();
    let layers = ImageSpec::new("app:v1").busybox().layers([8 * MIB; 2]);
    let image = lab.push(layers).await.unwrap();
    let nodes = crowd(&lab, 2).await;
    let reference = image.reference();
    nodes[0].cri_pull(&reference).await.unwrap();
    let damaged = largest(&image);
    flip(&nodes[0], &damaged);
    advertised(&nodes[0], &image).await;

    let failed = nodes[1].cri_pull(&reference).await;

    let error = failed.expect_err("wrong bytes were taken");
    println!("{error:#}");
    forgotten(&nodes[1]).await;
    eventually("a verdict", Duration::from_secs(5), async || {
        let refused = nodes[1].metric("peili_contents_refused_total", &[]);
        Ok((refused.await? == 1.0).then_some(()))
    })
    .await
    .unwrap();
    nodes[1].cri_pull(&reference).await.unwrap();
    assert!(has_all(&nodes[1], &image));
}

/// Nobody's fault but the registry's: all fail, all succeed when it has been mended, and still take one copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_wrong_bytes_makes_no_node_distrust_another() {
    let lab = lab_or_skip!();
    let layers = ImageSpec::new("app:v1").busybox().layers([8 * MIB; 2]);
    let image = lab.push(layers).await.unwrap();
    let nodes = crowd(&lab, 3).await;
    let digest = largest(&image);
    let corrupt = Rule::Corrupt { digest };
    lab.registry.front(vec![corrupt]).await.unwrap();
    lab.shape_registry(Some(20_000_000), Direction::Up).unwrap();
    let reference = image.reference();
    let pulls = join_all(nodes.iter().map(|node| node.cri_pull(&reference))).await;
    assert!(pulls.iter().all(Result::is_err), "{pulls:?}");

    lab.registry.unfront().await.unwrap();
    tokio::time::sleep(KUBELET).await;
    let before = lab.registry.served().await.unwrap();
    let pulls = join_all(nodes.iter().map(|node| node.cri_pull(&reference))).await;

    for pull in pulls {
        println!("{:?}", pull.unwrap().took);
    }
    let copies = copies(&lab, &image, &before).await;
    assert!(copies <= 1.05, "{copies:.3} copies left the registry");
}

/// Changes one bit in the middle of a blob.
fn flip(node: &Node, digest: &str) {
    let blob = format!("blobs/{}", digest.replace(':', "/"));
    let path = node.containerd().content().join(blob);
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&path, permissions).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

/// Waits until containerd has removed what it refused: until then it refuses again without asking anybody.
async fn forgotten(node: &Node) {
    let ingests = node.containerd().content().join("ingest");
    eventually("removal", Duration::from_secs(20), async || {
        let left = std::fs::read_dir(&ingests)?.count();
        Ok((left == 0).then_some(()))
    })
    .await
    .unwrap();
}

/// Waits until the cluster has been told of all that `node` holds.
async fn advertised(node: &Node, image: &Image) {
    // Its blobs, its manifests, its tag.
    let keys = (image.blobs().count() + image.manifests().count() + 1) as f64;
    eventually("announcements", Duration::from_secs(20), async || {
        let told = node
            .metric("peili_announcements_total", &[("result", "ok")])
            .await?;
        Ok((told >= keys).then_some(()))
    })
    .await
    .unwrap();
}
