//! The lab by itself, without Peili: what it makes can be pulled, imported and removed, and it counts every byte.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hyper::Method;
use lab::dns::PEERS;
use lab::process::{cgroups_of, eventually, output, processes};
use lab::proxy::Rule;
use lab::{Direction, ImageSpec, NodeOptions, lab_or_skip};

/// The CRI follows events, the removal of blobs is containerd's garbage collection: both are done within 2.5 s.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_pull_over_cri_takes_exactly_the_bytes_of_the_image() {
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("test/app:v1").busybox().index();
    let image = lab.push(spec.layers([3 << 20, 1 << 20])).await.unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();

    let pulled = node.cri_pull(&image.reference()).await.unwrap();

    assert_eq!(pulled.id, image.config.digest);
    let served = lab.registry.served().await.unwrap();
    for blob in image.pulled() {
        assert_eq!(served.bytes_of(&blob.digest), blob.size, "{blob:?}");
        assert!(node.holds(&blob.digest));
    }
    assert_eq!(served.bytes_to(node.ip()), image.pulled_bytes());
    assert_eq!(served.bytes(), image.pulled_bytes());
    let listed = node.cri_images().await.unwrap();
    assert_eq!(listed[0].repo_tags, [image.reference()]);
}

#[tokio::test]
async fn ctr_pulls_tags_imports_and_removes() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("test/a").layers([1 << 20]))
        .await
        .unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();

    node.ctr_pull(&image.reference()).await.unwrap();
    let (first, second) = (image.reference(), "example.test/b:v2".to_owned());
    node.ctr_tag(&first, &second).await.unwrap();
    eventually("the CRI's own name", SOON, async || {
        let listed = node.cri_images().await?;
        Ok(listed.iter().any(|i| i.repo_tags.len() == 2).then_some(()))
    })
    .await
    .unwrap();
    node.ctr_remove(&first).await.unwrap();
    assert!(node.holds(&image.layers[0].digest));
    node.cri_remove(&second).await.unwrap();
    eventually("the layer's removal", SOON, async || {
        Ok((!node.holds(&image.layers[0].digest)).then_some(()))
    })
    .await
    .unwrap();

    let before = lab.registry.served().await.unwrap();
    let spec = ImageSpec::new("test/c").seed(2).plain_tar().index();
    let other = lab.make(spec.layers([1 << 20])).await.unwrap();
    node.import(&other).await.unwrap();
    assert!(other.pulled().all(|blob| node.holds(&blob.digest)));
    let names = node.ctr(&["images", "ls", "-q"]).await.unwrap();
    assert!(names.contains(&other.reference()), "{names}");
    let after = lab.registry.served().await.unwrap();
    assert_eq!(after.since(&before).bytes(), 0);
}

#[tokio::test]
async fn containers_of_one_id_run_on_two_nodes_and_leave_nothing_behind() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("test/run").busybox())
        .await
        .unwrap();
    let id = format!("lab-{}", std::process::id());
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let node = lab.node(NodeOptions::default()).await.unwrap();
        node.cri_pull(&image.reference()).await.unwrap();
        let args = ["run", "--detach", "--snapshotter", node.snapshotter()];
        let what = [&image.reference(), id.as_str(), "sleep", "600"];
        if let Err(error) = node.ctr(&[&args[..], &what[..]].concat()).await {
            eprintln!("skipped: runc cannot run containers here: {error:#}");
            return;
        }
        let cgroup = format!("/k8s.io/{id}");
        let lives_in = |pid| cgroups_of(pid).iter().any(|c| c.ends_with(&cgroup[1..]));
        let all = processes().unwrap();
        let container = all.into_iter().map(|p| p.0).find(|pid| lives_in(*pid));
        nodes.push((
            node,
            container.expect("a process in the container's cgroup"),
        ));
    }
    let cgroups: Vec<_> = nodes.iter().flat_map(|(_, pid)| cgroups_of(*pid)).collect();

    nodes[0].0.stop().await.unwrap();
    drop(nodes);

    assert!(cgroups.iter().all(|folder| !folder.exists()), "{cgroups:?}");
}

#[tokio::test]
async fn a_killed_containerd_comes_back_with_what_it_had() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("test/a").layers([1 << 20]))
        .await
        .unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    node.cri_pull(&image.reference()).await.unwrap();

    node.kill();
    assert!(node.cri_images().await.is_err());
    node.start().await.unwrap();
    lab.stop_registry().await.unwrap();
    node.restart().await.unwrap();

    assert_eq!(node.cri_images().await.unwrap().len(), 1);
    node.cri_remove(&image.reference()).await.unwrap();
    assert!(node.cri_images().await.unwrap().is_empty());
    let gone = node.cri_pull(&image.reference()).await.unwrap_err();
    assert!(format!("{gone:#}").contains("refused"), "{gone:#}");
}

#[tokio::test]
async fn a_shaped_link_is_as_slow_as_told_and_a_removed_one_is_silent() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("test/a").layers([8 << 20]))
        .await
        .unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let registry: SocketAddr = lab.registry.host().parse().unwrap();

    node.shape(Some(8 << 20), Direction::Down).unwrap();
    let pulled = node.cri_pull(&image.reference()).await.unwrap();
    node.shape(None, Direction::Down).unwrap();
    // One second by the rate; the burst goes for free, and slowness by other causes is no fault of the link.
    assert!(
        pulled.took > Duration::from_millis(900),
        "{:?}",
        pulled.took
    );

    node.remove_link().unwrap();
    let start = Instant::now();
    assert!(node.netns().connect(registry).await.is_err());
    assert!(start.elapsed() > Duration::from_secs(1), "nobody refused");
    node.restore_link().unwrap();
    node.netns().connect(registry).await.unwrap();
}

#[tokio::test]
async fn the_name_of_the_peers_has_every_node_and_can_be_changed() {
    let lab = lab_or_skip!();
    let one = lab.node(NodeOptions::default()).await.unwrap();
    let two = lab.node(NodeOptions::default()).await.unwrap();
    let resolve = async || {
        let mut command = one.netns().command("busybox");
        command.args(["nslookup", PEERS, &lab.dns().ip().to_string()]);
        output(command).await.unwrap_or_default()
    };
    let has = |answer: &str, ip: Ipv4Addr| answer.lines().any(|l| l.ends_with(&format!(" {ip}")));

    let answer = resolve().await;
    assert!(has(&answer, one.ip()) && has(&answer, two.ip()), "{answer}");

    lab.dns().remove(PEERS, two.ip()).await.unwrap();
    let answer = resolve().await;
    assert!(
        has(&answer, one.ip()) && !has(&answer, two.ip()),
        "{answer}"
    );

    lab.dns().set(PEERS, &[two.ip()]).await.unwrap();
    let answer = resolve().await;
    assert!(
        !has(&answer, one.ip()) && has(&answer, two.ip()),
        "{answer}"
    );
}

#[tokio::test]
async fn the_same_seed_makes_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ImageSpec::new("a").index().layers([100_000, 7]);

    let one = spec.build("r", dir.path()).unwrap();
    let two = spec.clone().build("r", dir.path()).unwrap();
    let other = spec.seed(2).build("r", dir.path()).unwrap();

    assert_eq!(one.top().digest, two.top().digest);
    assert_ne!(one.layers[0].digest, other.layers[0].digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_before_the_registry_is_late_refuses_and_spoils_as_told() {
    const LATE: Duration = Duration::from_millis(300);
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("test/a").layers([1 << 20, 1 << 20]);
    let image = lab.push(spec).await.unwrap();
    let refused = lab.node(NodeOptions::default()).await.unwrap();
    let other = lab.node(NodeOptions::default()).await.unwrap();
    let registry: SocketAddr = lab.registry.host().parse().unwrap();
    let (first, second) = (&image.layers[0], &image.layers[1]);
    let rules = [
        Rule::Late(LATE),
        Rule::Unauthorized {
            client: refused.ip().into(),
            digests: vec![first.digest.clone()],
        },
        Rule::Corrupt {
            digest: second.digest.clone(),
        },
    ];
    lab.registry.front(rules.to_vec()).await.unwrap();
    let get = async |node: &lab::Node, digest: &str| {
        let path = format!("/v2/{}/blobs/{digest}", image.name());
        let begun = Instant::now();
        let answer = node.http(registry, Method::GET, &path, &[]).await.unwrap();
        (answer, begun.elapsed())
    };

    let (answer, took) = get(&refused, &first.digest).await;
    assert_eq!(answer.status, 401);
    assert!(took >= LATE, "{took:?}");
    let (answer, took) = get(&other, &first.digest).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, std::fs::read(&first.file).unwrap());
    assert!(took >= LATE, "{took:?}");
    let (answer, _) = get(&refused, &second.digest).await;
    let right = std::fs::read(&second.file).unwrap();
    assert_eq!(answer.body[0], right[0] ^ 1);
    assert_eq!(answer.body[1..], right[1..]);
    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(other.ip()), first.size);
    assert_eq!(served.bytes_to(refused.ip()), second.size);
    assert!(refused.cri_pull(&image.reference()).await.is_err());

    lab.registry.unfront().await.unwrap();
    // Not the refused one: its containerd keeps the spoilt bytes for a moment and would fail by them once more.
    other.cri_pull(&image.reference()).await.unwrap();
}

#[tokio::test]
async fn a_node_whose_memory_is_too_small_for_an_image_cannot_pull_it() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("test/a").layers([4 << 20]))
        .await
        .unwrap();
    let options = |bytes| NodeOptions {
        root_in_memory: Some(bytes),
        ..NodeOptions::default()
    };
    let small = lab.node(options(3 << 20)).await.unwrap();
    let large = lab.node(options(64 << 20)).await.unwrap();
    let root = large.dir().join("root");

    let full = small.cri_pull(&image.reference()).await.unwrap_err();
    assert!(format!("{full:#}").contains("no space left"), "{full:#}");
    large.cri_pull(&image.reference()).await.unwrap();

    drop(large);
    let left = std::fs::read_dir(&root).unwrap().count();
    assert_eq!(left, 0, "the memory is given back");
}

#[tokio::test]
async fn two_nodes_that_were_cut_off_still_reach_the_registry() {
    let lab = lab_or_skip!();
    let one = lab.node(NodeOptions::default()).await.unwrap();
    let two = lab.node(NodeOptions::default()).await.unwrap();
    let three = lab.node(NodeOptions::default()).await.unwrap();
    let registry: SocketAddr = lab.registry.host().parse().unwrap();
    let at_two = SocketAddr::from((two.ip(), 7000));
    let _listener = two.netns().listen(at_two).await.unwrap();
    one.netns().connect(at_two).await.unwrap();

    one.cut_off(&two).unwrap();

    assert!(one.netns().connect(at_two).await.is_err());
    three.netns().connect(at_two).await.unwrap();
    one.netns().connect(registry).await.unwrap();
    two.netns().connect(registry).await.unwrap();
}
