//! A swarm that is closed: routers over TCP, whole registries with fakes behind them, and real nodes.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;
#[allow(dead_code, reason = "each test uses its part")]
mod nodes;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lab::{ImageSpec, NodeOptions, PeiliOptions, lab_or_skip};
use nodes::{Node, config};
use peili::membership::{HEADER, Members, REFUSED, Request, TAG_PROOF};
use peili::mirror::Papers;
use peili::node_token::{self, NodeToken};
use peili::oci::{Digest, ImageName, Key, TagName};
use peili::registry::door::Door;
use peili::registry::uploads::Uploads;
use peili::registry::{self, Registry};
use peili::routing::Router as _;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad::{self, MEMBER_PROTOCOL};
use peili::shutdown::Shutdown;
use peili::testing::conformance::routing::{all, content, eventually};
use peili::testing::content::FakeStore;
use peili::testing::peer::FakePeer;
use peili::testing::raw_http::{self, Answer};
use peili::testing::router::{FakeRouter, FakeSwarm};
use peili::testing::{self, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Of whatever is asked.
const AT_ALL: Duration = Duration::from_secs(20);

const ONE: &str = "the first secret of this cluster";
const TWO: &str = "the second secret of this cluster";

/// What a node has in its file; nothing: it has no file.
struct Secrets {
    file: tempfile::NamedTempFile,
    members: Arc<Members>,
}

impl Secrets {
    fn of(lines: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let members = Arc::new(Members::load(file.path()).unwrap());
        Self { file, members }
    }

    fn become_these(&self, lines: &[&str]) {
        std::fs::write(self.file.path(), lines.join("\n")).unwrap();
        self.members.look();
    }
}

/// At 127.0.1.x, so that no other test's nodes are there.
async fn router(number: u8, secrets: Option<&Secrets>, first: Option<&Node>) -> Node {
    let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, number));
    let peers = first.map(Node::address).into_iter().collect();
    Node::with(kad::Config {
        bootstrap: Some(Bootstrap::Static(peers)),
        members: secrets.map(|secrets| secrets.members.clone()),
        ..config(ip, SocketAddr::new(ip, 0))
    })
    .await
}

/// A value of a node's page.
fn metric(node: &Node, series: &str) -> u64 {
    let page = node.metrics();
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series}"))
        .trim()
        .parse()
        .unwrap()
}

fn strangers(node: &Node, direction: &str, reason: &str) -> u64 {
    let series =
        format!("peili_router_strangers_total{{direction=\"{direction}\",reason=\"{reason}\"}}");
    metric(node, &series)
}

async fn finds(asking: &Node, key: &Key, holder: &Node) {
    eventually("the holder is found", async || {
        let found = all(&asking.kad, key).await;
        found
            .iter()
            .any(|peer| peer.id == *holder.kad.peer_id())
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn members_find_each_other_and_strangers_find_and_tell_nothing() {
    let secrets = Secrets::of(&[ONE]);
    let other = Secrets::of(&[TWO]);
    let first = router(1, Some(&secrets), None).await;
    let second = router(2, Some(&secrets), Some(&first)).await;
    let without = router(3, None, Some(&first)).await;
    let wrong = router(4, Some(&other), Some(&first)).await;
    let (layer, theirs) = (content("layer"), content("theirs"));
    first.kad.advertise(vec![layer.clone()]).await.unwrap();
    for node in [&without, &wrong] {
        node.kad.advertise(vec![theirs.clone()]).await.unwrap();
    }
    finds(&second, &layer, &first).await;

    for (stranger, reason) in [(&without, "no_secret"), (&wrong, "other_secret")] {
        eventually("both sides count it", async || {
            let both = [
                strangers(stranger, "out", reason),
                strangers(&first, "in", reason),
            ];
            both.iter().all(|count| *count > 0).then_some(())
        })
        .await;
        assert_eq!(all(&stranger.kad, &layer).await, []);
        let known = "peili_peers{state=\"known\"}";
        assert_eq!(metric(stranger, known), 0);
        assert_eq!(metric(stranger, "peili_peers{state=\"connected\"}"), 0);
        let mut found = all(&second.kad, &theirs).await;
        found.retain(|peer| peer.id == *stranger.kad.peer_id());
        assert_eq!(found, []);
    }
    for member in [&first, &second] {
        assert_eq!(metric(member, "peili_peers{state=\"known\"}"), 1);
    }
    // A member that calls into an open swarm is as strange there.
    let lost = router(5, Some(&secrets), Some(&without)).await;
    eventually("both sides count it", async || {
        let both = [
            strangers(&lost, "out", "no_secret"),
            strangers(&without, "in", "no_secret"),
        ];
        both.iter().all(|count| *count > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_comes_with_a_wrong_secret_is_told_what_he_waits_for() {
    let (secrets, other) = (Secrets::of(&[ONE]), Secrets::of(&[TWO]));
    let first = router(11, Some(&secrets), None).await;
    let wrong = router(12, Some(&other), Some(&first)).await;

    let is_told = eventually("the reason is told, or it waits no longer", async || {
        let awaited = wrong.readiness.awaited().join("; ");
        let told = awaited.contains("it has another cluster secret than this node");
        (told || wrong.readiness.is_ready()).then_some(told)
    })
    .await;
    assert!(is_told);
    // As with nodes that refuse: whoever finds nobody in the end is no reason to hold a pod back.
    wrong.ready().await;
}

/// What a member's listener says to raw bytes until it closes, and how long that took.
async fn said_to(node: &Node, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(node.kad.listen_addrs()[0])
        .await
        .unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said);
    // A reset is an end, too.
    let _ = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("an end");
    (said, begun.elapsed())
}

/// A message of multistream-select: its length, the text, a line feed.
fn line(text: &str) -> Vec<u8> {
    let mut line = vec![u8::try_from(text.len() + 1).unwrap()];
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    line
}

#[tokio::test]
async fn a_caller_who_is_silent_or_speaks_noise_alone_is_gone_within_seconds() {
    let secrets = Secrets::of(&[ONE]);
    let node = router(21, Some(&secrets), None).await;
    let hello = line("/multistream/1.0.0");
    let spegel = [hello.clone(), line("/noise")].concat();
    let member = [hello.clone(), line(MEMBER_PROTOCOL)].concat();
    // In the middle of noise: a first message of 32 bytes, and then nothing, or what no noise is.
    let half = [&member[..], &[0, 32], &[9; 32]].concat();
    let wrong = [&member[..], &[0xff, 0xff], &[7; 4096]].concat();

    let (silent, refused, halved, garbled) = tokio::join!(
        said_to(&node, b""),
        async {
            // Nothing else is on offer, whatever is asked for.
            let begun = Instant::now();
            let mut stream = TcpStream::connect(node.kad.listen_addrs()[0])
                .await
                .unwrap();
            stream.write_all(&spegel).await.unwrap();
            let mut said = vec![0; hello.len() + 4];
            stream.read_exact(&mut said).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            (said, begun.elapsed())
        },
        said_to(&node, &half),
        said_to(&node, &wrong),
    );

    assert_eq!(refused.0, [hello.clone(), line("na")].concat());
    for (what, took) in [
        ("silent", silent.1),
        ("half", halved.1),
        ("garbled", garbled.1),
    ] {
        assert!(took < Duration::from_secs(10), "{what}: {took:?}");
    }
    assert!(silent.0.is_empty());
    eventually("the Spegel is counted", async || {
        (strangers(&node, "in", "no_secret") == 1).then_some(())
    })
    .await;
    // Nor is one who comes and goes without a word, as a scan of ports does.
    drop(TcpStream::connect(node.kad.listen_addrs()[0]).await);
    said_to(&node, &hello).await;
    assert_eq!(strangers(&node, "in", "no_secret"), 1);
    assert_eq!(strangers(&node, "in", "other_secret"), 0);
    assert_eq!(metric(&node, "peili_peers{state=\"connected\"}"), 0);
}

#[tokio::test]
async fn a_secret_is_replaced_in_three_steps_and_no_lookup_fails() {
    let secrets = [0; 3].map(|_| Secrets::of(&[ONE]));
    let first = router(31, Some(&secrets[0]), None).await;
    let second = router(32, Some(&secrets[1]), Some(&first)).await;
    let third = router(33, Some(&secrets[2]), Some(&first)).await;
    let nodes = [first, second, third];
    let layer = content("layer");
    nodes[2].kad.advertise(vec![layer.clone()]).await.unwrap();
    for asking in &nodes[..2] {
        asking.knows(2).await;
        finds(asking, &layer, &nodes[2]).await;
    }

    let rotated = async {
        for lines in [&[ONE, TWO][..], &[TWO, ONE], &[TWO]] {
            for node in &secrets {
                node.become_these(lines);
                // As long as connections of a removed secret may live.
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let looked = async {
        let mut lookups = 0;
        loop {
            for asking in &nodes[..2] {
                let found = all(&asking.kad, &layer).await;
                let is_found = found.iter().any(|peer| peer.id == *nodes[2].kad.peer_id());
                assert!(is_found, "lookup {lookups} found {found:?}");
                lookups += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = rotated => {}
        never = looked => never,
    }

    for node in &nodes {
        for direction in ["in", "out"] {
            assert_eq!(strangers(node, direction, "other_secret"), 0);
        }
    }
    // And it is the new one that counts.
    let late = Secrets::of(&[ONE]);
    let late = router(34, Some(&late), Some(&nodes[0])).await;
    eventually("it is refused", async || {
        (strangers(&late, "out", "other_secret") > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_removed_secret_shuts_out_who_is_connected_by_it() {
    let (ours, theirs) = (Secrets::of(&[ONE, TWO]), Secrets::of(&[TWO]));
    let first = router(41, Some(&ours), None).await;
    let second = router(42, Some(&ours), Some(&first)).await;
    // Its first secret is the one that goes, and it takes no other.
    ours.become_these(&[TWO, ONE]);
    let stolen = router(43, Some(&theirs), Some(&first)).await;
    let layer = content("layer");
    second.kad.advertise(vec![layer.clone()]).await.unwrap();
    finds(&stolen, &layer, &second).await;
    assert!(metric(&stolen, "peili_peers{state=\"connected\"}") > 0);

    ours.become_these(&[ONE]);

    eventually("it is alone", async || {
        (metric(&stolen, "peili_peers{state=\"connected\"}") == 0).then_some(())
    })
    .await;
    // What it was told before it may keep; from now on it hears nothing.
    let later = content("later");
    second.kad.advertise(vec![later.clone()]).await.unwrap();
    finds(&first, &later, &second).await;
    assert_eq!(all(&stolen.kad, &later).await, []);
    eventually("it is counted", async || {
        (strangers(&stolen, "out", "other_secret") > 0).then_some(())
    })
    .await;
}

// The registry port.

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;

/// A node of a fake swarm, its registry and what it proves.
struct Mirrored {
    store: FakeStore,
    router: FakeRouter,
    address: SocketAddr,
    metrics: prometheus::Registry,
    /// Which its own containerd has.
    token: String,
    _shutdown: Shutdown,
    _data: tempfile::TempDir,
}

impl Mirrored {
    async fn start(swarm: &FakeSwarm, secrets: Option<&Secrets>) -> Self {
        let (server, address) = testing::registry::server().await;
        let (store, router) = (FakeStore::default(), swarm.join(address));
        let metrics = prometheus::Registry::new();
        let members = secrets.map(|secrets| secrets.members.clone());
        let data = tempfile::tempdir().unwrap();
        let token = node_token::load_or_create(data.path()).unwrap();
        let mirror = testing::registry::mirror(router.clone(), &metrics);
        let papers = Papers {
            basic_auth: None,
            members: members.clone(),
        };
        let routes = registry::router(Registry {
            token: Some(Arc::new(NodeToken::new(data.path(), members.is_some()))),
            door: members.map(|members| Door::new(members, &router.peer())),
            // One at a time: a second peer is sent elsewhere.
            uploads: Uploads::new(1),
            ..testing::registry::over(store.clone(), mirror.with_papers(papers), &metrics)
        });
        let shutdown = Shutdown::new();
        shutdown.spawn(server.run(routes, shutdown.clone()));
        Self {
            store,
            router,
            address,
            metrics,
            token,
            _shutdown: shutdown,
            _data: data,
        }
    }

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

    /// As its own containerd.
    async fn ours(&self, path: &str) -> Answer {
        self.ask("GET", path, &[(node_token::HEADER, &self.token)])
            .await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        raw_http::ask(self.address, AT_ALL, method, path, headers).await
    }

    fn count(&self, name: &str, label: &str) -> u64 {
        let families = self.metrics.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.expect("a metric").get_metric();
        let found = metrics
            .iter()
            .find(|metric| metric.get_label().iter().any(|it| it.value() == label));
        found.expect("a label").get_counter().get_value() as u64
    }
}

fn tag(name: &str) -> TagName {
    name.parse::<ImageName>().unwrap().tag.unwrap()
}

#[tokio::test]
async fn the_registry_port_is_open_to_members_and_to_its_own_containerd() {
    let (swarm, secrets, other) = (FakeSwarm::new(), Secrets::of(&[ONE]), Secrets::of(&[TWO]));
    let node = Mirrored::start(&swarm, Some(&secrets)).await;
    let digest = node.hold(noise(1000, 1)).await;
    let path = format!("/v2/app/blobs/{digest}?ns=a.test");
    let name = node.router.id().as_str();
    let proven = |members: &Members, to: &str, range: &str, now| {
        let asked = Request {
            to,
            method: "GET",
            path_and_query: &path,
            range,
        };
        members.request(&asked, now).0
    };
    let now = SystemTime::now();
    let ours = &secrets.members;
    let right = proven(ours, name, "", now);
    let at = proven(ours, &format!("at {}", node.address), "", now);
    let peer = ("x-spegel-mirrored", "true");
    for (what, headers, status) in [
        (
            "its containerd",
            vec![(node_token::HEADER, node.token.as_str())],
            200,
        ),
        ("a member", vec![peer, (HEADER, &right)], 200),
        (
            "a member that has its address from a busy one",
            vec![peer, (HEADER, &at)],
            200,
        ),
        ("anybody", vec![], 404),
        ("a Spegel", vec![peer], 404),
        (
            "a containerd with another's token",
            vec![(node_token::HEADER, "00")],
            404,
        ),
        ("a member that is no peer", vec![(HEADER, &right)], 404),
    ] {
        let answer = node.ask("GET", &path, &headers).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.head);
        if status == 404 {
            assert!(answer.text().contains("DENIED"), "{what}");
        }
    }

    let hour = Duration::from_secs(3600);
    for (what, header, said) in [
        (
            "another secret",
            proven(&other.members, name, "", now),
            "another cluster secret",
        ),
        (
            "for another node",
            proven(ours, "node-7", "", now),
            "for another node",
        ),
        (
            "for another range",
            proven(ours, name, "bytes=0-", now),
            "another node",
        ),
        (
            "an hour old",
            proven(ours, name, "", now - hour),
            "s behind this one's",
        ),
        (
            "an hour ahead",
            proven(ours, name, "", now + hour),
            "s ahead of this one's",
        ),
        ("none", "v=1".to_string(), "no proof"),
    ] {
        let answer = node.ask("GET", &path, &[peer, (HEADER, &header)]).await;
        let why = answer.header(REFUSED).expect(what);
        assert_eq!(answer.status, 404, "{what}");
        assert!(why.contains(said), "{what}: {why}");
    }
    for (reason, count) in [("unproven", 2), ("unknown", 3), ("clock", 2)] {
        let counted = node.count("peili_registry_strangers_total", reason);
        assert_eq!(counted, count, "{reason}");
    }
    for probe in ["/livez", "/readyz"] {
        assert_eq!(node.ask("GET", probe, &[]).await.status, 200, "{probe}");
    }
}

#[tokio::test]
async fn members_serve_each_other_and_a_stranger_goes_to_the_registry() {
    let (swarm, secrets, other) = (FakeSwarm::new(), Secrets::of(&[ONE]), Secrets::of(&[TWO]));
    let holder = Mirrored::start(&swarm, Some(&secrets)).await;
    let member = Mirrored::start(&swarm, Some(&secrets)).await;
    let wrong = Mirrored::start(&swarm, Some(&other)).await;
    let without = Mirrored::start(&swarm, None).await;
    let (blob, manifest) = (noise(300_000, 1), holder.hold(MANIFEST).await);
    let digest = holder.hold(blob.clone()).await;
    holder.hold_tag(&tag("a.test/app:v1"), &manifest).await;
    let paths = [
        format!("/v2/app/blobs/{digest}?ns=a.test"),
        format!("/v2/app/manifests/{manifest}?ns=a.test"),
        "/v2/app/manifests/v1?ns=a.test".to_string(),
    ];

    for path in &paths {
        assert_eq!(member.ours(path).await.status, 200, "{path}");
        for stranger in [&wrong, &without] {
            let refused = stranger.ours(path).await;
            assert_eq!(refused.status, 404, "{path}");
            assert!(
                refused.text().contains("for a stranger"),
                "{}",
                refused.text()
            );
        }
    }
    let range = [
        (node_token::HEADER, member.token.as_str()),
        ("range", "bytes=7-"),
    ];
    let part = member.ask("GET", &paths[0], &range).await;
    assert!(
        part.status == 206 && part.body == blob[7..],
        "{}",
        part.head
    );
    for stranger in [&wrong, &without] {
        assert_eq!(stranger.count("peili_peer_attempts_total", "stranger"), 3);
    }
    assert_eq!(holder.count("peili_registry_strangers_total", "unknown"), 3);
    assert_eq!(
        holder.count("peili_registry_strangers_total", "unproven"),
        3
    );
}

#[tokio::test]
async fn a_tag_is_believed_from_members_alone() {
    let (swarm, secrets) = (FakeSwarm::new(), Secrets::of(&[ONE]));
    let asker = Mirrored::start(&swarm, Some(&secrets)).await;
    // He answers everything with a manifest of his own, and is where a member is said to be.
    let liar = FakePeer::serving(MANIFEST).spawn().await;
    let name = tag("a.test/app:v1");
    let theirs = swarm.join(liar.peer().registry[0]);
    theirs
        .advertise(vec![Key::Tag(name.clone())])
        .await
        .unwrap();
    let path = "/v2/app/manifests/v1?ns=a.test";

    for method in ["GET", "HEAD"] {
        let token = [(node_token::HEADER, asker.token.as_str())];
        let refused = asker.ask(method, path, &token).await;
        assert_eq!(refused.status, 404, "{method}");
    }
    let why = asker.ours(path).await.text();
    assert!(why.contains("without a member's proof"), "{why}");
    assert!(!liar.asked().is_empty(), "he was asked");
    // What it is checked against makes no difference who sends it.
    let digest = Digest::sha256(MANIFEST.as_bytes());
    theirs
        .advertise(vec![Key::Content(digest.clone())])
        .await
        .unwrap();
    let by_digest = format!("/v2/app/manifests/{digest}?ns=a.test");
    assert_eq!(asker.ours(&by_digest).await.status, 200);

    // A member's word counts, whoever else has spoken.
    let holder = Mirrored::start(&swarm, Some(&secrets)).await;
    let held = holder.hold(MANIFEST.replace("[]", "[ ]")).await;
    holder.hold_tag(&name, &held).await;
    let answer = asker.ours(path).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("docker-content-digest"), Some(held.as_str()));

    // And so it is told: for this request, and to members.
    let asked = Request {
        to: holder.router.id().as_str(),
        method: "HEAD",
        path_and_query: path,
        range: "",
    };
    let (header, nonce) = secrets.members.request(&asked, SystemTime::now());
    let peer = ("x-spegel-mirrored", "true");
    let told = holder.ask("HEAD", path, &[peer, (HEADER, &header)]).await;
    let proof = told.header(TAG_PROOF).expect("a proof");
    assert!(
        secrets
            .members
            .is_vouched(proof, &nonce, path, held.as_str())
    );
    let ours = holder.ours(path).await;
    assert_eq!((ours.status, ours.header(TAG_PROOF)), (200, None));
}

#[test]
fn a_file_without_a_secret_ends_the_process_before_it_listens() {
    let (short, data) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    std::fs::write(short.path(), "# a comment\nhunter2\n").unwrap();
    let run = |file: &Path, with_data: bool| {
        let mut daemon = std::process::Command::new(env!("CARGO_BIN_EXE_peili"));
        daemon.args(["registry", "--bootstrap-kind", "static"]);
        daemon.args(["--static-bootstrap-peers", "/ip4/127.0.0.1/tcp/1"]);
        daemon
            .env_remove("DATA_DIR")
            .arg("--cluster-secret-file")
            .arg(file);
        if with_data {
            daemon.arg("--data-dir").arg(data.path());
        }
        let ended = daemon.output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stderr).unwrap(),
        )
    };

    for (file, why) in [
        (short.path(), "line 2, has a secret of 7 bytes"),
        (Path::new("/nowhere/secret"), "cannot be read"),
    ] {
        let (code, log) = run(file, true);
        assert_eq!(code, Some(78), "{log}");
        assert!(
            log.contains("--cluster-secret-file [CLUSTER_SECRET_FILE]"),
            "{log}"
        );
        assert!(
            log.contains(why) && log.contains("openssl rand -hex 32"),
            "{log}"
        );
        assert!(
            !log.contains("hunter2") && !log.contains("serving"),
            "{log}"
        );
    }
    let (code, log) = run(short.path(), false);
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("--data-dir [DATA_DIR] is missing"), "{log}");
}

// Real containerds.

#[tokio::test(flavor = "multi_thread")]
async fn with_the_registry_off_members_pull_from_members_and_a_stranger_gets_nothing() {
    const MIB: u64 = 1 << 20;
    let lab = lab_or_skip!();
    let spec = ImageSpec::new("test/app:v1").index().layers([MIB; 4]);
    let image = lab.push(spec).await.unwrap();
    let secret = lab.folder("secret").unwrap().join("secret");
    std::fs::write(&secret, ONE).unwrap();
    let closed = PeiliOptions::default()
        .arg("--cluster-secret-file", secret.to_str().unwrap())
        .unconfigured();
    let open = PeiliOptions::default().unconfigured();
    let mut nodes = Vec::new();
    for number in 0..4 {
        let node = lab.node(NodeOptions::default()).await.unwrap();
        let data = node.peili().data().display().to_string();
        let (netns, containerd) = (node.netns(), node.containerd());
        let more = ["--data-dir", data.as_str()];
        node.peili()
            .configure(netns, containerd, &lab.registry.host(), &more)
            .await
            .unwrap();
        let options = if number < 3 { &closed } else { &open };
        node.start_peili_with(options).await.unwrap();
        nodes.push(node);
    }
    let stranger = &nodes[3];
    nodes[0].cri_pull(&image.reference()).await.unwrap();

    // The stranger's own pulls go on as without us.
    let before = lab.registry.served().await.unwrap();
    stranger.cri_pull(&image.reference()).await.unwrap();
    let after = lab.registry.served().await.unwrap();
    assert_eq!(after.bytes() - before.bytes(), image.pulled_bytes());
    let saved = async |node: &lab::Node| {
        let saved = node.metric("peili_registry_bytes_saved_total", &[]);
        saved.await.unwrap() as u64
    };
    assert_eq!(saved(stranger).await, 0);

    // One holder is enough to prove it for the members: nothing of theirs comes from the stranger.
    lab.stop_registry().await.unwrap();
    for node in &nodes[1..3] {
        node.cri_pull(&image.reference()).await.unwrap();
        assert_eq!(saved(node).await, image.pulled_bytes(), "{}", node.name());
    }
    assert_eq!(
        stranger
            .metric("peili_upload_bytes_total", &[])
            .await
            .unwrap(),
        0.0
    );

    // Nor does he get anything by asking a member himself.
    let path = format!(
        "/v2/{}/manifests/v1?ns={}",
        image.name(),
        lab.registry.host()
    );
    let path = path.replace("%3A", ":");
    for headers in [&[][..], &[("X-Spegel-Mirrored", "true")]] {
        let member = nodes[0].peili().registry();
        let answer = stranger.http(member, hyper::Method::GET, &path, headers);
        assert_eq!(answer.await.unwrap().status, 404, "{headers:?}");
    }
    for (node, options, is_well) in [(&nodes[1], &closed, true), (stranger, &open, false)] {
        let mut doctor = node.doctor(options, &["--format", "json"], None).unwrap();
        let said = tokio::task::spawn_blocking(move || doctor.output()).await;
        let said = String::from_utf8(said.unwrap().unwrap().stdout).unwrap();
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let findings = said["findings"].as_array().unwrap();
        let members = findings.iter().find(|it| it["check"] == "members").unwrap();
        match is_well {
            // The stranger has called, which is told.
            true => assert_ne!(members["state"], "broken", "{members}"),
            false => assert_eq!(members["state"], "broken", "{members}"),
        }
    }
}
