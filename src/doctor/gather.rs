//! Collects the facts. Everything is asked side by side, and nothing is waited for longer than a few seconds.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use hyper::{Request, StatusCode};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Config;
use super::facts::{Answer, Containerd, Content, Facts, Hosts, Name, Port, Sample, Served};
use super::live::{Live, Silence};
use super::mounts::{self, Mount};
use super::profile::{Signs, detect};
use crate::content::containerd::told::{self, Told};
use crate::content::{StoreError, containerd};
use crate::hosts::{self, Found, Version, Whose};
use crate::http_get;
use crate::membership::Members;
use crate::oci::Digest;
use crate::routing::bootstrap::dns::Resolver;
use crate::routing::bootstrap::{Bootstrap, Bootstrapper};
use crate::{basic_auth, node_token};

/// A mirror on the same node answers in microseconds; one that drops packets never does.
const PORT: Duration = Duration::from_secs(2);
/// A name server that hangs costs ten; who reads this waits for it.
const NAMES: Duration = Duration::from_secs(5);
/// A disk that hangs cannot be taken back: the thread is left behind.
const DISK: Duration = Duration::from_secs(3);
/// `/readyz` says a line for each thing that is awaited.
const MAX_ANSWER: usize = 16 << 10;
/// Addresses that hosts.toml names. Three are many.
const MAX_PORTS: usize = 8;

pub async fn gather(config: &Config, live: Result<Live, Silence>) -> Facts {
    let mounts = on_disk("mountinfo", || {
        Ok(mounts::parse(&std::fs::read_to_string(
            "/proc/self/mountinfo",
        )?))
    });
    let (mounts, signs) = tokio::join!(mounts, on_disk("os-release", || Ok(signs())));
    let mounts = mounts.unwrap_or_default();
    let signs = Signs {
        paths: paths(config),
        mounts: mounts.clone(),
        ..signs.unwrap_or_default()
    };
    let ((containerd, hosts, ports), bootstrap, members) = tokio::join!(
        async {
            let containerd = match &config.containerd {
                Some(config) => Some(self::containerd(config, &mounts).await),
                None => None,
            };
            let version = containerd.as_ref().and_then(|it| it.version.as_ref().ok());
            let version = version.and_then(|text| text.parse().ok());
            let hosts = self::hosts(config, version).await;
            let ports = self::ports(&hosts).await;
            (containerd, hosts, ports)
        },
        names(&config.bootstrap),
        members(config.cluster_secret_file.clone())
    );
    Facts {
        profile: detect(&signs),
        containerd,
        hosts,
        ports,
        bootstrap,
        members,
        live,
    }
}

/// Runs what may hang on the blocking pool.
async fn on_disk<T: Send + 'static>(
    what: &str,
    look: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Answer<T> {
    match timeout(DISK, tokio::task::spawn_blocking(look)).await {
        Ok(Ok(Ok(found))) => Ok(found),
        Ok(Ok(Err(e))) => Err(e.to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("{what}: no answer within {DISK:?}")),
    }
}

fn paths(config: &Config) -> Vec<String> {
    let mut paths = vec![config.certs_d.display().to_string()];
    if let Some(containerd) = &config.containerd {
        paths.push(containerd.socket.display().to_string());
        paths.extend(
            containerd
                .content_path
                .iter()
                .map(|it| it.display().to_string()),
        );
    }
    paths
}

/// All but the paths and mounts.
fn signs() -> Signs {
    let read = |path: &str| std::fs::read_to_string(path);
    // The image has none of its own, so one that is there is the node's, or that of the machine that this runs on.
    let os_release = [
        "/host/etc/os-release",
        "/etc/os-release",
        "/usr/lib/os-release",
    ];
    Signs {
        os_release: os_release.iter().find_map(|path| read(path).ok()),
        kernel: read("/proc/version").unwrap_or_default(),
        selinux: read("/proc/self/attr/current").unwrap_or_default(),
        ..Signs::default()
    }
}

async fn containerd(config: &containerd::Config, mounts: &[Mount]) -> Containerd {
    let words = |e: StoreError| e.to_string();
    let told = told::ask(config).await.unwrap_or_else(|e| {
        let failed = StoreError::Failed(e.to_string());
        Told {
            version: Err(failed.clone()),
            cri: Err(failed.clone()),
            root: Err(failed.clone()),
            blobs: Err(failed),
        }
    });
    let root: Answer<PathBuf> = match &config.content_path {
        Some(path) => Ok(path.clone()),
        None => told.root.map_err(words),
    };
    let content = match &root {
        Ok(path) => {
            let (path, blobs) = (path.clone(), told.blobs.map_err(words));
            on_disk("content", move || Ok(content(path, blobs))).await
        }
        Err(why) => Err(why.clone()),
    };
    let content = content.unwrap_or_else(|why| Content {
        root,
        is_absent: false,
        blobs: Err(why.clone()),
        ingest: Err(why.clone()),
        sample: Err(why),
    });
    // As the path may lead through links (/var/run), it is looked for as it is written and as it is.
    let real = std::fs::canonicalize(config.socket.parent().unwrap_or(Path::new("/")));
    let real = real
        .ok()
        .and_then(|dir| Some(dir.join(config.socket.file_name()?)));
    let mount = mounts::at(mounts, &config.socket)
        .or_else(|| real.and_then(|real| mounts::at(mounts, &real)));
    Containerd {
        socket: config.socket.clone(),
        version: told.version.map_err(words),
        socket_mount: mount.cloned(),
        cri: told.cri.map_err(words),
        content,
    }
}

/// Whether blobs can be listed, whether downloads can, and how many of `named` blobs can be opened.
fn content(root: PathBuf, named: Answer<Vec<Digest>>) -> Content {
    // The dot needs the right to pass through a directory, the listing the right to read it: both are used.
    let list = |name: &str| {
        let path = root.join(name);
        let looked = std::fs::read_dir(&path).and_then(|_| path.join(".").metadata());
        match looked {
            Ok(_) => Ok(()),
            // A new node's, which has pulled nothing yet.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && root.is_dir() => Ok(()),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    };
    let sample = named.map(|named| {
        let is_there = |digest: &&Digest| {
            let path = root
                .join("blobs")
                .join(digest.algorithm())
                .join(digest.hex());
            std::fs::File::open(path).is_ok()
        };
        Sample {
            named: named.len(),
            found: named.iter().filter(is_there).count(),
        }
    });
    let looked = root.symlink_metadata();
    Content {
        is_absent: looked.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound),
        blobs: list("blobs"),
        ingest: list("ingest"),
        sample,
        root: Ok(root),
    }
}

async fn hosts(config: &Config, version: Option<Version>) -> Hosts {
    let (directory, node_ips) = (config.certs_d.clone(), config.node_ips.clone());
    let (reads_for, token_dir, auth_dir) = (
        version.clone(),
        config.data_dir.clone(),
        config.basic_auth_dir.clone(),
    );
    let (files, token, basic_auth) = tokio::join!(
        on_disk("certs.d", move || find(
            &directory,
            reads_for.as_ref(),
            &node_ips
        )),
        on_disk("the node's token", move || match token_dir {
            Some(dir) => node_token::load(&dir).map_err(std::io::Error::other),
            None => Ok(None),
        }),
        on_disk("the Secret", move || {
            let loaded = basic_auth::load(&auth_dir).map_err(std::io::Error::other)?;
            Ok(loaded.map(|credentials| credentials.header()))
        }),
    );
    Hosts {
        directory: config.certs_d.clone(),
        files,
        version,
        wanted: config.registries.clone(),
        token,
        requires_token: config.requires_token,
        basic_auth,
    }
}

/// How many secrets there are.
async fn members(file: Option<PathBuf>) -> Option<Answer<usize>> {
    let file = file?;
    let read = move || Members::load(&file).map_err(std::io::Error::other);
    let read = on_disk("the cluster secret", read).await;
    Some(read.map(|members| members.secrets()))
}

fn find(
    directory: &Path,
    version: Option<&Version>,
    node_ips: &[IpAddr],
) -> std::io::Result<Vec<Found>> {
    hosts::find(directory, version, node_ips)
}

/// The addresses of ours that containerd asks, each once: those of this node, or all where none is known to be.
async fn ports(hosts: &Hosts) -> Vec<Port> {
    let mut mirrors = Vec::new();
    for found in hosts.files.iter().flatten() {
        if let Whose::Ours { mirrors: its, .. } = &found.whose {
            for mirror in its {
                let is_new = mirrors
                    .iter()
                    .all(|it: &&hosts::Mirror| it.url != mirror.url);
                if is_new {
                    mirrors.push(mirror);
                }
            }
        }
    }
    let has_own = mirrors.iter().any(|mirror| mirror.is_own);
    mirrors.retain(|mirror| mirror.is_own || !has_own);
    mirrors.truncate(MAX_PORTS);
    let asked = mirrors.into_iter().map(async |mirror| {
        let answer = timeout(PORT, served(mirror)).await;
        Port {
            url: mirror.url.clone(),
            answer: answer.unwrap_or_else(|_| Err(format!("no answer within {PORT:?}"))),
        }
    });
    futures::future::join_all(asked).await
}

/// Goes as containerd goes: to the address in hosts.toml, with the headers there.
async fn served(mirror: &hosts::Mirror) -> Answer<Served> {
    let Some(host) = mirror.url.strip_prefix("http://") else {
        return Ok(Served::Other("it is not plain HTTP".into()));
    };
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let at = match has_port {
        true => host.to_string(),
        false => format!("{host}:80"),
    };
    let get = async |path: &str| {
        let stream = TcpStream::connect(&at).await.map_err(|e| e.to_string())?;
        let request = mirror
            .headers
            .iter()
            .fold(Request::get(path), |request, (name, value)| {
                request.header(name, value)
            });
        http_get::send(stream, request, host, Bytes::new(), MAX_ANSWER)
            .await
            .map_err(|e| e.to_string())
    };
    let base = get("/v2/").await?;
    match base.status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Ok(Served::Unauthorized),
        other => return Ok(Served::Other(format!("GET /v2/ is answered {other}"))),
    }
    let ready = get("/readyz").await?;
    let text = String::from_utf8_lossy(&ready.body);
    match ready.status {
        StatusCode::OK if text == "ready\n" => Ok(Served::Ready),
        StatusCode::SERVICE_UNAVAILABLE if text.starts_with("awaiting ") => {
            let awaited: Vec<&str> = text.lines().collect();
            Ok(Served::NotReady(awaited.join("; ")))
        }
        other => Ok(Served::Other(format!("GET /readyz is answered {other}"))),
    }
}

/// Each by itself: one that fails does not hide the others.
async fn names(bootstrap: &Bootstrap) -> Vec<Name> {
    match bootstrap {
        Bootstrap::Dns(domains) => {
            let asked = domains
                .iter()
                .map(|domain| in_time(domain.name.clone(), NAMES, resolve(&domain.name)));
            futures::future::join_all(asked).await
        }
        Bootstrap::Http(http) => vec![in_time(http.url.to_string(), NAMES, ask(bootstrap)).await],
        Bootstrap::Static(peers) => {
            let dialled = peers
                .iter()
                .map(|peer| in_time(peer.to_string(), PORT, dial(peer)));
            futures::future::join_all(dialled).await
        }
    }
}

async fn in_time(
    name: String,
    limit: Duration,
    leads_to: impl Future<Output = Answer<usize>>,
) -> Name {
    let answer = timeout(limit, leads_to).await;
    Name {
        name,
        leads_to: answer.unwrap_or_else(|_| Err(format!("no answer within {limit:?}"))),
    }
}

async fn resolve(name: &str) -> Answer<usize> {
    let resolver = Resolver::system().map_err(|e| e.to_string())?;
    let found = resolver.addresses(name).await;
    found.map(|ips| ips.len()).map_err(|e| e.to_string())
}

async fn ask(bootstrap: &Bootstrap) -> Answer<usize> {
    let way = Bootstrapper::new(bootstrap.clone()).map_err(|e| e.to_string())?;
    let found = way.find(&[]).await.map_err(|e| e.to_string())?;
    Ok(found.candidates.len() + found.others.len())
}

/// Somebody listens there; that it is a router shows when it is known as a peer.
async fn dial(peer: &Multiaddr) -> Answer<usize> {
    let mut parts = peer.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Err("it does not begin with an IP address".into()),
    };
    let Some(Protocol::Tcp(port)) = parts.next() else {
        return Err("it has no TCP port".into());
    };
    let dialled = TcpStream::connect((ip, port)).await;
    dialled.map(|_| 1).map_err(|e| e.to_string())
}
