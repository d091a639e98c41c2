//! What it costs to give a blob or a manifest to another node, and to hand one on to containerd: Peili beside nginx,
//! haproxy and a bare loop around sendfile(2), on the same content, in turns. `make bench`, as root.
//!
//! Progress on stderr, the tables on stdout. A real containerd holds the content, its node is a network namespace
//! (`tests/lab`), the way to whoever asks is the loopback device of it. Who asks has the kernel throw the bytes away
//! (MSG_TRUNC), so that what is measured is who sends.
//!
//! ```text
//! load    who asks: connections that ask again and again for a while
//! plain   the bare loop
//! server  who answers, and what it costs him
//! table   medians, ratios, spread
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use more of the lab than the benchmark")]
mod lab;
mod load;
mod plain;
mod server;
mod table;

use lab::process::{self, output};
use lab::{ImageSpec, Lab, Node, NodeOptions, PeiliOptions};
use load::{Load, Loaded};
use server::Server;
use table::{Cell, Run};

const MIB: u64 = 1 << 20;
/// A layer that takes long, one of the usual size, and a small one.
const LAYERS: [(&str, u64); 3] = [
    ("1 GiB blob", 1024 * MIB),
    ("16 MiB blob", 16 * MIB),
    ("64 KiB blob", 64 << 10),
];
/// Whatever asks there.
const NAMESPACE: &str = "ns=registry.test";

/// What serving and relaying cost, beside others who do the same.
#[derive(Parser)]
struct Options {
    /// How long each is asked in each round
    #[arg(long, default_value = "2", value_name = "SECONDS")]
    seconds: f64,
    /// How often each is measured; medians are told
    #[arg(long, default_value = "5", value_name = "NUMBER")]
    rounds: usize,
    /// Connections at once
    #[arg(
        long,
        default_value = "1,8,64",
        value_delimiter = ',',
        value_name = "NUMBERS"
    )]
    clients: Vec<usize>,
    /// Only what has this in its name: "blob", "manifest", "relay"
    #[arg(long, default_value = "", value_name = "TEXT")]
    only: String,
    /// Another Peili than the one of this build
    #[arg(long, value_name = "FILE")]
    peili: Option<PathBuf>,
    /// All runs, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Any other mirror that speaks the same HTTP, measured beside ours; a shell runs it with PORT, CONTAINERD_SOCK and
    /// CONTENT_PATH in its environment
    #[arg(long, env = "BENCH_PEER", value_name = "COMMAND")]
    peer: Option<String>,
    /// cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program is to itself, within a node.
#[derive(Subcommand)]
enum Part {
    /// Asks, and tells what came of it
    #[command(hide = true)]
    Load(Load),
    /// The bare loop
    #[command(hide = true)]
    Plain { root: PathBuf, port: u16 },
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.part {
        Some(Part::Load(load)) => load.run(),
        Some(Part::Plain { root, port }) => plain::serve(root, *port),
        None => return bench(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn bench(options: Options) -> ExitCode {
    process::bench("http", measure(options)).await
}

async fn measure(options: Options) -> Result<()> {
    let lab = Lab::new().await?;
    lab.set_peili(match &options.peili {
        Some(file) => std::path::absolute(file)?,
        None => PathBuf::from(env!("CARGO_BIN_EXE_peili")),
    });
    // Dropped before the nodes that they live in.
    let (holder, relay);
    let mut servers = Vec::new();
    holder = lab.node(NodeOptions::default()).await?;
    relay = lab.node(NodeOptions::default()).await?;
    eprintln!("http: an image is made");
    let image = lab.make(ImageSpec::new("bench/http:v1").layers(LAYERS.map(|(_, size)| size)));
    let image = image.await?;
    holder.import(&image).await?;
    // Without a token, whoever asks counts as containerd; and as many bodies as are asked for.
    let peili = PeiliOptions::default()
        .unconfigured()
        .arg("--max-uploads", "100000");
    holder.start_peili_with(&peili).await?;
    relay.start_peili_with(&peili).await?;

    let scratch = lab.folder("http")?;
    servers.push(Server::nginx(&holder, &scratch)?);
    servers.push(Server::plain(&holder, &scratch)?);
    if let Some(command) = &options.peer {
        servers.push(Server::other(&holder, &scratch, command)?);
    }
    let served = servers.len();
    let upstream = holder.peili().registry();
    servers.push(Server::nginx_proxy(&relay, &scratch, upstream)?);
    servers.push(Server::haproxy(&relay, &scratch, upstream)?);
    for server in &mut servers {
        server.ready().await?;
    }
    let (files, proxies) = servers.split_at(served);
    let peilis = [
        Server::peili(&holder, true).context("the holder's Peili has ended")?,
        Server::peili(&relay, false).context("the relay's Peili has ended")?,
    ];
    // Or it would be measured with the disk that all this is being written to.
    tokio::task::spawn_blocking(rustix::fs::sync).await?;

    let name = image.name();
    let mut cells = Vec::new();
    for ((what, _), layer) in LAYERS.iter().zip(&image.layers) {
        let path = format!("/v2/{name}/blobs/{}?{NAMESPACE}", layer.digest);
        let what = (*what).to_owned();
        cells.push((what, &holder, &peilis[0], files, path, &layer.digest));
    }
    let manifest = &image.top().digest;
    let path = format!("/v2/{name}/manifests/{manifest}?{NAMESPACE}");
    let what = "manifest".to_owned();
    cells.push((what, &holder, &peilis[0], files, path, manifest));
    // What is small is gone before it could cost anything.
    for ((what, _), layer) in LAYERS.iter().zip(&image.layers).take(2) {
        let path = format!("/v2/{name}/blobs/{}?{NAMESPACE}", layer.digest);
        let what = format!("relay of a {what}");
        cells.push((what, &relay, &peilis[1], proxies, path, &layer.digest));
    }

    let mut done = Vec::new();
    for (what, node, peili, others, path, digest) in cells {
        if !what.contains(&options.only) {
            continue;
        }
        for clients in options.clients.iter().copied() {
            let mut cell = Cell::new(&what, clients);
            // The first of each is for caches and connections.
            for round in 0..=options.rounds {
                eprint!(
                    "\rhttp: {what}, {clients} at once: {round} of {}   ",
                    options.rounds
                );
                for server in std::iter::once(peili).chain(others) {
                    let path = server.path(&path, digest);
                    let run = run(node, server, &path, clients, options.seconds).await;
                    let run = run.with_context(|| format!("{what} of {}", server.name))?;
                    if round > 0 {
                        cell.add(&server.name, run);
                    }
                }
            }
            eprintln!();
            done.push(cell);
        }
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&done)?)?;
    }
    print!("{}", table::markdown(&done));
    Ok(())
}

/// One server, asked for a while.
async fn run(
    node: &Node,
    server: &Server,
    path: &str,
    clients: usize,
    seconds: f64,
) -> Result<Run> {
    let mut command: Command = node.netns().command(std::env::current_exe()?);
    let SocketAddr::V4(at) = server.at else {
        anyhow::bail!("{} is no IPv4 address", server.at);
    };
    command.arg("load").arg(at.to_string()).arg(path);
    command.args([clients.to_string(), seconds.to_string()]);
    if server.holds {
        command.arg("--as-peer");
    }
    let before = server.cpu()?;
    let told = output(command).await?;
    let loaded: Loaded = serde_json::from_str(&told).with_context(|| told.clone())?;
    Ok(Run {
        cpu: (server.cpu()? - before).as_secs_f64(),
        bytes: loaded.bytes,
        requests: loaded.requests,
        seconds: loaded.seconds,
    })
}

/// For who is told in another process.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
