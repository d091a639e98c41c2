//! What a running Peili tells, against what really happened: three nodes on loopback, by JSON, by page and by command.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use hyper::Method;
use lab::http::{Answer, get_here, send_here};
use lab::loopback::{Loopback, LoopbackNode};
use lab::process::eventually;
use lab::{Image, ImageSpec};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const REGISTRY: &str = "registry.test:5000";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
const JSON: (&str, &str) = ("content-type", "application/json");
const VIEWS: [&str; 6] = ["", "cluster", "content", "flights", "pulls", "try"];

async fn cluster() -> Loopback {
    let cluster = Loopback::new(3).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    cluster
}

/// The first node has it, and the others find it.
async fn seeded(cluster: &Loopback) -> Image {
    let spec = ImageSpec::new("test/app:v1")
        .index()
        .layers([3 << 20, 70_000]);
    let dir = cluster.folder("images").unwrap();
    let image = spec.build(REGISTRY, &dir).unwrap();
    cluster.nodes()[0].layout().add(&image).unwrap();
    for node in &cluster.nodes()[1..] {
        eventually("the image", AT_ALL, async || {
            let body = json!({"reference": image.reference()});
            let found = posted(node, "find", body).await?.expect(200)?;
            let found: Value = serde_json::from_slice(&found.body)?;
            let layer = json!({"reference": image.layers[0].digest});
            let layer = posted(node, "find", layer).await?.expect(200)?;
            let layer: Value = serde_json::from_slice(&layer.body)?;
            let are_there = found["peers"] != json!([]) && layer["peers"] != json!([]);
            Ok(are_there.then_some(()))
        })
        .await
        .unwrap();
    }
    image
}

fn path(image: &Image, kind: &str, reference: &str) -> String {
    format!("/v2/{}/{kind}/{reference}?ns={REGISTRY}", image.name())
}

/// As its containerd would; how many requests that took, and how many bytes.
async fn pull(node: &LoopbackNode, image: &Image) -> (u64, u64) {
    let mut paths = vec![path(image, "manifests", image.tag())];
    paths.push(path(image, "manifests", &image.manifest.digest));
    let blobs = image.layers.iter().chain([&image.config]);
    paths.extend(blobs.map(|blob| path(image, "blobs", &blob.digest)));
    let mut bytes = 0;
    for path in &paths {
        let answer = node.get(path).await.unwrap().expect(200).unwrap();
        bytes += answer.body.len() as u64;
    }
    (paths.len() as u64, bytes)
}

async fn told(node: &LoopbackNode, view: &str) -> Value {
    let answer = get_here(node.metrics(), &format!("/debug/api/{view}")).await;
    let answer = answer.unwrap().expect(200).unwrap();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    serde_json::from_slice(&answer.body).unwrap()
}

async fn posted(node: &LoopbackNode, what: &str, body: Value) -> anyhow::Result<Answer> {
    let path = format!("/debug/api/{what}");
    send_here(
        node.metrics(),
        Method::POST,
        &path,
        &[JSON],
        &body.to_string(),
    )
    .await
}

/// The events of a pull that is tried.
async fn tried(node: &LoopbackNode, image: &str) -> Vec<Value> {
    let answer = posted(node, "pull", json!({ "image": image })).await;
    let text = answer.unwrap().expect(200).unwrap().text();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["event"] == kind)
}

async fn page(node: &LoopbackNode, view: &str) -> String {
    let answer = get_here(node.metrics(), &format!("/debug/web/{view}")).await;
    answer.unwrap().expect(200).unwrap().text()
}

/// Runs a command of ours. Not on a thread of the runtime: the daemons are other processes.
fn peili(args: &[&str]) -> Output {
    let mut command = Command::new(PEILI);
    for name in [
        "METRICS_ADDR",
        "REGISTRY_ADDR",
        "DATA_DIR",
        "BASIC_AUTH_DIR",
    ] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_says_what_happened() {
    let cluster = cluster().await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    assert_eq!(told(two, "overview").await["verdict"]["state"], "idle");
    let image = seeded(&cluster).await;

    let (requests, bytes) = pull(two, &image).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    two.get(&path(&image, "blobs", &absent))
        .await
        .unwrap()
        .expect(404)
        .unwrap();

    // What a body was is told when its connection is done with it.
    eventually("the last request", AT_ALL, async || {
        let count = told(two, "overview").await["under_way"].as_u64();
        Ok((count == Some(0)).then_some(()))
    })
    .await
    .unwrap();
    let overview = told(two, "overview").await;
    let totals = &overview["totals"];
    assert_eq!(
        totals["requests"],
        json!({"local": 0, "peer": requests, "miss": 1, "failed": 0})
    );
    assert_eq!(
        (&totals["saved"], &totals["bytes"]["peer"]),
        (&json!(bytes), &json!(bytes))
    );
    let hour = overview["last_hour"].as_array().unwrap();
    assert_eq!(hour.len(), 60);
    let sum: u64 = hour
        .iter()
        .map(|m| m["bytes"]["peer"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, bytes);
    assert_eq!(overview["verdict"]["state"], "mirroring");
    let headline = overview["verdict"]["headline"].as_str().unwrap();
    assert!(
        headline.starts_with("Mirroring: 6 requests, 83 % from peers, 3.1 MiB kept"),
        "{headline}"
    );
    assert_eq!(overview["peers"]["known"], 2);

    let peers = told(two, "peers").await;
    let rows = peers["peers"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{peers}");
    // The one with the most bytes first.
    assert_eq!(rows[0]["addresses"], json!([one.registry()]));
    assert_eq!(rows[0]["bytes_from"], bytes);
    assert_eq!(rows[1]["addresses"], json!([three.registry()]));
    assert_eq!(
        (&rows[0]["speaks"], &rows[0]["failures"]),
        (&json!("peili"), &json!(0))
    );
    assert!(rows[0]["first_byte_ms"].as_f64().unwrap() > 0.0, "{peers}");
    let gave = told(one, "pulls").await;
    let given: u64 = gave["given"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(given, bytes);

    let content = told(one, "content?q=APP").await;
    let row = &content["images"][0];
    assert_eq!(row["image"], format!("{REGISTRY}/test/app"));
    assert_eq!(
        (&row["tag"], &row["digest"]),
        (&json!("v1"), &json!(image.top().digest))
    );
    assert_eq!(row["advertised"], true);
    assert!(row["bytes"].as_u64().unwrap() >= 3 << 20, "{row}");
    assert!(
        row["platforms"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["whole"] == true),
        "{row}"
    );
    assert_eq!(told(one, "content?q=nothing-of-the-kind").await["found"], 0);
    assert_eq!(told(two, "content").await["found"], 0);

    let pulls = told(two, "pulls").await;
    let pull = &pulls["pulls"][0];
    assert_eq!(pull["image"], format!("{REGISTRY}/test/app"));
    assert_eq!(
        (&pull["missed"], &pull["from_peers"]),
        (&json!(1), &json!(bytes))
    );
    let all = pull["requests"].as_array().unwrap();
    assert_eq!(all.len() as u64, requests + 1);
    let layer = all
        .iter()
        .find(|r| r["reference"] == image.layers[0].digest.as_str())
        .unwrap();
    assert_eq!(layer["from"][0]["at"], json!(one.registry()));
    assert_eq!(layer["from"][0]["bytes"], layer["bytes"]);
    assert_eq!(layer["outcome"], format!("From {}.", one.ip()));
    let missed = all.iter().find(|r| r["source"] == "miss").unwrap();
    assert_eq!(
        missed["outcome"],
        "No other node holds this layer. containerd went to the registry."
    );
    assert_eq!(
        told(two, "flights").await,
        json!({"flights": [], "getting": [], "giving": []})
    );

    let overview = page(two, "").await;
    assert!(overview.contains(headline), "{overview}");
    assert!(
        page(two, "pulls")
            .await
            .contains("No other node holds this layer.")
    );
    assert!(
        page(two, "cluster")
            .await
            .contains(&one.registry().to_string())
    );
    assert!(page(one, "content").await.contains(&image.top().digest));
    let listed = peili(&["peers", "--metrics-addr", &two.metrics().to_string()]);
    let listed = text(&listed.stdout);
    assert!(
        listed.contains("ROUND TRIP") && listed.contains(&one.registry().to_string()),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_brings_all_it_needs_and_nobody_elses_page_gets_anything() {
    let cluster = cluster().await;
    let node = &cluster.nodes()[0];
    for view in VIEWS {
        let answer = get_here(node.metrics(), &format!("/debug/web/{view}"))
            .await
            .unwrap();
        let answer = answer.expect(200).unwrap();
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let html = answer.text();
        for elsewhere in ["http://", "https://", "style=", "<style", "onclick"] {
            assert!(!html.contains(elsewhere), "{view}: {elsewhere}");
        }
        for (_, rest) in html
            .match_indices("=\"/debug/web/")
            .map(|(at, _)| html.split_at(at + 2))
        {
            let link = rest.split('"').next().unwrap();
            get_here(node.metrics(), link)
                .await
                .unwrap()
                .expect(200)
                .unwrap();
        }
    }
    let at = node.metrics();
    let own = format!("http://{at}");
    let find = json!({"reference": format!("{REGISTRY}/test/app:v1")}).to_string();
    for (name, headers, status) in [
        (
            "the page",
            vec![
                JSON,
                ("origin", own.as_str()),
                ("sec-fetch-site", "same-origin"),
            ],
            200,
        ),
        ("curl", vec![JSON], 200),
        (
            "another site",
            vec![JSON, ("sec-fetch-site", "cross-site")],
            403,
        ),
        (
            "another origin",
            vec![JSON, ("origin", "http://evil.example")],
            403,
        ),
        ("a form", vec![("content-type", "text/plain")], 415),
        ("another name", vec![JSON, ("host", "evil.example")], 403),
    ] {
        let answer = send_here(at, Method::POST, "/debug/api/find", &headers, &find)
            .await
            .unwrap();
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.text());
    }
    let rebound = [("host", "evil.example:9090")];
    for path in ["/debug/web/", "/debug/api/overview", "/debug/api/events"] {
        let answer = send_here(at, Method::GET, path, &rebound, "")
            .await
            .unwrap();
        assert_eq!(answer.status.as_u16(), 403, "{path}");
        assert!(answer.text().contains("evil.example"), "{path}");
    }
    // Looking is no POST, and what costs traffic is no GET.
    for path in ["/debug/api/find", "/debug/api/pull"] {
        get_here(at, path).await.unwrap().expect(405).unwrap();
    }
    for (what, body) in [
        ("find", json!({"reference": "nginx"})),
        ("pull", json!({"image": "nginx"})),
        ("pull", json!({})),
        ("find", json!([])),
    ] {
        let answer = posted(node, what, body).await.unwrap().expect(400).unwrap();
        let said: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(said["error"].is_string(), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_call_things_is_text() {
    let cluster = cluster().await;
    let node = &cluster.nodes()[0];
    let ns = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%3E%3Cimg%20src=x%3E";
    let digest = format!("sha256:{}", "0".repeat(64));

    let _ = node
        .get(&format!("/v2/a/blobs/{digest}?ns={ns}"))
        .await
        .unwrap();
    let _ = node
        .get(&format!("/v2/a/manifests/v1?ns={ns}"))
        .await
        .unwrap();

    let html = page(node, "pulls").await;
    assert!(html.contains("&#60;script&#62;alert(1)"), "{html}");
    for hostile in ["<script>alert", "<img src=x"] {
        assert!(!html.contains(hostile), "{html}");
    }
    let html = page(node, "content?q=%22%3E%3Cscript%3Ealert(2)").await;
    assert!(!html.contains("<script>alert"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_page_there_is_nothing_below_debug() {
    let cluster = Loopback::new(2).unwrap();
    let off = |_: &LoopbackNode| vec!["--debug-web-enabled=false".to_string()];
    cluster.start_with(Path::new(PEILI), off).await.unwrap();
    let node = &cluster.nodes()[0];

    for path in [
        "/debug",
        "/debug/web/",
        "/debug/web/app.js",
        "/debug/api/overview",
        "/debug/api/events",
    ] {
        get_here(node.metrics(), path)
            .await
            .unwrap()
            .expect(404)
            .unwrap();
    }
    node.metrics_page().await.unwrap();
    let at = node.metrics().to_string();
    for command in [
        &["peers", "--metrics-addr", &at][..],
        &["find", "r.test/a:v1", "--metrics-addr", &at],
    ] {
        let output = peili(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("the debug page is off") && said.contains("debugWebEnabled"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_tried_and_nothing_is_stored() {
    let cluster = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;

    let events = tried(two, &image.reference()).await;

    let ended = events.last().unwrap();
    assert_eq!(
        (&ended["event"], &ended["ok"]),
        (&json!("ended"), &json!(true)),
        "{events:?}"
    );
    assert_eq!(
        of(&events, "manifest").count(),
        2,
        "the index and the image"
    );
    let fetched: Vec<&Value> = of(&events, "fetched").collect();
    assert_eq!(fetched.len(), 3, "{events:?}");
    let at = json!(one.registry());
    assert!(
        fetched
            .iter()
            .all(|event| event["source"] == "peer" && event["at"] == at),
        "{fetched:?}"
    );
    assert!(image.blobs().all(|blob| !two.layout().holds(&blob.digest)));
    let counted = two
        .metric("peili_mirror_requests_total", &[])
        .await
        .unwrap();
    let saved = two
        .metric("peili_registry_bytes_saved_total", &[])
        .await
        .unwrap();
    assert_eq!((counted, saved), (0.0, 0.0), "a trial is nobody's pull");
    let pulls = told(two, "pulls").await;
    assert_eq!(pulls["pulls"][0]["requests"][0]["by"], "trial");
    // The one who holds it is told so.
    let local = tried(one, &image.reference()).await;
    assert!(
        of(&local, "fetched").all(|event| event["source"] == "local"),
        "{local:?}"
    );

    let registry = two.registry().to_string();
    let nowhere = ["--basic-auth-dir", "/nonexistent"];
    let run = |args: &[&str]| {
        peili(&[&["pull", "--registry-addr", &registry][..], &nowhere, args].concat())
    };
    let output = run(&[&image.reference()]);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    for words in [
        format!("verified  {}", image.layers[0].digest),
        format!("from {}", one.registry()),
        "nothing was stored".into(),
    ] {
        assert!(said.contains(&words), "{said}");
    }
    let output = run(&[&image.reference(), "--format", "json"]);
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["ok"]),
        (&json!("ended"), &json!(true))
    );
    let output = run(&[&format!("{REGISTRY}/test/nobody-has-it:v1")]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no peer holds") && said.contains("once one has pulled it"),
        "{said}"
    );
    let output = run(&[&image.reference(), "--platform", "plan9/mips"]);
    assert!(
        text(&output.stdout).contains("no image for plan9/mips; there are "),
        "{}",
        text(&output.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wrong_is_not_called_right() {
    let cluster = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;
    let layer = &image.layers[1];
    let damaged = one.layout().path_of(&layer.digest);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[1000] ^= 1;
    // Another file, as a disk's damage has no inotify event either.
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, bytes).unwrap();

    let events = eventually("an answer", AT_ALL, async || {
        let events = tried(two, &image.reference()).await;
        let is_absent = of(&events, "failed").any(|e| e["error"].as_str().unwrap().contains("404"));
        Ok((!is_absent).then_some(events))
    })
    .await
    .unwrap();

    let failed: Vec<&Value> = of(&events, "failed").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert_eq!(failed[0]["digest"], layer.digest.as_str());
    assert!(
        failed[0]["error"]
            .as_str()
            .unwrap()
            .starts_with("what came is not sha256:"),
        "{failed:?}"
    );
    assert!(
        failed[0]["cure"].as_str().unwrap().contains("disk"),
        "{failed:?}"
    );
    assert_eq!(of(&events, "fetched").count(), 2);
    let ended = events.last().unwrap();
    assert_eq!((&ended["ok"], &ended["failed"]), (&json!(false), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_brings_the_password_and_the_token() {
    let cluster = Loopback::new(3).unwrap();
    let secret = cluster.folder("secret").unwrap();
    std::fs::write(secret.join("username"), "user").unwrap();
    std::fs::write(secret.join("password"), "pass").unwrap();
    let data = |node: &LoopbackNode| {
        let dir = cluster.folder(&format!("{}-data", node.name())).unwrap();
        dir.display().to_string()
    };
    for node in cluster.nodes() {
        peili::node_token::load_or_create(Path::new(&data(node))).unwrap();
    }
    let secret = secret.display().to_string();
    let more = |node: &LoopbackNode| {
        let words = ["--basic-auth-dir", &secret, "--data-dir", &data(node)];
        words.map(str::to_string).into()
    };
    cluster.start_with(Path::new(PEILI), more).await.unwrap();
    let two = &cluster.nodes()[1];
    let image = seeded(&cluster).await;

    let events = tried(two, &image.reference()).await;
    assert_eq!(events.last().unwrap()["ok"], true, "{events:?}");

    let (registry, data) = (two.registry().to_string(), data(two));
    let run = |args: &[&str]| {
        let output = peili(
            &[
                &["pull", &image.reference(), "--registry-addr", &registry][..],
                args,
            ]
            .concat(),
        );
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = run(&["--basic-auth-dir", &secret, "--data-dir", &data]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["--basic-auth-dir", "/nonexistent", "--data-dir", &data]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("401") && said.contains("--basic-auth-dir"),
        "{said}"
    );
    let (code, said) = run(&["--basic-auth-dir", &secret]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("token") && said.contains("--data-dir"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_it_is_asked_now() {
    let cluster = cluster().await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;

    let found = posted(three, "find", json!({"reference": image.reference()}))
        .await
        .unwrap();
    let found: Value = serde_json::from_slice(&found.expect(200).unwrap().body).unwrap();

    assert_eq!(
        (&found["key"], &found["here"]),
        (&json!(image.reference()), &json!(false))
    );
    assert_eq!(found["peers"][0]["addresses"], json!([one.registry()]));
    assert!(found["peers"][0]["after_ms"].as_f64().unwrap() <= found["took_ms"].as_f64().unwrap());
    let at = two.metrics().to_string();
    let output = peili(&["find", &image.layers[0].digest, "--metrics-addr", &at]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains(&one.registry().to_string()) && said.contains("after "),
        "{said}"
    );
    let absent = format!("sha256:{}", "0".repeat(64));
    let output = peili(&["find", &absent, "--metrics-addr", &at]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("no other node holds it"));
    let at = one.metrics().to_string();
    let output = peili(&["find", &image.reference(), "--metrics-addr", &at]);
    assert!(text(&output.stdout).contains("this node holds it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_heard_as_it_happens_and_a_listener_keeps_nobody_from_ending() {
    let cluster = cluster().await;
    let two = &cluster.nodes()[1];
    let mut stream = TcpStream::connect(two.metrics()).await.unwrap();
    let head = format!(
        "GET /debug/api/events HTTP/1.1\r\nHost: {}\r\n\r\n",
        two.metrics()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = String::new();
    let mut hear = async |until: &str| {
        let read = async {
            let mut bytes = [0; 4096];
            while !heard.contains(until) {
                let read = stream.read(&mut bytes).await.unwrap();
                assert!(read > 0, "it ended: {heard}");
                heard.push_str(&text(&bytes[..read]));
            }
        };
        tokio::time::timeout(AT_ALL, read).await.expect(until);
    };
    hear("text/event-stream").await;

    let absent = format!("sha256:{}", "0".repeat(64));
    two.get(&format!("/v2/a/blobs/{absent}?ns={REGISTRY}"))
        .await
        .unwrap();

    hear("event: request").await;
    hear(&absent).await;
    let begun = std::time::Instant::now();
    assert!(two.stop().await.unwrap().unwrap().success());
    // Its grace period is 30 s, and who only listens is no reason to wait.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}
