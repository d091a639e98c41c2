//! A network namespace in which addresses are on loopback that no node may have, and somebody counts who knocks there.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use crate::lab::Lab;
use crate::lab::net::remove;
use crate::lab::process::run;

pub struct Place {
    name: String,
}

impl Place {
    /// All of 10.9.0.0/16 is there, and these. None, with a word, where there are no namespaces for us.
    pub fn with(more: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if let Err(why) = Lab::available() {
            assert!(std::env::var_os("CI").is_none(), "no namespace: {why}");
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = Self {
            name: format!("peili-adv{}-{number}", std::process::id()),
        };
        let ip = |args: &[&str]| run("ip", args).unwrap();
        ip(&["netns", "add", &place.name]);
        ip(&["-n", &place.name, "link", "set", "lo", "up"]);
        // On loopback the kernel takes a whole prefix for its own.
        for address in ["10.9.0.1/16"].iter().chain(more) {
            let add = ["-n", &place.name, "addr", "add", address, "dev", "lo"];
            // Else the kernel may still be looking for others who have it.
            let at_once = address.contains(':').then_some("nodad");
            ip(&add.into_iter().chain(at_once).collect::<Vec<_>>());
        }
        Some(place)
    }

    /// Runs `work` inside, on one thread.
    pub fn run<F: Future>(&self, work: impl FnOnce() -> F + Send + 'static)
    where
        F::Output: Send + 'static,
    {
        within(&Path::new("/run/netns").join(&self.name), work);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs `work` on a thread in the namespace of that file, and all that it spawns.
pub fn within<F: Future>(netns: &Path, work: impl FnOnce() -> F + Send + 'static)
where
    F::Output: Send + 'static,
{
    let thread = inside(netns.to_owned(), work);
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The same, and does not wait for it.
pub fn inside<F: Future>(
    netns: PathBuf,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<F::Output>
where
    F::Output: Send + 'static,
{
    std::thread::spawn(move || {
        let file = File::open(netns).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    })
}

/// Listeners that say nothing and write down who knocked where.
#[derive(Clone, Default)]
pub struct Traps(Arc<Mutex<Vec<SocketAddr>>>);

impl Traps {
    pub async fn set(&self, at: impl IntoIterator<Item = SocketAddr>) {
        for address in at {
            let listener = TcpListener::bind(address).await;
            let listener = listener.unwrap_or_else(|e| panic!("{address}: {e}"));
            let this = self.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    this.0.lock().unwrap().push(address);
                    drop(stream);
                }
            });
        }
    }

    pub fn knocks(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap().clone()
    }

    pub fn knocks_at(&self, ip: IpAddr, port: u16) -> usize {
        let at = SocketAddr::new(ip, port);
        self.knocks().iter().filter(|it| **it == at).count()
    }
}
