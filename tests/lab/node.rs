//! A node of the cluster: a namespace, a containerd and a Peili in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};

use super::Shared;
use super::containerd::{Containerd, Settings, choose};
use super::cri::{self, CriImage, Login, Pulled};
use super::http::{self, Answer, Upload};
use super::image::Image;
use super::net::{Direction, Netns};
use super::peili::{Peili, PeiliOptions, metric};
use super::process::{output, tail};
use super::workspace::Tmpfs;

/// What differs from an ordinary node.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// This containerd instead of the machine's.
    pub containerd: Option<PathBuf>,
    /// One of those that `make containerds` unpacks: `1.7` or `2.x`.
    pub version: Option<String>,
    /// As Kind, EKS and Talos have it: layers are gone once they are unpacked.
    pub discard_unpacked_layers: bool,
    /// Not among the addresses of [`super::dns::PEERS`].
    pub unlisted: bool,
    /// containerd's root is a tmpfs of so many bytes: no disk is waited for, or it is soon full.
    pub root_in_memory: Option<u64>,
}

impl NodeOptions {
    pub fn version(version: &str) -> Self {
        Self {
            version: Some(version.to_owned()),
            ..Self::default()
        }
    }
}

pub struct Node {
    name: String,
    ip: Ipv4Addr,
    peili: Peili,
    containerd: Containerd,
    // After those who live in it.
    netns: Netns,
    _root: Option<Tmpfs>,
    dir: PathBuf,
    resolv_conf: PathBuf,
    registry: String,
    snapshotter: String,
    shared: Arc<Shared>,
}

impl Node {
    pub(super) async fn up(
        shared: Arc<Shared>,
        registry: String,
        number: u8,
        peili: PathBuf,
        options: NodeOptions,
    ) -> Result<Self> {
        let name = format!("n{number}");
        let ip = shared.workspace.ip(10 + number);
        let dir = shared.workspace.folder(&name)?;
        let resolv_conf = dir.join("resolv.conf");
        std::fs::write(&resolv_conf, shared.dns.resolv_conf())?;
        let root = options.root_in_memory;
        let root = root.map(|bytes| Tmpfs::mount(dir.join("root"), bytes));
        let binary = choose(options.containerd.as_deref(), options.version.as_deref())?;
        // The way out where the file system cannot carry an overlay, as in a container.
        let snapshotter = std::env::var("PEILI_TEST_SNAPSHOTTER");
        let snapshotter = snapshotter.unwrap_or_else(|_| "overlayfs".to_owned());
        let settings = Settings {
            snapshotter: &snapshotter,
            discard_unpacked_layers: options.discard_unpacked_layers,
            registry: &registry,
        };
        let node = Self {
            peili: Peili::new(peili, dir.clone(), ip),
            containerd: Containerd::new(binary, dir.clone(), &settings)?,
            netns: shared.bridge.attach(&name, ip)?,
            _root: root.transpose()?,
            name,
            ip,
            dir,
            resolv_conf,
            registry,
            snapshotter,
            shared,
        };
        node.start().await?;
        if !options.unlisted {
            node.shared.dns.add(super::dns::PEERS, ip).await?;
        }
        Ok(node)
    }

    /// `n1`
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The node's folder; containerd's root is in `root`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Where a pull unpacks to, for `ctr run --snapshotter`.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    pub fn peili(&self) -> &Peili {
        &self.peili
    }

    // containerd

    pub async fn start(&self) -> Result<()> {
        self.containerd
            .start(&self.netns, &self.resolv_conf)
            .await
            .with_context(|| format!("containerd of {}", self.name))
    }

    pub async fn stop(&self) -> Result<()> {
        self.containerd.stop().await.map(drop)
    }

    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// SIGKILL to containerd; what it had on disk stays.
    pub fn kill(&self) {
        self.containerd.kill();
    }

    pub async fn cri_pull(&self, reference: &str) -> Result<Pulled> {
        cri::pull(&self.containerd.socket(), reference, None)
            .await
            .with_context(|| format!("{} pulling {reference}", self.name))
    }

    /// With a pod's credentials for the registry.
    pub async fn cri_pull_as(&self, reference: &str, login: &Login) -> Result<Pulled> {
        cri::pull(&self.containerd.socket(), reference, Some(login))
            .await
            .with_context(|| format!("{} pulling {reference}", self.name))
    }

    pub async fn cri_remove(&self, reference: &str) -> Result<()> {
        cri::remove(&self.containerd.socket(), reference).await
    }

    pub async fn cri_images(&self) -> Result<Vec<CriImage>> {
        cri::list(&self.containerd.socket()).await
    }

    /// `ctr` of the node's own version in containerd's namespace k8s.io; its standard output.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = self.containerd.ctr(&self.netns);
        command.args(args);
        output(command).await
    }

    pub async fn ctr_pull(&self, reference: &str) -> Result<()> {
        let hosts = self.containerd.certs_d().display().to_string();
        let mut args = vec!["images", "pull", "--hosts-dir", &hosts];
        // Otherwise it takes the manifests of all other platforms, too, as the CRI does not.
        if !self.containerd.version().starts_with("1.") {
            args.push("--skip-metadata");
        }
        args.extend(["--snapshotter", self.snapshotter(), reference]);
        self.ctr(&args).await.map(drop)
    }

    /// Imports an OCI archive.
    pub async fn ctr_import(&self, archive: &Path) -> Result<()> {
        let archive = archive.display().to_string();
        self.ctr(&["images", "import", &archive]).await.map(drop)
    }

    /// Imports an image as an archive, without any registry.
    pub async fn import(&self, image: &Image) -> Result<()> {
        let archive = tempfile::NamedTempFile::new_in(&self.dir)?;
        image.write_archive(archive.path())?;
        self.ctr_import(archive.path()).await
    }

    pub async fn ctr_tag(&self, reference: &str, new: &str) -> Result<()> {
        self.ctr(&["images", "tag", reference, new]).await.map(drop)
    }

    /// Removes one name and waits until what nobody else needs is gone.
    pub async fn ctr_remove(&self, reference: &str) -> Result<()> {
        self.ctr(&["images", "rm", "--sync", reference])
            .await
            .map(drop)
    }

    /// Whether the content store holds this digest, by a look at the disk.
    pub fn holds(&self, digest: &str) -> bool {
        let blob = format!("blobs/{}", digest.replace(':', "/"));
        self.containerd.content().join(blob).is_file()
    }

    // Peili

    /// Configures containerd, starts the daemon, and returns when it is ready.
    pub async fn start_peili(&self) -> Result<()> {
        self.start_peili_with(&PeiliOptions::default()).await
    }

    pub async fn start_peili_with(&self, options: &PeiliOptions) -> Result<()> {
        self.spawn_peili(options).await?;
        self.peili_ready().await
    }

    /// Without waiting for readiness.
    pub async fn spawn_peili(&self, options: &PeiliOptions) -> Result<()> {
        if options.configures() {
            self.peili
                .configure(&self.netns, &self.containerd, &self.registry, &[])
                .await?;
        }
        self.peili
            .spawn(&self.netns, &self.resolv_conf, &self.containerd, options)
    }

    pub async fn peili_ready(&self) -> Result<()> {
        self.peili
            .ready(&self.netns)
            .await
            .with_context(|| format!("peili of {}", self.name))
    }

    /// `peili doctor` where its Peili runs, with the same options and some more, ready to be run.
    pub fn doctor(
        &self,
        options: &PeiliOptions,
        more: &[&str],
        script: Option<&str>,
    ) -> Result<std::process::Command> {
        let more = (more, script);
        self.peili.doctor(
            &self.netns,
            &self.resolv_conf,
            &self.containerd,
            options,
            more,
        )
    }

    /// SIGTERM; how it ended, None if it did not run.
    pub async fn stop_peili(&self) -> Result<Option<ExitStatus>> {
        self.peili.stop().await
    }

    /// SIGSTOP, SIGCONT and the like; nothing to a Peili that does not run.
    pub fn signal_peili(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.peili.pid().and_then(|pid| i32::try_from(pid).ok()) else {
            return Ok(());
        };
        let pid = Pid::from_raw(pid).context("a pid")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to {}'s peili", self.name))
    }

    /// SIGKILL.
    pub fn kill_peili(&self) {
        self.peili.kill();
    }

    /// A GET at this node's Peili, from the node itself: path and query.
    pub async fn http_get(&self, path: &str) -> Result<Answer> {
        http::get(&self.netns, self.peili.registry(), path).await
    }

    /// Any request from this node to anybody in the lab.
    pub async fn http(
        &self,
        to: SocketAddr,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        http::send(&self.netns, to, method, path, headers, Upload::Nothing).await
    }

    /// One of its Peili's metrics now, summed over the series with these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let answer = http::get(&self.netns, self.peili.metrics(), "/metrics").await?;
        Ok(metric(&answer.expect(200)?.text(), name, labels))
    }

    // The link

    /// Limits the node's link; None lifts the limit.
    pub fn shape(&self, bytes_per_s: Option<u64>, way: Direction) -> Result<()> {
        self.shared.bridge.shape(&self.netns, bytes_per_s, way)
    }

    /// As if the machine had lost power: its packets go nowhere and nobody is told.
    pub fn remove_link(&self) -> Result<()> {
        self.shared.bridge.unplug(&self.netns)
    }

    pub fn restore_link(&self) -> Result<()> {
        self.shared.bridge.plug(&self.netns)
    }

    /// From now on the two do not hear each other, whatever else they hear.
    pub fn cut_off(&self, other: &Node) -> Result<()> {
        self.netns.lose(other.ip)?;
        other.netns.lose(self.ip)
    }

    /// The end of that.
    pub fn reunite(&self, other: &Node) -> Result<()> {
        self.netns.find(other.ip)?;
        other.netns.find(self.ip)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = &self.name;
            eprintln!(
                "--- {name}: containerd\n{}",
                tail(&self.containerd.log(), 10)
            );
            eprintln!("--- {name}: peili\n{}", tail(&self.peili.log(), 40));
        }
    }
}
