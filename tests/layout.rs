//! Peilis with OCI layouts: what a layout holds, the cluster has. As processes on loopback, which needs no root, and as
//! docs/air-gapped.md has it, with real containerds.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::image::descriptor;
use lab::layout::Layout;
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec, NodeOptions, PeiliOptions, lab_or_skip};
use peili::content::ContentStore;
use peili::oci::{Digest, ImageName};

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// What users wait for: another node finds what is new within this time, and no longer finds what is gone.
const SOON: Duration = Duration::from_secs(2);

async fn cluster() -> Loopback {
    let cluster = Loopback::new(2).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    cluster
}

fn image(cluster: &Loopback, name: &str) -> Image {
    let spec = ImageSpec::new(name).index().layers([3 << 20, 100]);
    let dir = cluster.folder("images").unwrap();
    spec.build(REGISTRY, &dir).unwrap()
}

fn path(image: &Image, kind: &str, reference: &str) -> String {
    format!("/v2/{}/{kind}/{reference}?ns={REGISTRY}", image.name())
}

/// Waits until `node` gives this answer; how long that took.
async fn answers(node: &LoopbackNode, path: &str, status: u16) -> Duration {
    let begun = Instant::now();
    eventually(&format!("{status} for {path}"), SOON, async || {
        let answer = node.get(path).await?;
        Ok((answer.status.as_u16() == status).then_some(()))
    })
    .await
    .unwrap();
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_layout_holds_is_served_through_the_other_node() {
    let cluster = cluster().await;
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let image = image(&cluster, "test/app:v1");
    one.layout().add(&image).unwrap();

    let took = answers(two, &path(&image, "manifests", "v1"), 200).await;
    eprintln!("a new image was found after {took:?}");

    let by_tag = two.get(&path(&image, "manifests", "v1")).await.unwrap();
    let top = &image.top().digest;
    assert_eq!(by_tag.header("docker-content-digest"), Some(top.as_str()));
    // Blobs of all platforms, and manifests that only the nested index names.
    for blob in image.manifests().chain(&image.index) {
        let answer = two.get(&path(&image, "manifests", &blob.digest)).await;
        let body = answer.unwrap().expect(200).unwrap().body;
        assert!(blob.digest.parse::<Digest>().unwrap().verifies(&body));
    }
    for blob in image.blobs() {
        let answer = two.get(&path(&image, "blobs", &blob.digest)).await;
        let body = answer.unwrap().expect(200).unwrap().body;
        assert!(blob.digest.parse::<Digest>().unwrap().verifies(&body));
        assert!(!two.layout().holds(&blob.digest), "nothing is stored");
    }
    let from_peers = two.metric("peili_mirror_bytes_total", &[("source", "peer")]);
    let from_itself = two.metric("peili_mirror_bytes_total", &[("source", "local")]);
    assert!(from_peers.await.unwrap() as u64 > image.pulled_bytes());
    assert_eq!(from_itself.await.unwrap(), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_comes_or_goes_counts_for_the_others_within_two_seconds() {
    let cluster = cluster().await;
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let image = image(&cluster, "test/app:v1");
    one.layout().add(&image).unwrap();
    answers(two, &path(&image, "manifests", "v1"), 200).await;
    let later = path(&image, "manifests", "later");
    answers(two, &later, 404).await;

    let reference = image.reference().replace(":v1", ":later");
    let top = descriptor(image.top());
    one.layout().name(&reference, top).unwrap();
    let found = answers(two, &later, 200).await;
    one.layout().remove(&reference).unwrap();
    let gone = answers(two, &later, 404).await;
    one.layout().remove(&image.reference()).unwrap();
    let layer = path(&image, "blobs", &image.layers[0].digest);
    let blob_gone = answers(two, &layer, 404).await;

    eprintln!("found after {found:?}, gone after {gone:?}, its layer after {blob_gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_deleted_is_gone_although_it_was_asked_for_a_moment_ago() {
    let cluster = cluster().await;
    let node = &cluster.nodes()[0];
    let image = image(&cluster, "test/app:v1");
    node.layout().add(&image).unwrap();
    let digest = &image.top().digest;
    let path = path(&image, "manifests", digest);
    let first = node.get(&path).await.unwrap().expect(200).unwrap();
    let again = node.get(&path).await.unwrap().expect(200).unwrap();
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("content-type"), first.header("content-type"));

    std::fs::remove_file(node.layout().path_of(digest)).unwrap();

    let answer = node.get(&path).await.unwrap();
    assert_eq!(answer.status.as_u16(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_rewritten_in_place_counts_when_it_is_whole() {
    let cluster = cluster().await;
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let image = image(&cluster, "test/app:v1");
    one.layout().add(&image).unwrap();
    let (v1, v2) = (
        path(&image, "manifests", "v1"),
        path(&image, "manifests", "v2"),
    );
    answers(two, &v1, 200).await;
    let index = one.layout().index();
    let text = std::fs::read_to_string(&index).unwrap();
    let changed = text.replace(":v1", ":v2");

    std::fs::write(&index, &changed[..100]).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        two.get(&v1).await.unwrap().expect(200).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::write(&index, &changed).unwrap();

    answers(two, &v2, 200).await;
    answers(two, &v1, 404).await;
}

#[test]
fn what_cannot_be_served_ends_the_process_with_a_reason_and_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let started = |path: &Path| {
        let output = Command::new(PEILI)
            .args(["registry", "--bootstrap-kind", "static"])
            .args(["--static-bootstrap-peers", "/ip4/127.0.0.12/tcp/9"])
            .args(["--registry-addr", "127.0.0.11:0"])
            .args(["--router-addr", "127.0.0.11:0"])
            .args(["--metrics-addr", "127.0.0.11:0"])
            .args(["--store", "oci-layout", "--oci-layout-path"])
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };

    let nowhere = started(&dir.path().join("nowhere"));
    let no_layout = started(dir.path());

    assert!(nowhere.contains("nowhere is not there"), "{nowhere}");
    assert!(nowhere.contains("correct --oci-layout-path"), "{nowhere}");
    assert!(no_layout.contains("oci-layout is missing"), "{no_layout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_seeds_real_nodes_that_have_no_registry() {
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("test/app:v1").index().layers([5 << 20, 100]);
    let image = lab.make(spec).await.unwrap();
    lab.stop_registry().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(&dir.path().join("images")).unwrap();
    layout.add(&image).unwrap();
    let path = layout.dir().display().to_string();
    let [seed, node] = [NodeOptions::default(), NodeOptions::default()].map(|o| lab.node(o));
    let (seed, node) = (seed.await.unwrap(), node.await.unwrap());
    let options = PeiliOptions::default().arg("--store", "oci-layout");
    let options = options.arg("--oci-layout-path", &path).unconfigured();
    seed.spawn_peili(&options).await.unwrap();
    node.start_peili().await.unwrap();
    seed.peili_ready().await.unwrap();
    let registry = image.reference().split('/').next().unwrap().to_owned();
    let tag = format!("/v2/{}/manifests/v1?ns={registry}", image.name());
    eventually("the image being found", SOON * 5, async || {
        let answer = node.http_get(&tag).await?;
        Ok(answer.status.is_success().then_some(()))
    })
    .await
    .unwrap();

    let pulled = node.cri_pull(&image.reference()).await.unwrap();

    assert_eq!(pulled.id, image.config.digest);
    assert!(image.pulled().all(|blob| node.holds(&blob.digest)));
    assert!(image.pulled().all(|blob| !seed.holds(&blob.digest)));
}

#[tokio::test]
async fn what_ctr_exports_is_a_layout_with_names() {
    let lab = lab_or_skip!();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let spec = |name, seed| ImageSpec::new(name).seed(seed).layers([1 << 20]);
    let dir = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for spec in [spec("test/a:v1", 1), spec("test/b:v2", 2)] {
        let image = spec.build(REGISTRY, dir.path()).unwrap();
        node.import(&image).await.unwrap();
        images.push(image);
    }
    let (archive, path) = (dir.path().join("seed.tar"), dir.path().join("layout"));
    let archive_path = archive.display().to_string();
    let (a, b) = (images[0].reference(), images[1].reference());
    let args = ["images", "export", &archive_path, &a, &b];
    node.ctr(&args).await.unwrap();
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    archive.unpack(&path).unwrap();

    let store = peili::content::layout::Layout::new(
        peili::content::layout::Config { path },
        peili::readiness::Readiness::new(),
    )
    .unwrap();

    for image in &images {
        let name: ImageName = image.reference().parse().unwrap();
        let digest = store.resolve(&name.tag.unwrap()).await.unwrap();
        assert_eq!(digest.unwrap().as_str(), image.top().digest);
        for blob in image.pulled() {
            let digest = blob.digest.parse().unwrap();
            let opened = store.open(&digest).await.unwrap().unwrap();
            assert_eq!(opened.size(), blob.size);
        }
    }
}
