//! A look at a process from outside: what the kernel says that it holds.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::judge::{Kind, Sample};
use crate::lab::peili::{METRICS_PORT, REGISTRY_PORT, metric};

const ROUTER_PORT: u16 = 5001;

/// States of include/net/tcp_states.h.
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

#[derive(Clone, Copy, Debug)]
struct Tcp {
    local: u16,
    remote: u16,
    state: u8,
}

/// `metrics` is its page.
pub fn sample(pid: u32, metrics: &str) -> Result<Sample> {
    let mut sample = look(pid)?;
    sample.tasks = metric(metrics, "peili_tasks", &[]) as i64;
    sample.records = metric(metrics, "peili_provider_records", &[]) as u64;
    sample.peers = metric(metrics, "peili_peers", &[("state", "connected")]) as usize;
    Ok(sample)
}

/// What /proc says alone.
pub fn look(pid: u32) -> Result<Sample> {
    let proc = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(proc.join("status")).context("its status")?;
    let mut sample = Sample {
        pid,
        resident: kibibytes(&status, "VmRSS:")? << 10,
        anonymous: kibibytes(&status, "RssAnon:")? << 10,
        threads: kibibytes(&status, "Threads:")?,
        ..Sample::default()
    };
    let mut sockets = HashMap::new();
    for (file, tells) in [("tcp", tcp as fn(&str) -> _), ("tcp6", tcp), ("unix", unix)] {
        let table = fs::read_to_string(proc.join("net").join(file)).unwrap_or_default();
        sockets.extend(table.lines().filter_map(tells));
    }
    for descriptor in fs::read_dir(proc.join("fd")).context("its descriptors")? {
        // It may be closed by now.
        let Ok(target) = fs::read_link(descriptor?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[");
        let kind = match inode.and_then(|rest| rest.strip_suffix(']')?.parse().ok()) {
            None => of_file(&target),
            Some(inode) => match sockets.get(&inode) {
                None => Kind::OtherSocket,
                Some(Socket::Unix) => Kind::Unix,
                Some(Socket::Tcp(tcp)) => {
                    sample.close_wait += usize::from(tcp.state == CLOSE_WAIT);
                    of_tcp(tcp)
                }
            },
        };
        *sample.descriptors.entry(kind).or_default() += 1;
    }
    Ok(sample)
}

fn kibibytes(status: &str, name: &str) -> Result<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {name} in its status"))
}

enum Socket {
    Tcp(Tcp),
    Unix,
}

/// `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 ...`
fn tcp(line: &str) -> Option<(u64, Socket)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |place: usize| {
        let (_, port) = fields.get(place)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let tcp = Tcp {
        local: port(1)?,
        remote: port(2)?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
    };
    Some((fields.get(9)?.parse().ok()?, Socket::Tcp(tcp)))
}

/// `0000000000000000: 00000003 00000000 00000000 0001 03 12345 /path`
fn unix(line: &str) -> Option<(u64, Socket)> {
    let inode = line.split_whitespace().nth(6)?.parse().ok()?;
    Some((inode, Socket::Unix))
}

fn of_tcp(tcp: &Tcp) -> Kind {
    match (tcp.state, tcp.local, tcp.remote) {
        (LISTEN, ..) => Kind::Listener,
        // A router calls from the port where it listens.
        (_, ROUTER_PORT, _) | (_, _, ROUTER_PORT) => Kind::Router,
        (_, REGISTRY_PORT, _) => Kind::Client,
        (_, METRICS_PORT, _) => Kind::Admin,
        (_, _, REGISTRY_PORT) => Kind::ToPeer,
        _ => Kind::OtherSocket,
    }
}

fn of_file(target: &str) -> Kind {
    if target.ends_with(" (deleted)") {
        Kind::Deleted
    } else if target.contains("/blobs/sha256/") || target.contains("/ingest/") {
        Kind::Content
    } else if target.starts_with('/') {
        Kind::File
    } else {
        Kind::Kernel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    /// Other tests of this program run beside this one: what is counted is what nobody else here has.
    #[test]
    fn what_a_process_holds_is_seen() {
        let of = |kind| look(std::process::id()).unwrap().count(kind);
        assert_eq!((of(Kind::Deleted), of(Kind::Content)), (0, 0));
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = fs::File::create(blobs.join("0123")).unwrap();
        let gone = fs::File::create(dir.path().join("gone")).unwrap();
        fs::remove_file(dir.path().join("gone")).unwrap();

        assert_eq!((of(Kind::Deleted), of(Kind::Content)), (1, 1));
        drop((blob, gone));
        assert_eq!((of(Kind::Deleted), of(Kind::Content)), (0, 0));

        let before = of(Kind::Unix);
        let pairs: Vec<_> = (0..50).map(|_| UnixStream::pair().unwrap()).collect();
        assert!(of(Kind::Unix) >= before + 50, "a hundred more");
        drop(pairs);
    }

    #[test]
    fn a_socket_whose_other_side_has_closed_is_seen() {
        let look = || look(std::process::id()).unwrap();
        assert_eq!(look().close_wait, 0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut served, _) = listener.accept().unwrap();

        drop(client);

        // It has arrived.
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        assert_eq!(look().close_wait, 1);
        drop(served);
        assert_eq!(look().close_wait, 0);
    }

    #[test]
    fn sockets_are_told_apart_by_their_ports() {
        let tcp = |local, remote, state| {
            of_tcp(&Tcp {
                local,
                remote,
                state,
            })
        };
        assert_eq!(tcp(5000, 0, LISTEN), Kind::Listener);
        assert_eq!(tcp(5001, 5001, 1), Kind::Router);
        assert_eq!(tcp(5000, 40_000, 1), Kind::Client);
        assert_eq!(tcp(9090, 40_000, 1), Kind::Admin);
        assert_eq!(tcp(40_000, 5000, 1), Kind::ToPeer);
        assert_eq!(tcp(40_000, 53, 1), Kind::OtherSocket);
        let line = "   1: 0100007F:1388 0100007F:9C40 08 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000 20 4 30 10 -1";
        let Some((4711, Socket::Tcp(seen))) = super::tcp(line) else {
            panic!("a line of the table")
        };
        assert_eq!(
            (seen.local, seen.remote, seen.state),
            (5000, 40_000, CLOSE_WAIT)
        );
    }
}
