//! What an operator decides, on real containerds: who is asked for tags, and what is left out of the cluster.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::fs;
use std::time::Duration;

use futures::future::try_join_all;
use hyper::Method;
use lab::containerd::unpacked;
use lab::cri::Login;
use lab::process::eventually;
use lab::proxy::Rule;
use lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};

const MIB: u64 = 1 << 20;
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

const LOGIN: Login = Login {
    user: "Aladdin",
    password: "open sesame",
};

async fn nodes<const N: usize>(lab: &Lab, options: &PeiliOptions) -> [Node; N] {
    let nodes = (0..N).map(|_| lab.node(NodeOptions::default()));
    let nodes = try_join_all(nodes).await.unwrap();
    let started = nodes.iter().map(|node| node.start_peili_with(options));
    try_join_all(started).await.unwrap();
    nodes.try_into().ok().unwrap()
}

/// As the pod's init container does; with more words than the lab's own.
async fn configure(lab: &Lab, node: &Node, more: &[&str]) {
    let registry = lab.registry.host();
    let configured = node
        .peili()
        .configure(node.netns(), node.containerd(), &registry, more);
    configured.await.unwrap();
}

fn path(lab: &Lab, image: &Image, kind: &str, reference: &str) -> String {
    let registry = lab.registry.host().replace(':', "%3A");
    format!("/v2/{}/{kind}/{reference}?ns={registry}", image.name())
}

/// Waits until the node finds what the tag stands for in the cluster; by requests that containerd does not make.
async fn tag_is(lab: &Lab, node: &Node, image: &Image) {
    let path = path(lab, image, "manifests", image.tag());
    eventually("the tag", AT_ALL, async || {
        let to = node.peili().registry();
        let answer = node.http(to, Method::HEAD, &path, &[]).await?;
        let digest = answer.header("docker-content-digest");
        Ok((digest == Some(&image.top().digest)).then_some(()))
    })
    .await
    .unwrap();
}

/// Which image the node has after a pull by tag with the pod's credentials.
async fn pulled(node: &Node, image: &Image) -> anyhow::Result<String> {
    let pulled = node.cri_pull_as(&image.reference(), &LOGIN).await?;
    Ok(pulled.id)
}

/// Behind a registry that knows its users, three nodes of which the first has an image; and another image of that name,
/// which the registry has since.
async fn cluster(lab: &Lab, policy: &str) -> ([Node; 3], Image, Image) {
    let spec = ImageSpec::new("team/app:v1").index().layers([MIB, 2 * MIB]);
    let old = lab.push(spec.clone()).await.unwrap();
    lab.registry.front(vec![Rule::Login(LOGIN)]).await.unwrap();
    let nodes: [Node; 3] = nodes(lab, &PeiliOptions::default()).await;
    for node in &nodes {
        configure(lab, node, &["--tag-resolution", policy]).await;
    }
    assert!(nodes[0].cri_pull(&old.reference()).await.is_err(), "401");
    assert_eq!(pulled(&nodes[0], &old).await.unwrap(), old.config.digest);
    for node in &nodes[1..] {
        tag_is(lab, node, &old).await;
    }
    let new = lab.push(spec.seed(2)).await.unwrap();
    (nodes, old, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_first_a_moved_tag_is_seen_at_once_and_still_there_when_the_registry_is_gone() {
    let lab = lab_or_skip!();
    let ([first, second, third], old, new) = cluster(&lab, "upstream-first").await;

    // The registry says what the tag is, to whom it knows.
    assert_eq!(pulled(&second, &new).await.unwrap(), new.config.digest);
    // Whom it refuses containerd sends on to the cluster, as it does when nobody answers.
    third.cri_pull(&old.reference()).await.unwrap();
    third.cri_remove(&old.reference()).await.unwrap();
    // Content is asked of us first: what the second node has is not fetched again.
    let before = lab.registry.served().await.unwrap();
    assert_eq!(pulled(&first, &new).await.unwrap(), new.config.digest);
    let fetched = lab.registry.served().await.unwrap().since(&before);
    assert_eq!(fetched.bytes_to(first.ip()), 0, "{fetched:?}");

    tag_is(&lab, &third, &new).await;
    lab.registry.vanish().await.unwrap();
    assert_eq!(pulled(&third, &new).await.unwrap(), new.config.digest);
    assert!(new.pulled().all(|blob| third.holds(&blob.digest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_first_a_moved_tag_stays_what_it_was_while_a_node_has_it() {
    let lab = lab_or_skip!();
    let ([_first, second, third], old, _) = cluster(&lab, "cluster-first").await;

    assert_eq!(pulled(&second, &old).await.unwrap(), old.config.digest);

    lab.registry.vanish().await.unwrap();
    assert_eq!(pulled(&third, &old).await.unwrap(), old.config.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_only_a_tag_needs_the_registry_and_content_does_not() {
    let lab = lab_or_skip!();
    let ([_first, second, third], old, new) = cluster(&lab, "upstream-only").await;

    assert_eq!(pulled(&second, &new).await.unwrap(), new.config.digest);

    lab.registry.vanish().await.unwrap();
    assert!(
        pulled(&third, &new).await.is_err(),
        "nobody says what it is"
    );
    third.cri_pull(&old.reference_by_digest()).await.unwrap();
    assert!(old.pulled().all(|blob| third.holds(&blob.digest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_first_asks_the_registry_with_the_keys_that_an_administrator_gave_it() {
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("team/app:v1").layers([MIB]);
    let old = lab.push(spec.clone()).await.unwrap();
    lab.registry.front(vec![Rule::Login(LOGIN)]).await.unwrap();
    let unconfigured = PeiliOptions::default().unconfigured();
    let [first, second]: [Node; 2] = nodes(&lab, &unconfigured).await;
    let host = lab.registry.host();
    for node in [&first, &second] {
        // He has a mirror, too, at which nobody answers; and the credentials of all pods in a header.
        let text = format!(
            "server = \"http://{host}\"\n[host.\"http://127.0.0.1:1\"]\n\n[header]\nauthorization = [\"{}\"]\n",
            LOGIN.header()
        );
        let file = node.containerd().certs_d().join(&host).join("hosts.toml");
        fs::write(file, text).unwrap();
        let policy = ["--tag-resolution=upstream-first", "--prepend-existing"];
        configure(&lab, node, &policy).await;
    }
    first.cri_pull(&old.reference()).await.unwrap();
    tag_is(&lab, &second, &old).await;
    let new = lab.push(spec.seed(2)).await.unwrap();

    let seen = second.cri_pull(&new.reference()).await.unwrap();

    assert_eq!(seen.id, new.config.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_first_every_target_resolves_tags_when_the_registry_does_not_answer() {
    let lab = lab_or_skip!();
    // Somebody else's cache of a registry that is not there, below a path.
    let image = ImageSpec::new("cache/test/app:v1").index().layers([MIB]);
    let image = lab.push(image).await.unwrap();
    let unconfigured = PeiliOptions::default().unconfigured();
    let [node]: [Node; 1] = nodes(&lab, &unconfigured).await;
    let cache = format!("http://{}/v2/cache", lab.registry.host());
    // It comes first, and a target at which nobody listens.
    let targets = ["--mirror-targets", &cache, "http://127.0.0.1:1"];
    let targets = [&["--tag-resolution=upstream-first"], &targets[..]].concat();
    let certs_d = node.containerd().certs_d().display().to_string();
    let rest = [
        "--containerd-registry-config-path",
        &certs_d,
        "--containerd-version",
        "1.7",
    ];
    let registry = [
        "configuration",
        "--mirrored-registries",
        "https://nowhere.example",
    ];
    let words = [&registry[..], &targets, &rest].concat();
    node.peili().run(node.netns(), &words).await.unwrap();

    let pulled = node.cri_pull("nowhere.example/test/app:v1").await.unwrap();

    assert_eq!(pulled.id, image.config.digest);
    let served = lab.registry.served().await.unwrap();
    assert_eq!(served.bytes_to(node.ip()), image.pulled_bytes());
}

/// A registry that vanished with its machine: nobody refuses. containerd 1.6 and 1.7 have no setting for it, and wait 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn upstream_first_a_registry_that_drops_packets_costs_containerd_2_five_seconds() {
    let lab = lab_or_skip!();
    if unpacked("2.x").is_none() {
        assert!(std::env::var_os("CI").is_none(), "run `make containerds`");
        eprintln!("skipped: containerd 2.x: `make containerds` unpacks it");
        return;
    }
    let spec = ImageSpec::new("team/app:v1").layers([MIB]);
    let image = lab.push(spec).await.unwrap();
    let nodes = (0..2).map(|_| lab.node(NodeOptions::version("2.x")));
    let nodes = try_join_all(nodes).await.unwrap();
    for node in &nodes {
        node.start_peili().await.unwrap();
        configure(&lab, node, &["--tag-resolution=upstream-first"]).await;
    }
    let [first, second] = &nodes[..] else {
        panic!("two nodes")
    };
    first.cri_pull(&image.reference()).await.unwrap();
    tag_is(&lab, second, &image).await;
    let registry = lab.registry.host();
    let (registry, _) = registry.split_once(':').unwrap();
    second.netns().lose(registry.parse().unwrap()).unwrap();

    let pulled = second.cri_pull(&image.reference()).await.unwrap();

    let took = pulled.took.as_secs_f64();
    assert!((4.9..15.0).contains(&took), "{took} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_matches_stays_on_its_node_and_what_another_image_has_too_does_not() {
    let lab = lab_or_skip!();
    // One layer is in both.
    let open = ImageSpec::new("test/open:v1").layers([MIB, 2 * MIB]);
    let secret = ImageSpec::new("test/secret:v1").layers([MIB, 3 * MIB]);
    let open = lab.push(open).await.unwrap();
    let secret = lab.push(secret).await.unwrap();
    let [both, own] = [&secret.layers[0].digest, &secret.layers[1].digest];
    assert_eq!(*both, open.layers[0].digest);
    // With the registry's port in it, which containerd's own labels lack.
    let pattern = format!("^{}/test/secret[:@]", lab.registry.host());
    let filtered = PeiliOptions::default().arg("--registry-filters", &pattern);
    let [holder]: [Node; 1] = nodes(&lab, &filtered).await;
    let mirrored = format!("http://{}", lab.registry.host());
    let mirrored = PeiliOptions::default().arg("--mirrored-registries", &mirrored);
    let [asker]: [Node; 1] = nodes(&lab, &mirrored).await;

    // Left out, or not: every pull succeeds.
    holder.cri_pull(&secret.reference()).await.unwrap();
    let told = async || anyhow::Ok(holder.metric("peili_advertised_keys", &[]).await? as u64);
    assert_eq!(told().await.unwrap(), 0);
    lab.shape_registry(Some(MIB / 2), Direction::Up).unwrap();
    let reference = open.reference();
    let mut pulling = std::pin::pin!(holder.cri_pull(&reference));
    let told_at_least = async |keys: u64| {
        let enough = async || Ok((told().await? >= keys).then_some(()));
        eventually("what is told", AT_ALL, enough).await.unwrap();
    };
    tokio::select! {
        done = &mut pulling => panic!("a manifest was not told while the layers came in: {done:?}"),
        () = told_at_least(2) => {}
    }
    pulling.await.unwrap();
    lab.shape_registry(None, Direction::Up).unwrap();
    // The tag, the manifest, the configuration, and two layers.
    eventually("what is told", AT_ALL, async || {
        Ok((told().await? == 5).then_some(()))
    })
    .await
    .unwrap();
    tag_is(&lab, &asker, &open).await;

    for (image, kind, reference, status) in [
        (&open, "manifests", "v1", 200),
        (&open, "blobs", both.as_str(), 200),
        (&secret, "blobs", both, 404),
        (&secret, "blobs", own, 404),
        (&secret, "manifests", "v1", 404),
        (&secret, "manifests", &secret.top().digest, 404),
    ] {
        let path = path(&lab, image, kind, reference);
        let answer = holder.http_get(&path).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{path}");
        let said = answer.text();
        assert!(status == 200 || said.contains("is left out"), "{said}");
    }
    // Who asks no holder in particular finds what is told.
    for (image, kind, reference, status) in [
        (&open, "blobs", both.as_str(), 200),
        (&open, "blobs", own, 404),
        (&secret, "blobs", own, 404),
        (&secret, "manifests", "v1", 404),
    ] {
        let path = path(&lab, image, kind, reference);
        let answer = asker.http_get(&path).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    let elsewhere = format!("/v2/test/open/blobs/{both}?ns=other.test");
    let said = asker
        .http_get(&elsewhere)
        .await
        .unwrap()
        .expect(404)
        .unwrap();
    let said = said.text();
    assert!(
        said.contains("other.test is not among the mirrored registries"),
        "{said}"
    );
    lab.stop_registry().await.unwrap();
    asker.cri_pull(&open.reference()).await.unwrap();
    assert!(asker.cri_pull(&secret.reference()).await.is_err());
}
