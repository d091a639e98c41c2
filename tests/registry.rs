//! The registry port as containerd and peers see it: whole nodes in one process, with fakes behind the seams.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use peili::advertise::Pulls;
use peili::basic_auth::{self, Secret};
use peili::mirror::Papers;
use peili::node_token::{self, NodeToken};
use peili::oci::filter::Filter;
use peili::oci::{Digest, ImageName, Key, TagName};
use peili::readiness::Readiness;
use peili::registry::uploads::Uploads;
use peili::registry::{self, Registry};
use peili::routing::Router as _;
use peili::shutdown::Shutdown;
use peili::testing::content::FakeStore;
use peili::testing::peer::FakePeer;
use peili::testing::raw_http::{self, Answer};
use peili::testing::router::{FakeRouter, FakeSwarm};
use peili::testing::{self, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Of whatever is asked.
const AT_ALL: Duration = Duration::from_secs(20);

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;

/// A node: its store, its place in the swarm, and its registry's address.
struct Node {
    store: FakeStore,
    router: FakeRouter,
    readiness: Readiness,
    address: SocketAddr,
    metrics: prometheus::Registry,
    pulls: Pulls,
    shutdown: Shutdown,
}

impl Node {
    async fn in_swarm(swarm: &FakeSwarm) -> Self {
        Self::with(swarm, Filter::default(), None).await
    }

    async fn with(swarm: &FakeSwarm, filter: Filter, token: Option<NodeToken>) -> Self {
        Self::serving(swarm, filter, token, 2).await
    }

    async fn serving(
        swarm: &FakeSwarm,
        filter: Filter,
        token: Option<NodeToken>,
        uploads: usize,
    ) -> Self {
        Self::asking_for(swarm, filter, token, uploads, None).await
    }

    /// One that asks everybody for the pair in this directory, and sends it.
    async fn with_secret(swarm: &FakeSwarm, directory: &Path, token: Option<NodeToken>) -> Self {
        let secret = Secret::load(directory).unwrap().expect("a pair");
        Self::asking_for(swarm, Filter::default(), token, 2, Some(Arc::new(secret))).await
    }

    async fn asking_for(
        swarm: &FakeSwarm,
        filter: Filter,
        token: Option<NodeToken>,
        uploads: usize,
        secret: Option<Arc<Secret>>,
    ) -> Self {
        let (server, address) = testing::registry::server().await;
        let (store, router) = (FakeStore::default(), swarm.join(address));
        let (readiness, metrics) = (Readiness::new(), prometheus::Registry::new());
        let pulls = Pulls::default();
        let mirror = testing::registry::mirror(router.clone(), &metrics);
        let papers = Papers {
            basic_auth: secret.clone(),
            members: None,
        };
        let routes = registry::router(Registry {
            readiness: readiness.clone(),
            filter: Arc::new(filter),
            pulls: pulls.clone(),
            token: token.map(Arc::new),
            basic_auth: secret,
            uploads: Uploads::new(uploads),
            ..testing::registry::over(store.clone(), mirror.with_papers(papers), &metrics)
        });
        let shutdown = Shutdown::new();
        shutdown.spawn(server.run(routes, shutdown.clone()));
        Self {
            store,
            router,
            readiness,
            address,
            metrics,
            pulls,
            shutdown,
        }
    }

    /// Holds a blob, and the swarm knows.
    async fn hold(&self, bytes: impl Into<bytes::Bytes>) -> Digest {
        let digest = self.store.add_blob(bytes);
        let key = Key::Content(digest.clone());
        self.router.advertise(vec![key]).await.unwrap();
        digest
    }

    async fn hold_tag(&self, tag: &TagName, manifest: &Digest) {
        self.store.tag(tag, manifest);
        let key = Key::Tag(tag.clone());
        self.router.advertise(vec![key]).await.unwrap();
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[]).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        raw_http::ask(self.address, AT_ALL, method, path, headers).await
    }

    async fn send(&self, request: &[u8]) -> Answer {
        raw_http::send(self.address, AT_ALL, request).await
    }

    fn count(&self, name: &str, source: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let is_of = |metric: &&prometheus::proto::Metric| {
            let labels = metric.get_label();
            labels.is_empty() || labels.iter().any(|label| label.value() == source)
        };
        let values = metrics.iter().filter(is_of);
        values
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum()
    }
}

fn tag(name: &str) -> TagName {
    let name: ImageName = name.parse().unwrap();
    name.tag.unwrap()
}

#[tokio::test]
async fn a_blob_is_served_from_here_whole_and_in_parts() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let blob = noise(300_000, 1);
    let digest = node.hold(blob.clone()).await;
    let path = format!("/v2/app/blobs/{digest}?ns=registry.test");

    let whole = node.get(&path).await;

    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-length"), Some("300000"));
    assert_eq!(
        whole.header("content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(whole.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("oci-namespace"), Some("registry.test"));
    assert_eq!(whole.header("content-encoding"), None);
    assert!(whole.body == blob);

    for (range, status, content_range, start, end) in [
        ("bytes=0-", 206, Some("bytes 0-299999/300000"), 0, 300_000),
        ("bytes=5-9", 206, Some("bytes 5-9/300000"), 5, 10),
        (
            "bytes=-1",
            206,
            Some("bytes 299999-299999/300000"),
            299_999,
            300_000,
        ),
        ("bytes=9-5", 200, None, 0, 300_000),
        ("bytes=x", 200, None, 0, 300_000),
        ("bytes=0-1,5-6", 200, None, 0, 300_000),
    ] {
        let part = node.ask("GET", &path, &[("range", range)]).await;

        assert_eq!(
            (part.status, part.header("content-range")),
            (status, content_range),
            "{range}"
        );
        assert!(part.body == blob[start..end], "{range}");
    }
    let beyond = node.ask("GET", &path, &[("range", "bytes=300000-")]).await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */300000"));
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let digest = holder.hold("").await;
    for node in [&holder, &asker] {
        let answer = node.get(&format!("/v2/app/blobs/{digest}")).await;

        assert_eq!(
            (answer.status, answer.header("content-length")),
            (200, Some("0"))
        );
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn a_head_is_the_get_without_its_body() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let blob = holder.hold(noise(1000, 1)).await;
    let manifest = holder.hold(MANIFEST).await;
    holder
        .hold_tag(&tag("registry.test/app:v1"), &manifest)
        .await;
    for node in [&holder, &asker] {
        for path in [
            format!("/v2/app/blobs/{blob}?ns=registry.test"),
            format!("/v2/app/manifests/{manifest}?ns=registry.test"),
            "/v2/app/manifests/v1?ns=registry.test".to_string(),
            format!("/v2/app/blobs/{}", Digest::sha256(b"nothing")),
            "/v2/app/manifests/v2?ns=registry.test".to_string(),
        ] {
            let (get, head) = (node.get(&path).await, node.ask("HEAD", &path, &[]).await);

            let without_date = |answer: &Answer| {
                let lines = answer.head.lines().map(str::to_lowercase);
                let mut lines: Vec<_> = lines.filter(|line| !line.starts_with("date:")).collect();
                lines.sort();
                lines
            };
            assert_eq!(without_date(&get), without_date(&head), "{path}");
            assert!(head.body.is_empty(), "{path}");
            let length = get.header("content-length").unwrap().parse::<usize>();
            assert_eq!(length.unwrap(), get.body.len(), "{path}");
        }
    }
}

#[tokio::test]
async fn a_manifest_says_what_it_is_by_tag_and_by_digest() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let manifest = holder.hold(MANIFEST).await;
    holder
        .hold_tag(&tag("docker.io/library/app:v1"), &manifest)
        .await;
    for node in [&holder, &asker] {
        for reference in ["v1", manifest.as_str()] {
            let path = format!("/v2/library/app/manifests/{reference}?ns=docker.io");
            let answer = node.get(&path).await;

            assert_eq!(answer.status, 200, "{path}");
            let content_type = answer.header("content-type");
            assert_eq!(
                content_type,
                Some("application/vnd.oci.image.manifest.v1+json")
            );
            assert_eq!(
                answer.header("docker-content-digest"),
                Some(manifest.as_str())
            );
            assert_eq!(answer.body, MANIFEST.as_bytes());
        }
    }
}

#[tokio::test]
async fn a_digest_is_looked_up_without_a_registry_and_a_tag_is_not() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let manifest = holder.hold(MANIFEST).await;
    holder
        .hold_tag(&tag("registry.test/app:v1"), &manifest)
        .await;

    let digest = asker.get(&format!("/v2/app/manifests/{manifest}")).await;
    let tag = asker.get("/v2/app/manifests/v1").await;

    assert_eq!(digest.status, 200);
    assert_eq!((tag.status, tag.code().as_str()), (404, "MANIFEST_UNKNOWN"));
}

#[tokio::test]
async fn a_tag_is_answered_only_if_its_manifest_can_be_had() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let gone = Digest::sha256(b"collected");
    holder.hold_tag(&tag("registry.test/app:v1"), &gone).await;
    for node in [&holder, &asker] {
        for method in ["HEAD", "GET"] {
            let path = "/v2/app/manifests/v1?ns=registry.test";
            assert_eq!(node.ask(method, path, &[]).await.status, 404, "{method}");
        }
    }
}

#[tokio::test]
async fn a_peers_request_goes_no_further() {
    let swarm = FakeSwarm::new();
    let (holder, asked) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let blob = holder.hold("blob").await;
    let path = format!("/v2/app/blobs/{blob}?ns=registry.test");

    let answer = asked
        .ask("GET", &path, &[("X-Spegel-Mirrored", "true")])
        .await;

    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "BLOB_UNKNOWN")
    );
    assert_eq!(asked.router.lookups(), 0);
    assert_eq!(asked.get(&path).await.status, 200);
}

fn filter(registries: &[&str], patterns: &[&str]) -> Filter {
    let hosts = || registries.iter().map(|host| host.to_string()).collect();
    let patterns = patterns.iter().map(|text| text.parse().unwrap());
    Filter::new((!registries.is_empty()).then(hosts), patterns.collect())
}

#[tokio::test]
async fn what_is_left_out_is_neither_served_nor_fetched_whoever_asks() {
    let swarm = FakeSwarm::new();
    let holder = Node::in_swarm(&swarm).await;
    let there = holder.hold("there").await;
    let manifest_there = holder.hold(format!("{MANIFEST} ")).await;
    for name in [
        "open.test/app:v1",
        "open.test/secret:v1",
        "other.test/app:v1",
    ] {
        holder.hold_tag(&tag(name), &manifest_there).await;
    }
    let peer = [("x-spegel-mirrored", "true")];
    for (filter, ns, name, shared) in [
        (filter(&["open.test"], &[]), "open.test", "app", true),
        (filter(&["open.test"], &[]), "other.test", "app", false),
        (filter(&[], &["/secret[:@]"]), "open.test", "app", true),
        (filter(&[], &["/secret[:@]"]), "open.test", "secret", false),
        (filter(&["open.test"], &["x"]), "other.test", "app", false),
    ] {
        let before = holder.count("peili_upload_requests_total", "local");
        let node = Node::with(&swarm, filter, None).await;
        let here = node.hold("here").await;
        let manifest_here = node.hold(MANIFEST).await;
        node.hold_tag(&tag(&format!("{ns}/{name}:here")), &manifest_here)
            .await;
        for (kind, reference, is_here) in [
            ("blobs", here.as_str(), true),
            ("manifests", manifest_here.as_str(), true),
            ("manifests", "here", true),
            ("blobs", there.as_str(), false),
            ("manifests", manifest_there.as_str(), false),
            ("manifests", "v1", false),
        ] {
            let path = format!("/v2/{name}/{kind}/{reference}?ns={ns}");
            let status = if shared { 200 } else { 404 };

            let ours = node.get(&path).await;
            let theirs = node.ask("GET", &path, &peer).await;

            assert_eq!(ours.status, status, "{path}");
            let fetched = if is_here { status } else { 404 };
            assert_eq!(theirs.status, fetched, "{path}");
            if !shared {
                let said = String::from_utf8_lossy(&ours.body).into_owned();
                let why = ["is left out", "is not among the mirrored registries"];
                assert!(why.iter().any(|why| said.contains(why)), "{said}");
                assert_eq!(ours.body, theirs.body);
                // Neither the tag's digest nor the content's length.
                let head = node.ask("HEAD", &path, &[]).await;
                assert_eq!(head.status, 404, "{path}");
                assert_eq!(head.header("docker-content-digest"), None, "{path}");
            }
        }
        let asked = holder.count("peili_upload_requests_total", "local") - before;
        assert_eq!(asked, if shared { 3 } else { 0 }, "{ns} {name}");
    }
}

#[tokio::test]
async fn content_is_served_under_the_name_of_an_image_that_shares_it() {
    let swarm = FakeSwarm::new();
    let node = Node::with(&swarm, filter(&[], &["secret", ":latest$"]), None).await;
    let (both, manifest) = (node.hold("both").await, node.hold(MANIFEST).await);
    node.hold_tag(&tag("a.test/app:latest"), &manifest).await;
    for (path, status) in [
        (format!("/v2/secret/blobs/{both}?ns=a.test"), 404),
        (format!("/v2/app/blobs/{both}?ns=a.test"), 200),
        // Of which registry?
        (format!("/v2/app/blobs/{both}"), 404),
        ("/v2/app/manifests/latest?ns=a.test".to_string(), 404),
        (format!("/v2/app/manifests/{manifest}?ns=a.test"), 200),
        // At an entry of hosts.toml that is asked again, too.
        (format!("/again/1/v2/secret/blobs/{both}?ns=a.test"), 404),
        (format!("/again/1/v2/app/blobs/{both}?ns=a.test"), 200),
    ] {
        for headers in [&[][..], &[("x-spegel-mirrored", "true")]] {
            let answer = node.ask("GET", &path, headers).await;
            assert_eq!(answer.status, status, "{path}");
        }
    }
}

/// Flow 1 with a filter: a layer that containerd pulls has no name but the one under which it was asked for.
#[tokio::test]
async fn what_containerd_pulls_is_told_under_the_name_by_which_it_has_asked() {
    let swarm = FakeSwarm::new();
    let filter = filter(&[], &["^a.test:5000/secret"]);
    let node = Node::with(&swarm, filter.clone(), None).await;
    let stop = CancellationToken::new();
    node.shutdown.spawn(peili::advertise::run(
        Arc::new(node.store.clone()),
        Arc::new(node.router.clone()),
        Arc::new(filter),
        node.pulls.clone(),
        peili::advertise::Holdings::default(),
        node.readiness.guard("content"),
        stop.clone(),
    ));
    let [open, secret, theirs] = ["open", "secret", "theirs"].map(|b| Digest::sha256(b.as_bytes()));
    let peer = [("x-spegel-mirrored", "true")];
    for (name, digest, headers) in [
        ("secret", &secret, &[][..]),
        ("open", &theirs, &peer),
        ("open", &open, &[]),
    ] {
        let path = format!("/v2/{name}/blobs/{digest}?ns=a.test%3A5000");
        assert_eq!(node.ask("GET", &path, headers).await.status, 404);
    }

    for blob in ["secret", "theirs", "open"] {
        node.store.add_blob(blob);
    }

    peili::testing::eventually("it is told", Duration::from_secs(5), || async {
        let told = node.router.advertised();
        told.contains(&Key::Content(open.clone())).then_some(())
    })
    .await;
    assert_eq!(node.router.advertised().len(), 1);
    stop.cancel();
    assert_eq!(node.shutdown.finish(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn only_who_sends_the_nodes_token_is_fetched_for() {
    let (swarm, data) = (FakeSwarm::new(), tempfile::tempdir().unwrap());
    let token = node_token::load_or_create(data.path()).unwrap();
    let holder = Node::in_swarm(&swarm).await;
    let there = holder.hold("there").await;
    for is_required in [false, true] {
        let judge = NodeToken::new(data.path(), is_required);
        let node = Node::with(&swarm, Filter::default(), Some(judge)).await;
        let here = node.hold("here").await;
        let (there, here) = (
            format!("/v2/app/blobs/{there}"),
            format!("/v2/app/blobs/{here}"),
        );
        let ours = [(node_token::HEADER, token.as_str())];
        let wrong = [(node_token::HEADER, "wrong")];
        let peer = [("x-spegel-mirrored", "true")];
        let stranger = if is_required { 404 } else { 200 };
        for (headers, held, fetched) in [
            (&ours[..], 200, 200),
            (&wrong, stranger, 404),
            (&[], stranger, 404),
            (&peer, 200, 404),
        ] {
            let case = format!("{headers:?}, required: {is_required}");
            assert_eq!(node.ask("GET", &here, headers).await.status, held, "{case}");
            assert_eq!(
                node.ask("GET", &there, headers).await.status,
                fetched,
                "{case}"
            );
        }
        assert_eq!(node.get("/readyz").await.status, 200);
    }
}

fn secret(password: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("username"), "peili").unwrap();
    std::fs::write(directory.path().join("password"), password).unwrap();
    directory
}

fn header_of(directory: &tempfile::TempDir) -> String {
    let pair = basic_auth::load(directory.path()).unwrap();
    pair.expect("a pair").header()
}

#[tokio::test]
async fn who_lacks_the_pair_gets_401_for_everything_but_the_probes() {
    let (swarm, directory) = (FakeSwarm::new(), secret("one"));
    let node = Node::with_secret(&swarm, directory.path(), None).await;
    let digest = node.hold(noise(1000, 1)).await;
    let (right, wrong) = (header_of(&directory), header_of(&secret("two")));
    let blob = format!("/v2/app/blobs/{digest}?ns=registry.test");
    let again = format!("/again/2{blob}");
    let paths = [
        ("/v2", 200),
        ("/v2/", 200),
        (blob.as_str(), 200),
        (again.as_str(), 200),
        ("/v2/app/manifests/v1?ns=registry.test", 404),
        ("/v2/App/manifests/v1", 400),
        ("/elsewhere", 404),
    ];
    for (path, status) in paths {
        for (method, refused) in [("GET", 401), ("HEAD", 401), ("PUT", 401)] {
            for headers in [
                &[][..],
                &[("authorization", wrong.as_str())],
                &[("x-spegel-mirrored", "true"), ("x-peili-growing", "500")],
                &[("x-spegel-mirrored", "true"), ("range", "bytes=5-")],
            ] {
                let case = format!("{method} {path} {headers:?}");
                let answer = node.ask(method, path, headers).await;
                assert_eq!(answer.status, refused, "{case}");
                let challenge = answer.header("www-authenticate");
                let asked = "Basic realm=\"peili\", charset=\"UTF-8\"";
                assert_eq!(challenge, Some(asked), "{case}");
                match method {
                    "HEAD" => assert!(answer.body.is_empty(), "{case}"),
                    _ => assert_eq!(answer.code(), "UNAUTHORIZED", "{case}"),
                }
            }
        }
        for peer in [None, Some(("x-spegel-mirrored", "true"))] {
            let mut headers = vec![("Authorization", right.as_str())];
            headers.extend(peer);
            let answer = node.ask("GET", path, &headers).await;
            assert_eq!(answer.status, status, "{path} {peer:?}");
        }
    }
    // It would answer a challenge with the image's pull secret.
    let containerd = [("user-agent", "containerd/2.1.9+unknown")];
    for path in ["/v2/", &blob, &again] {
        let answer = node.ask("GET", path, &containerd).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "UNAUTHORIZED")
        );
        assert_eq!(answer.header("www-authenticate"), None, "{path}");
    }
    let range = [("authorization", right.as_str()), ("range", "bytes=5-9")];
    let part = node.ask("GET", &blob, &range).await;
    assert_eq!((part.status, part.body.len()), (206, 5));
    for probe in ["/livez", "/readyz"] {
        assert_eq!(node.get(probe).await.status, 200, "{probe}");
    }
    let count = |from| node.count("peili_unauthorized_requests_total", from);
    assert_eq!((count("peer"), count("other")), (42, 45));
    // They were nobody's pulls.
    assert_eq!(node.count("peili_upload_requests_total", "miss"), 1);
    assert_eq!(node.count("peili_mirror_requests_total", "failed"), 0);
}

#[test]
fn half_a_secret_ends_the_process_before_it_listens() {
    let directory = secret("one");
    let missing = directory.path().join("username");
    std::fs::remove_file(&missing).unwrap();

    let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_peili"));
    daemon.args(["registry", "--bootstrap-kind", "static"]);
    daemon.args([
        "--static-bootstrap-peers",
        "/ip4/127.0.0.1/tcp/1",
        "--basic-auth-dir",
    ]);
    let ended = daemon.arg(directory.path()).output().unwrap();

    assert_eq!(ended.status.code(), Some(78));
    let log = String::from_utf8(ended.stderr).unwrap();
    let said = format!("{} is not there, and the password is", missing.display());
    assert!(log.contains(&said) && !log.contains("serving"), "{log}");
}

#[tokio::test]
async fn nodes_with_one_secret_serve_each_other_and_one_with_another_goes_to_the_registry() {
    let (swarm, directory) = (FakeSwarm::new(), secret("one"));
    let holder = Node::with_secret(&swarm, directory.path(), None).await;
    let friend = Node::with_secret(&swarm, directory.path(), None).await;
    let other = secret("two");
    let stranger = Node::with_secret(&swarm, other.path(), None).await;
    let without = Node::in_swarm(&swarm).await;
    let blob = noise(300_000, 1);
    let path = format!("/v2/app/blobs/{}", holder.hold(blob.clone()).await);
    let (ours, theirs) = (header_of(&directory), header_of(&other));

    let range = [("authorization", ours.as_str()), ("range", "bytes=7-")];
    let got = friend.ask("GET", &path, &range).await;
    assert!(got.status == 206 && got.body == blob[7..], "{}", got.head);

    let refused = stranger
        .ask("GET", &path, &[("authorization", theirs.as_str())])
        .await;
    assert_eq!(refused.status, 404);
    let text = String::from_utf8(refused.body).unwrap();
    assert!(
        text.contains("does not accept this node's user name"),
        "{text}"
    );
    assert_eq!(without.get(&path).await.status, 404);
    for node in [&stranger, &without] {
        assert_eq!(node.count("peili_peer_attempts_total", "unauthorized"), 1);
    }
    assert_eq!(holder.count("peili_unauthorized_requests_total", "peer"), 2);

    // Who asks for nothing is asked by everybody: a Secret can be rolled out node by node.
    let free = without.hold(noise(1000, 2)).await;
    let path = format!("/v2/app/blobs/{free}");
    let headers = [("authorization", ours.as_str())];
    assert_eq!(friend.ask("GET", &path, &headers).await.status, 200);
}

#[tokio::test]
async fn a_rotated_secret_is_followed_without_a_restart() {
    let (swarm, first, second) = (FakeSwarm::new(), secret("one"), secret("one"));
    let holder = Node::with_secret(&swarm, first.path(), None).await;
    let asker = Node::with_secret(&swarm, second.path(), None).await;
    let before = header_of(&first);
    for (round, passwords) in [["two", "one"], ["two", "two"]].into_iter().enumerate() {
        for (directory, password) in [&first, &second].into_iter().zip(passwords) {
            std::fs::write(directory.path().join("password"), password).unwrap();
        }
        // The files are looked at once a second.
        let changed = [("authorization", header_of(&second))];
        let changed: Vec<_> = changed.iter().map(|(n, v)| (*n, v.as_str())).collect();
        for node in [&holder, &asker] {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while node.ask("GET", "/v2/", &changed).await.status != 200 {
                assert!(std::time::Instant::now() < deadline, "not read again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let digest = holder.hold(noise(1000, round as u64)).await;
        let path = format!("/v2/app/blobs/{digest}");
        // containerd goes on to send what hosts.toml has.
        let answer = asker.ask("GET", &path, &[("authorization", &before)]).await;
        assert_eq!(answer.status, 200, "{passwords:?}");
    }
}

#[tokio::test]
async fn the_pair_and_the_nodes_token_are_asked_for_each_for_itself() {
    let (swarm, directory) = (FakeSwarm::new(), secret("one"));
    let data = tempfile::tempdir().unwrap();
    let token = node_token::load_or_create(data.path()).unwrap();
    let pair = header_of(&directory);
    let holder = Node::with_secret(&swarm, directory.path(), None).await;
    let there = holder.hold("there").await;
    let there = format!("/v2/app/blobs/{there}");
    for (is_required, stranger) in [(false, 200), (true, 404)] {
        let judge = NodeToken::new(data.path(), is_required);
        let node = Node::with_secret(&swarm, directory.path(), Some(judge)).await;
        let here = format!("/v2/app/blobs/{}", node.hold("here").await);
        let with_pair = ("authorization", pair.as_str());
        let with_token = (node_token::HEADER, token.as_str());
        let peer = ("x-spegel-mirrored", "true");
        for (headers, held, fetched) in [
            (&[with_pair, with_token][..], 200, 200),
            (&[with_pair], stranger, 404),
            (&[with_token], 401, 401),
            (&[], 401, 401),
            (&[with_pair, peer], 200, 404),
            (&[peer], 401, 401),
        ] {
            let case = format!("{headers:?}, required: {is_required}");
            assert_eq!(node.ask("GET", &here, headers).await.status, held, "{case}");
            assert_eq!(
                node.ask("GET", &there, headers).await.status,
                fetched,
                "{case}"
            );
        }
    }
}

#[tokio::test]
async fn peers_beyond_the_limit_are_sent_elsewhere_and_containerd_never_is() {
    let swarm = FakeSwarm::new();
    let (busy, other) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    // More than fits into the sockets of one who does not read.
    let large = noise(20 << 20, 1);
    let digest = busy.hold(large.clone()).await;
    other.hold(large.clone()).await;
    let small = busy.hold(noise(1000, 2)).await;
    let path = format!("/v2/app/blobs/{digest}");
    let peer = [("x-spegel-mirrored", "true")];
    let mut pulling = Vec::new();
    for _ in 0..2 {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-spegel-mirrored: 1\r\n\r\n");
        let mut stream = TcpStream::connect(busy.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // It has begun.
        stream.read_u8().await.unwrap();
        pulling.push(stream);
    }

    let refused = busy.ask("GET", &path, &peer).await;

    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "TOOMANYREQUESTS")
    );
    assert_eq!(
        refused.header("x-peili-holders"),
        Some(""),
        "none but the asker's own address"
    );
    assert_eq!(busy.count("peili_upload_requests_total", "busy"), 1);
    let small = busy
        .ask("GET", &format!("/v2/app/blobs/{small}"), &peer)
        .await;
    assert_eq!(small.status, 200, "is gone before it could be refused");
    assert_eq!(busy.ask("HEAD", &path, &peer).await.status, 200);
    assert!(busy.get(&path).await.body == large, "containerd is served");
    assert_eq!(busy.get("/livez").await.status, 200);

    drop(pulling);
    peili::testing::eventually("room is made", Duration::from_secs(10), || async {
        let answer = busy.ask("GET", &path, &peer).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// A header that nobody minds, as older and other peers have some.
const NOTHING: (&str, &str) = ("x-of-another-version", "1");

/// A peer at an address of its own, as nodes are, that begins to read a layer with this header: the status of its answer, and
/// the rest.
async fn reader(
    node: &Node,
    layer: &Digest,
    peer: u8,
    (header, value): (&str, &str),
) -> (String, TcpStream) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from(([127, 0, 2, peer], 0)))
        .unwrap();
    let mut stream = socket.connect(node.address).await.unwrap();
    let request = format!(
        "GET /v2/app/blobs/{layer} HTTP/1.1\r\nhost: x\r\nx-spegel-mirrored: 1\r\n{header}: {value}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    let status = String::from_utf8_lossy(&status[9..]).into_owned();
    (status, stream)
}

#[tokio::test]
async fn of_one_layer_two_are_given_at_once_to_those_who_can_follow_each_other() {
    const FOLLOWING: &str = "x-peili-following";
    let swarm = FakeSwarm::new();
    let node = Node::serving(&swarm, Filter::default(), None, 64).await;
    // More than fits into the sockets of those who do not read.
    let layer = node.hold(noise(20 << 20, 1)).await;
    let mut reading = Vec::new();
    for (layer, peer, header, expected) in [
        (&layer, 1, (FOLLOWING, "may"), "200"),
        (&layer, 2, (FOLLOWING, "may"), "200"),
        (&layer, 3, (FOLLOWING, "may"), "503"),
        (&layer, 3, (FOLLOWING, "slowly"), "503"),
        (&layer, 3, (FOLLOWING, "a word of a later version"), "503"),
        (&layer, 3, ("x-peili-growing", "100"), "503"),
        (&layer, 1, (FOLLOWING, "may"), "200"),
        (&layer, 3, NOTHING, "200"),
    ] {
        let (status, stream) = reader(&node, layer, peer, header).await;
        assert_eq!(status, expected, "{peer} {header:?}");
        reading.push(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pullers_leave_room_for_everything_small() {
    let swarm = FakeSwarm::new();
    let node = Node::serving(&swarm, Filter::default(), None, 64).await;
    let large = node.hold(noise(20 << 20, 1)).await;
    let manifest = node.hold(MANIFEST).await;
    let memory = resident();
    let mut pullers = Vec::new();
    let mut refused = 0;
    for puller in 0..200 {
        // None of them reads more than it must.
        let (status, stream) = reader(&node, &large, puller, NOTHING).await;
        refused += usize::from(status == "503");
        pullers.push(stream);
    }
    assert_eq!(refused, 200 - 64);

    for path in [
        "/livez".to_string(),
        "/v2/".to_string(),
        format!("/v2/app/manifests/{manifest}"),
    ] {
        let began = std::time::Instant::now();
        assert_eq!(node.get(&path).await.status, 200);
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{path}: {:?}",
            began.elapsed()
        );
    }
    let grown = resident().saturating_sub(memory);
    assert!(grown < 64 * (4 << 20), "{} MiB for 64 uploads", grown >> 20);
}

/// Memory of this process in bytes.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_no_reason_to_fail() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let blob = holder.hold("blob").await;
    asker.store.set_unreachable(true);

    let answer = asker.get(&format!("/v2/app/blobs/{blob}")).await;

    assert_eq!(answer.body, b"blob");
}

#[tokio::test]
async fn a_file_that_was_cut_off_ends_short_with_a_fin() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let digest = node.hold(noise(300_000, 1)).await;
    node.store.truncate(&digest, 200_000);

    let answer = node.get(&format!("/v2/app/blobs/{digest}")).await;

    assert_eq!(answer.header("content-length"), Some("300000"));
    assert_eq!(answer.body.len(), 200_000, "every byte that there is");
    assert_eq!(node.count("peili_mirror_requests_total", "failed"), 1);
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_at_all_is_fetched_elsewhere() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let digest = holder.hold("whole").await;
    asker.store.add_blob("whole");
    asker.store.truncate(&digest, 0);

    let answer = asker.get(&format!("/v2/app/blobs/{digest}")).await;

    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, &b"whole"[..])
    );
}

#[tokio::test]
async fn however_the_last_peer_fails_the_body_ends_with_a_fin_and_the_retry_is_a_404() {
    let blob = noise(1_000_000, 1);
    let digest = Digest::sha256(&blob);
    let path = format!("/v2/app/blobs/{digest}?ns=registry.test");
    let peer = || FakePeer::serving(blob.clone());
    for (name, peer, at_least) in [
        ("ends", peer().ending_after(400_000), 400_000),
        ("stalls", peer().stalling_after(400_000), 400_000),
        ("resets", peer().resetting_after(400_000), 1),
        ("lies", peer().lying_about_its_length_by(1000), 1_000_000),
    ] {
        let swarm = FakeSwarm::new();
        let (asker, peer) = (Node::in_swarm(&swarm).await, peer.spawn().await);
        let router = swarm.join(peer.peer().registry[0]);
        router.advertise(vec![digest.clone().into()]).await.unwrap();

        let cut = asker.get(&path).await;

        let promised: usize = cut.header("content-length").unwrap().parse().unwrap();
        assert!(cut.body.len() < promised, "{name}");
        assert!(
            cut.body.len() >= at_least,
            "{name}: {} bytes",
            cut.body.len()
        );
        assert!(blob.starts_with(&cut.body), "{name}: and no wrong one");
        drop(peer);
        let range = format!("bytes={}-", cut.body.len());
        let retry = asker.ask("GET", &path, &[("range", &range)]).await;
        assert_eq!(retry.status, 404, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_refused_with_a_reason() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let digest = Digest::sha256(b"x");
    let long = format!("/v2/{}/manifests/v1?ns=a.b", "a/".repeat(200));
    for (method, path, status, code) in [
        ("GET", "/", 404, "UNSUPPORTED"),
        ("GET", "/v1/app", 404, "UNSUPPORTED"),
        ("GET", "/v2/_catalog", 404, "UNSUPPORTED"),
        ("GET", "/v2/app/tags/list", 404, "UNSUPPORTED"),
        ("GET", "/v2/App/manifests/v1?ns=a.b", 400, "NAME_INVALID"),
        ("GET", "/v2/app/manifests/v1?ns=a%20b", 400, "NAME_INVALID"),
        ("GET", "/v2/app/manifests/-?ns=a.b", 400, "MANIFEST_INVALID"),
        ("GET", "/v2/app/blobs/sha256:123", 400, "DIGEST_INVALID"),
        (
            "GET",
            "/v2/app/blobs/sha256:..%2f..%2fetc%2fpasswd",
            400,
            "DIGEST_INVALID",
        ),
        ("GET", &long, 400, "NAME_INVALID"),
        ("PUT", "/v2/app/manifests/v1", 405, "UNSUPPORTED"),
        ("POST", "/v2/app/blobs/uploads/", 405, "UNSUPPORTED"),
        (
            "DELETE",
            &format!("/v2/app/blobs/{digest}"),
            405,
            "UNSUPPORTED",
        ),
        ("PUT", "/v2/", 405, "UNSUPPORTED"),
    ] {
        let answer = node.ask(method, path, &[]).await;

        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {path}"
        );
    }
    assert_eq!(
        node.count("peili_mirror_requests_total", "miss"),
        0,
        "not counted"
    );
}

#[tokio::test]
async fn hostile_requests_get_an_answer_or_an_end() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let digest = node.hold("blob").await;
    let huge = format!(
        "GET /v2/ HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let many = format!(
        "GET /v2/ HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(1000)
    );
    let close = "connection: close\r\n\r\n";
    for (request, status) in [
        (huge, Some(431)),
        (many, Some(431)),
        (
            format!("CONNECT example.test:443 HTTP/1.1\r\nhost: x\r\n{close}"),
            Some(405),
        ),
        (
            format!("BREW /v2/ HTTP/1.1\r\nhost: x\r\n{close}"),
            Some(405),
        ),
        (
            format!("OPTIONS * HTTP/1.1\r\nhost: x\r\n{close}"),
            Some(405),
        ),
        // Absolute form is for proxies, and every server must take it (RFC 9112, section 3.2.2).
        (
            format!("GET http://elsewhere/v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\n{close}"),
            Some(200),
        ),
        (
            format!("GET /v2/a/blobs/{digest}?ns=%00 HTTP/1.1\r\nhost: x\r\n{close}"),
            Some(400),
        ),
        (
            format!("GET /v2/a/blobs/{digest} HTTP/9.9\r\nhost: x\r\n{close}"),
            Some(400),
        ),
        ("\0\x01\x02\r\n\r\n".to_string(), Some(400)),
        (
            "GET /v2/ HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n".to_string(),
            Some(400),
        ),
        (String::new(), None),
    ] {
        let case: String = request.chars().take(60).collect();
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        // The server may have closed before all of it was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut received = Vec::new();
        let read = stream.read_to_end(&mut received);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.expect("an end")
            .unwrap_or_else(|e| panic!("{case}: {e}"));
        let answered = (!received.is_empty()).then(|| Answer::of(received).status);
        assert_eq!(answered, status, "{case}");
    }
    assert_eq!(node.get("/v2/").await.status, 200, "and it lives");
}

#[tokio::test]
async fn idle_connections_beyond_the_limit_are_closed_and_the_rest_is_served() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let digest = node.hold("blob").await;
    // Both ends of each are in this process.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut idle = Vec::new();
    for _ in 0..peili::server::MAX_CONNECTIONS {
        idle.push(TcpStream::connect(node.address).await.unwrap());
    }
    // Ten thousand in all, where this process may have so many descriptors.
    let room = limit.current.map_or(usize::MAX, |limit| limit as usize);
    let beyond = room.saturating_sub(2 * idle.len() + 1000);
    let beyond = beyond.clamp(1, 10_000 - idle.len());
    let mut turned_away = Vec::new();
    for _ in 0..beyond {
        turned_away.push(TcpStream::connect(node.address).await.unwrap());
    }
    for mut stream in turned_away {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await;
        read.expect("an end").expect_err("and not a byte");
    }

    idle.truncate(idle.len() - 10);

    let served = || async {
        let path =
            format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(node.address).await.ok()?;
        stream.write_all(path.as_bytes()).await.ok()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.ok()?;
        received.ends_with(b"blob").then_some(())
    };
    peili::testing::eventually("room is made", Duration::from_secs(10), served).await;
}

#[tokio::test]
async fn a_request_with_a_body_gets_its_answer_and_no_reset() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let path = format!("/v2/app/blobs/{}", Digest::sha256(b"x"));
    let mut request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n").into_bytes();
    request.extend(vec![b'x'; 50_000]);

    let answer = node.send(&request).await;

    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("connection"), Some("close"));
}

#[tokio::test]
async fn the_probes_say_what_is_awaited() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let guard = node.readiness.guard("routing");
    guard.because("looking for other nodes");

    let unready = node.get("/readyz").await;
    assert_eq!(unready.status, 503);
    let body = String::from_utf8(unready.body).unwrap();
    assert_eq!(body, "awaiting routing: looking for other nodes\n");
    assert_eq!(node.get("/livez").await.status, 200);

    drop(guard);
    assert_eq!(node.get("/readyz").await.status, 200);
    for path in ["/livez", "/readyz", "/v2/", "/v2"] {
        let (get, head) = (node.get(path).await, node.ask("HEAD", path, &[]).await);
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        let length = get.body.len().to_string();
        let lengths = [&get, &head].map(|answer| answer.header("content-length"));
        assert_eq!(lengths, [Some(&*length); 2], "{path}");
        assert!(head.body.is_empty(), "{path}");
        assert_eq!(node.ask("PUT", path, &[]).await.status, 405, "{path}");
    }
}

#[tokio::test]
async fn requests_and_bytes_are_counted_by_source() {
    let swarm = FakeSwarm::new();
    let (holder, asker) = (Node::in_swarm(&swarm).await, Node::in_swarm(&swarm).await);
    let there = holder.hold(noise(70_000, 1)).await;
    let here = asker.hold(noise(50_000, 2)).await;
    let nowhere = Digest::sha256(b"nowhere");
    for digest in [&there, &here, &here, &nowhere] {
        asker.get(&format!("/v2/app/blobs/{digest}")).await;
    }

    for (source, requests, bytes) in [("peer", 1, 70_000), ("local", 2, 100_000), ("miss", 1, 0)] {
        let counted = asker.count("peili_mirror_requests_total", source);
        assert_eq!(counted, requests, "{source}");
        let counted = asker.count("peili_mirror_bytes_total", source);
        assert_eq!(counted, bytes, "{source}");
    }
    assert_eq!(asker.count("peili_registry_bytes_saved_total", ""), 70_000);
    assert_eq!(asker.count("peili_mirror_bytes_total", "in_flight"), 0);
    assert_eq!(holder.count("peili_upload_requests_total", "local"), 1);
    assert_eq!(holder.count("peili_upload_bytes_total", ""), 70_000);
}

/// Flow 1 in one process: what the store holds is what the swarm is told.
#[tokio::test]
async fn the_cluster_is_told_what_the_node_holds_and_no_more() {
    let node = Node::in_swarm(&FakeSwarm::new()).await;
    let (blob, tag) = (node.store.add_blob("blob"), tag("registry.test/app:v1"));
    let stop = CancellationToken::new();
    node.shutdown.spawn(peili::advertise::run(
        Arc::new(node.store.clone()),
        Arc::new(node.router.clone()),
        Arc::default(),
        node.pulls.clone(),
        peili::advertise::Holdings::default(),
        node.readiness.guard("content"),
        stop.clone(),
    ));
    let told = async |expected: &[Key]| {
        peili::testing::eventually("the cluster is told", Duration::from_secs(5), || async {
            let told = node.router.advertised();
            let same =
                told.len() == expected.len() && expected.iter().all(|key| told.contains(key));
            same.then_some(())
        })
        .await;
    };

    told(&[blob.clone().into()]).await;
    assert!(node.readiness.is_ready());
    node.store.tag(&tag, &blob);
    told(&[blob.clone().into(), tag.clone().into()]).await;
    // What cannot be listed is not gone.
    node.store.set_unreachable(true);
    node.store.set_unreachable(false);
    node.store.remove_tag(&tag);
    told(&[blob.into()]).await;
    stop.cancel();
    assert_eq!(node.shutdown.finish(Duration::from_secs(5)).await, 0);
}
