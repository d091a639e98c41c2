//! docs/metrics.md against what a running Peili tells, and what is asked of one that would like many labels.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::loopback::{Loopback, LoopbackNode};
use lab::process::{eventually, find};
use lab::{Image, ImageSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PEILI: &str = env!("CARGO_BIN_EXE_peili");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
const REGISTRY: &str = "registry.test:5000";
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);

const PREFACE: &str = "\
# Metrics

What `/metrics` (port 9090) tells: every name, its type, its labels and what it means. The tables are written by `make docs`
from a running Peili, and a test compares them. Names and labels are stable; a label has few values, whatever images,
peers or clients are called. Bytes are counted as they leave, requests when their bodies have ended. The chart's
[dashboard](operating.md#the-dashboard) shows them.

To begin with:

| question | answer |
|---|---|
| How many bytes was the registry spared? | `sum(rate(peili_registry_bytes_saved_total[5m]))` |
| What part of what containerd pulled came from other nodes? | `sum(rate(peili_mirror_requests_total{source=\"peer\"}[5m])) / sum(rate(peili_mirror_requests_total[5m]))` |
| Do nodes see each other? | `peili_peers{state=\"known\"}`: everybody else, up to what a routing table holds (20 of each distance) |
| Are lookups fast? | `histogram_quantile(0.99, sum by (le, outcome) (rate(peili_lookup_duration_seconds_bucket[5m])))` |
| Does somebody have another password? | `rate(peili_unauthorized_requests_total[5m]) > 0` |
| Does somebody have another cluster secret, or none? | `rate(peili_router_strangers_total[5m]) > 0`, `rate(peili_registry_strangers_total[5m]) > 0` |
| Is a node asked for more than it gives? | `rate(peili_upload_requests_total{source=\"busy\"}[5m])` |
";

const SECTIONS: [(&str, &str, &str); 3] = [
    ("peili_", "Peili", ""),
    (
        "libp2p_",
        "libp2p",
        "The router's library counts these. One that has labels appears with the first event of its kind.\n\n",
    ),
    ("process_", "The process", ""),
];

/// Of what does not happen in this test, or not for certain: queries that fail, handshakes that do, addresses that come and
/// go. Name, type, labels, meaning; what is told of them nevertheless is compared like all else.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    (
        "libp2p_kad_query_result_get_closest_peers_error_total",
        "counter",
        "error",
        "Number of failed Kademlia get closest peers queries.",
    ),
    (
        "libp2p_kad_query_result_get_providers_error_total",
        "counter",
        "error",
        "Number of failed Kademlia get providers queries.",
    ),
    (
        "libp2p_kad_query_result_get_record_error_total",
        "counter",
        "error",
        "Number of failed Kademlia get record queries.",
    ),
    (
        "libp2p_ping_failure_total",
        "counter",
        "reason",
        "Failure while sending a 'ping' or receiving a 'pong'.",
    ),
    (
        "libp2p_swarm_connections_incoming_error_total",
        "counter",
        "error protocols",
        "Number of incoming connection errors.",
    ),
    // Of two nodes that find each other one may dial alone.
    (
        "libp2p_swarm_connections_incoming_total",
        "counter",
        "protocols",
        "Number of incoming connections per address stack.",
    ),
    (
        "libp2p_swarm_expired_listen_addr_total",
        "counter",
        "protocols",
        "Number of expired listen addresses.",
    ),
    (
        "libp2p_swarm_external_addr_candidates_total",
        "counter",
        "protocols",
        "Number of new external address candidates.",
    ),
    (
        "libp2p_swarm_external_addr_confirmed_total",
        "counter",
        "protocols",
        "Number of confirmed external addresses.",
    ),
    (
        "libp2p_swarm_external_addr_expired_total",
        "counter",
        "protocols",
        "Number of expired external addresses.",
    ),
    (
        "libp2p_swarm_listener_closed_total",
        "counter",
        "protocols",
        "Number of listeners closed.",
    ),
    (
        "libp2p_swarm_new_listen_addr_total",
        "counter",
        "protocols",
        "Number of new listen addresses.",
    ),
    (
        "libp2p_swarm_outgoing_connection_error_total",
        "counter",
        "error peer",
        "Number outgoing connection errors.",
    ),
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

impl Family {
    fn row(&self, name: &str) -> String {
        let labels: Vec<String> = self.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = match labels.is_empty() {
            true => "–".to_owned(),
            false => labels.join(", "),
        };
        let (kind, help) = (&self.kind, self.help.replace('|', "\\|"));
        format!("| `{name}` | {kind} | {labels} | {help} |")
    }
}

/// One sample: its name, its labels, its value.
fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value = value.parse().expect(line);
    let Some((name, rest)) = series.split_once('{') else {
        return (series.to_owned(), Vec::new(), value);
    };
    let mut rest = rest.strip_suffix('}').expect(line);
    let mut labels = Vec::new();
    while let Some((label, quoted)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = quoted.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let end = end.expect(line);
        labels.push((label.to_owned(), quoted[..end].to_owned()));
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    (name.to_owned(), labels, value)
}

fn families(page: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut order = Vec::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.help.is_empty(), "{name} is told twice");
            family.help = help.to_owned();
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
            order.push(name.to_owned());
        } else {
            let (name, labels, _) = sample(line);
            let of = order.last().expect("a type first");
            let family = families.get_mut(of).expect("a help first");
            let suffix = name
                .strip_prefix(of.as_str())
                .unwrap_or_else(|| panic!("{line} below {of}"));
            assert!(
                suffix.is_empty()
                    || family.kind == "histogram"
                        && ["_bucket", "_sum", "_count"].contains(&suffix),
                "{line}"
            );
            let labels = labels.into_iter().map(|(label, _)| label);
            family.labels.extend(labels.filter(|label| label != "le"));
        }
    }
    families
}

/// The page in docs that these make.
fn page_of(families: &BTreeMap<String, Family>) -> String {
    let mut page = PREFACE.to_owned();
    for (prefix, title, words) in SECTIONS {
        let _ = write!(
            page,
            "\n## {title}\n\n{words}| name | type | labels | what it means |\n|---|---|---|---|\n"
        );
        for (name, family) in families.iter().filter(|(name, _)| name.starts_with(prefix)) {
            let _ = writeln!(page, "{}", family.row(name));
        }
    }
    page
}

async fn cluster() -> Loopback {
    let cluster = Loopback::new(2).unwrap();
    cluster.start(Path::new(PEILI)).await.unwrap();
    cluster
}

fn image(cluster: &Loopback, name: &str, size: u64) -> Image {
    let spec = ImageSpec::new(name).layers([size]);
    let dir = cluster.folder("images").unwrap();
    spec.build(REGISTRY, &dir).unwrap()
}

async fn pulled(node: &LoopbackNode, image: &Image) {
    let tag = format!("/v2/{}/manifests/v1?ns={REGISTRY}", image.name());
    eventually("the tag", AT_ALL, async || {
        Ok(node.get(&tag).await?.status.is_success().then_some(()))
    })
    .await
    .unwrap();
    for blob in image.blobs() {
        let path = format!("/v2/{}/blobs/{}?ns={REGISTRY}", image.name(), blob.digest);
        node.get(&path).await.unwrap().expect(200).unwrap();
    }
}

/// The first node has an image, and the second has pulled it from there.
async fn shared(cluster: &Loopback) -> [&LoopbackNode; 2] {
    let [one, two] = cluster.nodes() else {
        panic!("two nodes")
    };
    let image = image(cluster, "test/app:v1", 100_000);
    one.layout().add(&image).unwrap();
    pulled(two, &image).await;
    [one, two]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_in_docs_has_every_family_with_its_labels_and_no_other() {
    let cluster = cluster().await;
    let [one, two] = shared(&cluster).await;
    let mut all = BTreeMap::new();
    // While they are connected, and when they are no more: labels without a sample are not told.
    let connected = "libp2p_identify_remote_protocols";
    eventually("who is connected", AT_ALL, async || {
        merge(&mut all, families(&two.metrics_page().await?));
        Ok((!all[connected].labels.is_empty()).then_some(()))
    })
    .await
    .unwrap();
    one.stop().await.unwrap();

    let closed = "libp2p_swarm_connections_duration_seconds";
    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        eventually("who is not", AT_ALL, async || {
            merge(&mut all, families(&two.metrics_page().await?));
            Ok(all.contains_key(closed).then_some(()))
        })
        .await
        .unwrap();
        let mut page = all.clone();
        for (name, kind, labels, help) in ELSEWHERE {
            page.entry((*name).to_owned()).or_insert(Family {
                kind: (*kind).to_owned(),
                labels: labels.split(' ').map(str::to_owned).collect(),
                help: (*help).to_owned(),
            });
        }
        std::fs::write(PAGE, page_of(&page)).unwrap();
    }
    let kept = std::fs::read_to_string(PAGE).unwrap();
    assert!(kept.starts_with(PREFACE), "docs/metrics.md: run make docs");
    let rows: BTreeMap<&str, &str> = kept
        .lines()
        .filter_map(|line| Some((line.strip_prefix("| `")?.split_once('`')?.0, line)))
        .filter(|(name, _)| SECTIONS.iter().any(|(prefix, ..)| name.starts_with(prefix)))
        .collect();

    let is_elsewhere = |name: &str| ELSEWHERE.iter().any(|(other, ..)| *other == name);
    let mut differ = Vec::new();
    let same = eventually("the page in docs", AT_ALL, async || {
        merge(&mut all, families(&two.metrics_page().await?));
        let told: BTreeMap<_, _> = all
            .iter()
            .map(|(n, family)| (n.as_str(), family.row(n)))
            .collect();
        let untold = rows.iter().filter(|(name, row)| match told.get(*name) {
            Some(told) => told != *row,
            None => !is_elsewhere(name),
        });
        let new = told.iter().filter(|(name, _)| !rows.contains_key(*name));
        differ = untold.map(|(_, row)| format!("in docs: {row}")).collect();
        differ.extend(new.map(|(_, row)| format!("told: {row}")));
        Ok(differ.is_empty().then_some(()))
    })
    .await;
    if same.is_err() {
        panic!(
            "docs/metrics.md is not what is told: run make docs\n{}",
            differ.join("\n")
        );
    }
}

/// What a later page tells, added.
fn merge(all: &mut BTreeMap<String, Family>, page: BTreeMap<String, Family>) {
    for (name, family) in page {
        assert!(
            SECTIONS.iter().any(|(prefix, ..)| name.starts_with(prefix)),
            "{name}"
        );
        assert!(!family.help.is_empty() && !family.kind.is_empty(), "{name}");
        match all.get_mut(&name) {
            Some(known) => known.labels.extend(family.labels),
            None => drop(all.insert(name, family)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_others_and_what_runs_is_told() {
    const CLIENTS: usize = 20;
    let cluster = cluster().await;
    let [one, two] = shared(&cluster).await;
    let told = async |node: &LoopbackNode, name: &str| {
        anyhow::Ok(lab::peili::metric(&node.metrics_page().await?, name, &[]))
    };
    eventually(
        "the records of a tag and three contents",
        AT_ALL,
        async || {
            let records = told(two, "peili_provider_records").await?;
            Ok((records == 4.0).then_some(()))
        },
    )
    .await
    .unwrap();
    // What the second has pulled it does not hold.
    assert_eq!(told(one, "peili_provider_records").await.unwrap(), 0.0);

    let before = told(one, "peili_tasks").await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect(one.registry()).await.unwrap());
    }
    eventually("a task for each", AT_ALL, async || {
        let tasks = told(one, "peili_tasks").await?;
        Ok((tasks >= before + (CLIENTS / 2) as f64).then_some(()))
    })
    .await
    .unwrap();
    drop(clients);
    eventually("their end", AT_ALL, async || {
        let tasks = told(one, "peili_tasks").await?;
        Ok((tasks <= before + 5.0).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_labels_have_few_values() {
    const IMAGES: u32 = 30;
    const TAGS: &str = "peili_advertised_keys{kind=\"tag\"";
    let cluster = cluster().await;
    let two = &cluster.nodes()[1];
    for n in 0..IMAGES {
        let dir = cluster.folder("images").unwrap();
        let image = ImageSpec::new("test/app:v1").layers([100]);
        let image = image.build(&format!("r{n}.test"), &dir).unwrap();
        two.layout().add(&image).unwrap();
    }
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let ask = async |n: usize| {
        for (method, path) in [
            ("GET", format!("/v2/x{n}/manifests/t{n}?ns=n{n}.test")),
            ("GET", format!("/v2/x{n}/blobs/{digest}?ns=n{n}%22%0a.test")),
            ("HEAD", format!("/again/{n}/v2/x{n}/blobs/{digest}")),
            ("GET", format!("/v2/x{n}/blobs/{digest}%22%7D{n}")),
            ("GET", format!("/x{n}/%22%0A{{}}")),
            ("GET", format!("/v2/{n}/tags/list")),
            ("PUT", format!("/v2/x{n}/manifests/t{n}")),
            (&*format!("X{n}"), format!("/v2/x{n}/manifests/t{n}")),
        ] {
            for more in ["", "x-spegel-mirrored: true\r\n", "range: bytes=7-\r\n"] {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nhost: h{n}\r\nuser-agent: a{n}\r\nconnection: close\r\n{more}\r\n"
                );
                for to in [two.registry(), two.metrics()] {
                    let mut stream = TcpStream::connect(to).await.unwrap();
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 4"), "{request}");
                }
            }
        }
    };
    let series = async || {
        let page = two.metrics_page().await.unwrap();
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        let own = samples.filter(|line| line.starts_with("peili_"));
        own.map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<BTreeSet<_>>()
    };
    // All of the layout's names: which registries have a label of their own is chosen among those that are there.
    eventually("all tags advertised", AT_ALL, async || {
        let page = two.metrics_page().await?;
        let tags = page.lines().filter(|s| s.starts_with(TAGS));
        let advertised: f64 = tags.map(|line| sample(line).2).sum();
        Ok((advertised == f64::from(IMAGES)).then_some(()))
    })
    .await
    .unwrap();
    ask(0).await;
    let before = series().await;
    for n in 1..20 {
        ask(n).await;
    }
    let after = series().await;

    assert_eq!(before, after);
    // The first twenty, and the others.
    let tags = after.iter().filter(|s| s.starts_with(TAGS));
    assert_eq!(tags.count(), 21);
    let known: BTreeMap<&str, &[&str]> = BTreeMap::from([
        (
            "handler",
            &[
                "blob", "manifest", "version", "livez", "readyz", "metrics", "debug", "other",
            ][..],
        ),
        ("method", &["GET", "HEAD", "other"]),
        (
            "source",
            &["local", "peer", "in_flight", "miss", "failed", "busy"],
        ),
        (
            "outcome",
            &[
                "hit",
                "miss",
                "answered",
                "absent",
                "busy",
                "refused",
                "unauthorized",
                "stranger",
                "failed",
            ],
        ),
        ("state", &["known", "connected", "gone"]),
        ("result", &["ok", "failed"]),
        ("kind", &["content", "tag"]),
        ("from", &["peer", "other"]),
        ("direction", &["in", "out"]),
        (
            "reason",
            &["no_secret", "other_secret", "unproven", "unknown", "clock"],
        ),
    ]);
    for series in &after {
        for (label, value) in sample(&format!("{series} 0")).1 {
            let is_known = match label.as_str() {
                "le" | "registry" => true,
                "code" => value
                    .parse()
                    .is_ok_and(|code: u16| (200..600).contains(&code)),
                label => known[label].contains(&value.as_str()),
            };
            assert!(is_known, "{series}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say() {
    let Some(promtool) = find("promtool") else {
        assert!(std::env::var_os("CI").is_none(), "run `make deps`");
        eprintln!(
            "skipped: promtool is not installed; `make deps` does it (Debian's package prometheus)"
        );
        return;
    };
    let cluster = cluster().await;
    let [one, two] = shared(&cluster).await;
    one.stop().await.unwrap();

    let page = two.metrics_page().await.unwrap();
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]);
    let pipes = check
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let checked = child.wait_with_output().unwrap();

    let said = [checked.stdout, checked.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(checked.status.success() && said.is_empty(), "{said}");
}
