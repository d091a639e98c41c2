//! The registry outside the cluster, and what it served: its access log is the account that no one here can embellish.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::Method;

use super::http::{self, Upload};
use super::image::{Blob, Image};
use super::net::Netns;
use super::process::{Daemon, eventually, find, with_log};
use super::proxy::{Proxy, Rule};
use super::workspace::Workspace;

/// Our own questions; they are not counted.
const MARK: &str = "/v2/?lab-mark=";

pub struct Registry {
    daemon: Mutex<Option<Daemon>>,
    proxy: Mutex<Option<Proxy>>,
    pub netns: Netns,
    /// Where it is asked.
    address: SocketAddr,
    /// Where docker-registry listens: elsewhere while a proxy stands before it.
    behind: Mutex<SocketAddr>,
    dir: PathBuf,
    marks: AtomicU32,
}

impl Registry {
    pub async fn start_in(workspace: &Workspace, netns: Netns, ip: Ipv4Addr) -> Result<Self> {
        let dir = workspace.folder("registry")?;
        let address = SocketAddr::from((ip, 5000));
        let storage = dir.join("storage");
        std::fs::write(
            dir.join("config.yml"),
            format!(
                "version: 0.1\n\
                 log: {{level: warn, accesslog: {{disabled: false}}}}\n\
                 storage:\n\
                 \x20 filesystem: {{rootdirectory: {}, maxthreads: 200}}\n\
                 \x20 delete: {{enabled: true}}\n\
                 \x20 maintenance: {{uploadpurging: {{enabled: false}}}}\n\
                 http: {{addr: '{address}', net: tcp}}\n",
                storage.display()
            ),
        )?;
        let this = Self {
            daemon: Mutex::new(None),
            proxy: Mutex::new(None),
            netns,
            address,
            behind: Mutex::new(address),
            dir,
            marks: AtomicU32::new(0),
        };
        this.start().await?;
        Ok(this)
    }

    /// Begins the references of its images: `10.x.y.2:5000`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub async fn start(&self) -> Result<()> {
        let mut command = self
            .netns
            .command(find("docker-registry").context("docker-registry")?);
        let address = *self.behind.lock().unwrap();
        command
            .arg("serve")
            .arg(self.dir.join("config.yml"))
            .env("REGISTRY_HTTP_ADDR", address.to_string());
        *self.daemon.lock().unwrap() =
            Some(Daemon::spawn(command, "docker-registry", &self.log())?);
        let up = eventually("the registry", Duration::from_secs(15), async || {
            if let Some(daemon) = self.daemon.lock().unwrap().as_mut() {
                daemon.check()?;
            }
            let answer = http::get(&self.netns, address, MARK).await;
            Ok(answer.is_ok_and(|a| a.status.is_success()).then_some(()))
        })
        .await;
        with_log(up, &self.log())
    }

    /// Connections to it are refused from now on.
    pub async fn stop(&self) -> Result<()> {
        let daemon = self.daemon.lock().unwrap().take();
        if let Some(daemon) = daemon {
            daemon.stop(Duration::from_secs(10)).await?;
        }
        Ok(())
    }

    /// Nobody answers any more, neither it nor the proxy before it.
    pub async fn vanish(&self) -> Result<()> {
        let proxy = self.proxy.lock().unwrap().take();
        if let Some(proxy) = proxy {
            proxy.stop().await;
        }
        self.stop().await
    }

    /// Puts a proxy with these rules before it. [`Registry::served`] tells what went through the proxy from then on.
    pub async fn front(&self, rules: Vec<Rule>) -> Result<()> {
        self.stop().await?;
        let behind = SocketAddr::new(self.address.ip(), self.address.port() + 1);
        *self.behind.lock().unwrap() = behind;
        self.start().await?;
        let proxy = Proxy::start(&self.netns, self.address, behind, rules).await?;
        *self.proxy.lock().unwrap() = Some(proxy);
        Ok(())
    }

    /// Takes the proxy away again.
    pub async fn unfront(&self) -> Result<()> {
        let proxy = self.proxy.lock().unwrap().take();
        let Some(proxy) = proxy else {
            return Ok(());
        };
        proxy.stop().await;
        self.stop().await?;
        *self.behind.lock().unwrap() = self.address;
        self.start().await
    }

    /// Every GET that it has answered since the lab began, all that were finished before this call included.
    pub async fn served(&self) -> Result<Served> {
        if let Some(proxy) = self.proxy.lock().unwrap().as_ref() {
            return Ok(proxy.served());
        }
        let running = self.daemon.lock().unwrap().is_some();
        if running {
            // A line is written when its answer is out: one that we ask for now comes after those of earlier requests.
            let mark = format!("{MARK}{}.", self.marks.fetch_add(1, Ordering::Relaxed));
            http::get(&self.netns, self.behind(), &mark)
                .await?
                .expect(200)?;
            eventually("the access log", Duration::from_secs(5), async || {
                Ok(std::fs::read_to_string(self.log())?
                    .contains(&mark)
                    .then_some(()))
            })
            .await?;
        }
        let log = std::fs::read_to_string(self.log())?;
        Ok(Served(log.lines().filter_map(Access::parse).collect()))
    }

    fn behind(&self) -> SocketAddr {
        *self.behind.lock().unwrap()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub async fn push(&self, image: &Image) -> Result<()> {
        for blob in image.blobs() {
            self.push_blob(image.name(), blob).await?;
        }
        for manifest in image.manifests() {
            self.push_manifest(image.name(), &manifest.digest, manifest)
                .await?;
        }
        self.push_manifest(image.name(), image.tag(), image.top())
            .await
    }

    async fn push_blob(&self, name: &str, blob: &Blob) -> Result<()> {
        let ask = async |method, path: &str, upload| {
            http::send(&self.netns, self.behind(), method, path, &[], upload).await
        };
        let path = format!("/v2/{name}/blobs/{}", blob.digest);
        if ask(Method::HEAD, &path, Upload::Nothing)
            .await?
            .status
            .is_success()
        {
            return Ok(());
        }
        let path = format!("/v2/{name}/blobs/uploads/");
        let begun = ask(Method::POST, &path, Upload::Nothing)
            .await?
            .expect(202)?;
        let Some((_, location)) = begun.header("location").and_then(|l| l.split_once("/v2/"))
        else {
            bail!("the registry says no Location for an upload");
        };
        let with = if location.contains('?') { '&' } else { '?' };
        let path = format!("/v2/{location}{with}digest={}", blob.digest);
        ask(Method::PUT, &path, Upload::File(&blob.file))
            .await?
            .expect(201)?;
        Ok(())
    }

    async fn push_manifest(&self, name: &str, reference: &str, manifest: &Blob) -> Result<()> {
        let path = format!("/v2/{name}/manifests/{reference}");
        let bytes = std::fs::read(&manifest.file)?.into();
        let kind = [("content-type", manifest.media_type)];
        http::send(
            &self.netns,
            self.behind(),
            Method::PUT,
            &path,
            &kind,
            Upload::Bytes(bytes),
        )
        .await?
        .expect(201)?;
        Ok(())
    }
}

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct Access {
    pub client: IpAddr,
    pub path: String,
    pub status: u16,
    pub bytes: u64,
}

impl Access {
    /// `10.77.0.11 - - [21/Nov/2026:05:06:07 +0000] "GET /v2/a/blobs/sha256:... HTTP/1.1" 200 1234 "" "containerd/1.6"`
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '"');
        let (who, request, result) = (parts.next()?, parts.next()?, parts.next()?);
        let path = request.strip_prefix("GET ")?.split(' ').next()?.to_owned();
        if path.starts_with(MARK) {
            return None;
        }
        let mut result = result.split_whitespace();
        Some(Self {
            client: who.split(' ').next()?.parse().ok()?,
            path,
            status: result.next()?.parse().ok()?,
            bytes: result.next()?.parse().ok()?,
        })
    }
}

/// What the registry served, oldest first.
#[derive(Clone, Debug)]
pub struct Served(pub Vec<Access>);

impl Served {
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|a| a.bytes).sum()
    }

    pub fn bytes_to(&self, client: impl Into<IpAddr>) -> u64 {
        let client = client.into();
        let theirs = self.0.iter().filter(|a| a.client == client);
        theirs.map(|a| a.bytes).sum()
    }

    pub fn bytes_of(&self, digest: &str) -> u64 {
        let those = self.0.iter().filter(|a| a.path.contains(digest));
        those.map(|a| a.bytes).sum()
    }

    /// What came after an earlier look.
    pub fn since(&self, earlier: &Served) -> Served {
        Served(self.0[earlier.0.len().min(self.0.len())..].to_vec())
    }
}
