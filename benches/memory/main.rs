//! What a node's Peili takes of memory and CPU: idle, with much to tell and much told to it, while 64 and 200 others take
//! bodies, while it relays and follows; and all of that at once within the memory limit of the chart. `make bench`, as root.
//!
//! Progress on stderr, the tables on stdout. A real containerd, real Peilis in network namespaces (`tests/lab`), the one
//! under measurement in a memory cgroup that is made for it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use futures::future::try_join_all;
use rustix::fs::{Advice, fadvise};

mod cgroup;
#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use more of the lab than the benchmark")]
mod lab;
mod phases;
mod records;
mod takers;
mod watch;

use cgroup::Cgroup;
use lab::process::{self, eventually, output};
use lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions};
use takers::Takers;
use watch::{Row, watch};

const MIB: u64 = 1 << 20;
const ROUTER: u16 = 5001;
/// As many as `--max-uploads` has.
const TAKERS: usize = 64;
/// Each of a size that fills whatever buffers there are on its way, all together many times the limit.
const TAKEN: u64 = 24 * MIB;
/// What those who stop reading have read by then: TCP has found out how fast they are, and made room for that.
const UNTIL: u64 = 12 * MIB;
/// Keys of one image: layers, manifest and configuration.
const KEYS_PER_IMAGE: usize = 100;
/// Of the limit, where sockets have one of their own (cgroups of version 1).
const FOR_SOCKETS: u64 = 32 * MIB;
/// The registry of the images that grow, so that nodes have somebody to follow, in bytes per second.
const REGISTRY: u64 = 60 * MIB;
/// The least, the first and the most that TCP takes for a connection, as Linux begins with.
const BUFFERS: [(&str, &str); 2] = [
    ("tcp_rmem", "4096 131072 6291456"),
    ("tcp_wmem", "4096 16384 4194304"),
];
/// Announcing is the slowest of what is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a node's Peili takes of memory and CPU.
#[derive(Parser)]
struct Options {
    /// Another Peili than the one of this build
    #[arg(long, value_name = "FILE")]
    peili: Option<PathBuf>,
    /// Keys that the node itself has to tell
    #[arg(long, default_value = "20000", value_name = "NUMBER")]
    keys: usize,
    /// What others tell it, all together
    #[arg(long, default_value = "100000", value_name = "NUMBER")]
    records: usize,
    /// How many others
    #[arg(long, default_value = "10", value_name = "NUMBER")]
    peers: usize,
    /// Instead of the chart's
    #[arg(long, value_name = "MIB")]
    limit: Option<u64>,
    /// How long it is watched while nothing goes on
    #[arg(long, default_value = "20", value_name = "SECONDS")]
    idle: u64,
    /// Only everything at once within the limit
    #[arg(long)]
    within: bool,
    /// Bodies at once where many are taken, several of each layer; it is allowed as many
    #[arg(long, default_value = "200", value_name = "NUMBER")]
    takers: usize,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    process::bench("memory", memory(options)).await
}

async fn memory(options: Options) -> Result<()> {
    let limit = match options.limit {
        Some(mib) => mib * MIB,
        None => limit_of_the_chart()?,
    };
    // Before the lab: it goes when those who live in it have gone.
    let cgroup = Arc::new(Cgroup::create()?);
    let bench = Bench::new(options, cgroup).await?;
    let alone = match bench.options.within {
        true => None,
        false => {
            let (rows, alone) = bench.without_limit().await?;
            print(&rows);
            bench.node.stop_peili().await?;
            Some(alone)
        }
    };
    bench.within(limit, alone).await
}

/// `resources.limits.memory` of values.yaml, in bytes.
fn limit_of_the_chart() -> Result<u64> {
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/peili/values.yaml");
    let values: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(values)?)?;
    let limit = values["resources"]["limits"]["memory"].as_str();
    let mib = limit.and_then(|limit| limit.strip_suffix("Mi")?.parse::<u64>().ok());
    Ok(mib.with_context(|| format!("{limit:?} are no MiB"))? * MIB)
}

fn print(rows: &[Row]) {
    println!(
        "| MiB at the most | not reclaimable | anonymous | sockets | kernel | page cache | CPU s | in s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!("| {} | {row} |", row.phase);
    }
}

struct Bench {
    options: Options,
    // Its nodes before it.
    node: Node,
    others: [Node; 2],
    taken: Image,
    /// One for each of the two runs.
    relayed: Vec<Image>,
    growing: Vec<Image>,
    lab: Lab,
    cgroup: Arc<Cgroup>,
}

impl Bench {
    async fn new(options: Options, cgroup: Arc<Cgroup>) -> Result<Self> {
        let lab = Lab::new().await?;
        let peili = match &options.peili {
            Some(file) => std::path::absolute(file)?,
            None => PathBuf::from(env!("CARGO_BIN_EXE_peili")),
        };
        lab.set_peili(peili.clone());
        let others = [
            lab.node(NodeOptions::default()).await?,
            lab.node(NodeOptions::default()).await?,
        ];
        let entrance = cgroup.entrance(&peili, &lab.folder("cgroup")?)?;
        lab.set_peili(entrance);
        let node = lab.node(NodeOptions::default()).await?;
        // As Linux has it: what a machine was told otherwise would count as Peili's.
        for (name, bytes) in BUFFERS {
            let mut command = node.netns().command("/bin/sh");
            command.args(["-c", &format!("echo {bytes} > /proc/sys/net/ipv4/{name}")]);
            output(command).await?;
        }

        eprintln!("memory: images are made");
        let taken = ImageSpec::new("bench/taken:v1").layers([TAKEN; TAKERS]);
        let taken = lab.make(taken).await?;
        import(&lab, &node, &taken).await?;
        let mut relayed = Vec::new();
        let mut growing = Vec::new();
        for seed in [101, 102] {
            let image = |name: &str, layers: &[u64]| {
                let spec = ImageSpec::new(&format!("bench/{name}:v{seed}"));
                spec.seed(seed + layers.len() as u64 * 1000)
                    .layers(layers.iter().copied())
            };
            let held = lab.push(image("relayed", &[128 * MIB; 4])).await?;
            others[0].import(&held).await?;
            relayed.push(held);
            growing.push(lab.push(image("growing", &[64 * MIB; 6])).await?);
        }
        let many = options.keys / KEYS_PER_IMAGE;
        eprintln!("memory: {many} images of {KEYS_PER_IMAGE} blobs are imported");
        for n in 0..many {
            let spec = ImageSpec::new(&format!("bench/many{n}:v1")).seed(1_000_000 + n as u64);
            let image = lab.make(spec.layers([10; KEYS_PER_IMAGE - 2])).await?;
            import(&lab, &node, &image).await?;
        }
        // Or it would be measured with the disk that all this is being written to.
        tokio::task::spawn_blocking(rustix::fs::sync).await?;
        Ok(Self {
            options,
            node,
            others,
            taken,
            relayed,
            growing,
            lab,
            cgroup,
        })
    }
}

/// Without unpacking: nobody runs these.
async fn import(lab: &Lab, node: &Node, image: &Image) -> Result<()> {
    let archive = lab.folder("archives")?.join("image.tar");
    image.write_archive(&archive)?;
    let archive = archive.to_str().context("a path in UTF-8")?;
    let import = ["images", "import", "--no-unpack", archive];
    node.ctr(&import).await.map(drop)
}
