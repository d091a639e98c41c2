//! A cluster on one machine: nodes in network namespaces, each with its own containerd and Peili, a registry and a name
//! server. Everything is real; only the cable is not.
//!
//! ```ignore
//! #[allow(dead_code, reason = "each test uses its part of the lab")]
//! mod lab; // at the root of the crate, for lab_or_skip!
//!
//! let lab = lab_or_skip!();
//! let image = lab.push(ImageSpec::new("app:v1").busybox().layers([5 << 20])).await?;
//! let node = lab.node(NodeOptions::default()).await?;
//! node.start_peili().await?;
//! node.cri_pull(&image.reference()).await?;
//! assert_eq!(lab.registry.served().await?.bytes_to(node.ip()), image.pulled_bytes());
//! ```
//!
//! Needs root ([`loopback`] is what there is without). Labs may stand side by side. What a lab made goes away when it and its nodes are dropped, also after a
//! panic; what a killed process left, when the next lab begins. Set PEILI_TEST_CONTAINERD to try another containerd,
//! PEILI_TEST_SNAPSHOTTER=native where overlayfs does not work.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

pub mod containerd;
pub mod cri;
pub mod dns;
pub mod http;
pub mod image;
pub mod layout;
pub mod loopback;
pub mod net;
pub mod node;
pub mod peili;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod workspace;

pub use self::image::{Image, ImageSpec};
pub use self::net::Direction;
pub use self::node::{Node, NodeOptions};
#[allow(
    unused_imports,
    reason = "not every user of the lab varies how Peili runs"
)]
pub use self::peili::PeiliOptions;

use self::dns::Dns;
use self::net::Bridge;
use self::process::find;
use self::registry::Registry;
use self::workspace::Workspace;

/// Programs that a lab cannot do without, and the Debian packages that have them.
const NEEDS: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("docker-registry", "docker-registry"),
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("busybox", "busybox-static"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

pub struct Lab {
    pub registry: Registry,
    shared: Arc<Shared>,
    count: AtomicU8,
    peili: Mutex<Option<PathBuf>>,
}

/// What nodes share with the lab, and keep when it goes before them. Dropped in this order.
struct Shared {
    dns: Dns,
    bridge: Bridge,
    workspace: Workspace,
}

impl Lab {
    /// Why there can be no lab on this machine.
    pub fn available() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a lab needs root, for network namespaces and containerd".to_owned());
        }
        let mut missing: Vec<&str> = NEEDS
            .iter()
            .filter(|(program, _)| find(program).is_none())
            .map(|(_, package)| *package)
            .collect();
        missing.dedup();
        if !missing.is_empty() {
            return Err(format!(
                "these are missing: {}; `make deps` installs them",
                missing.join(", ")
            ));
        }
        process::run("unshare", &["--net", "--mount", "true"])
            .map(drop)
            .map_err(|error| format!("no namespaces for us: {error:#}"))
    }

    pub async fn new() -> Result<Self> {
        let workspace = Workspace::create()?;
        let bridge = Bridge::create(workspace.name())?;
        let (registry_ip, dns_ip) = (workspace.ip(2), workspace.ip(3));
        let registry = bridge.attach("registry", registry_ip)?;
        let dns = bridge.attach("dns", dns_ip)?;
        let dns = Dns::start(&workspace, dns, dns_ip).await?;
        Ok(Self {
            registry: Registry::start_in(&workspace, registry, registry_ip).await?,
            shared: Arc::new(Shared {
                dns,
                bridge,
                workspace,
            }),
            count: AtomicU8::new(0),
            peili: Mutex::new(option_env!("CARGO_BIN_EXE_peili").map(PathBuf::from)),
        })
    }

    /// The Peili that nodes get from now on. Integration tests need not: cargo tells them.
    pub fn set_peili(&self, binary: PathBuf) {
        *self.peili.lock().unwrap() = Some(binary);
    }

    /// One more node, its containerd answering. Several may be made at once.
    pub async fn node(&self, options: NodeOptions) -> Result<Node> {
        let number = 1 + self.count.fetch_add(1, Ordering::Relaxed);
        let peili = self.peili.lock().unwrap().clone();
        let peili = peili.context("Lab::set_peili was not told which")?;
        Node::up(
            self.shared.clone(),
            self.registry.host(),
            number,
            peili,
            options,
        )
        .await
    }

    /// Makes an image for this lab's registry without telling the registry.
    pub async fn make(&self, spec: ImageSpec) -> Result<Image> {
        let dir = self.shared.workspace.folder("images")?;
        let registry = self.registry.host();
        tokio::task::spawn_blocking(move || spec.build(&registry, &dir)).await?
    }

    /// Makes an image and pushes it.
    pub async fn push(&self, spec: ImageSpec) -> Result<Image> {
        let image = self.make(spec).await?;
        self.registry.push(&image).await?;
        Ok(image)
    }

    /// A folder beside the images, on their file system.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        self.shared.workspace.folder(name)
    }

    pub fn dns(&self) -> &Dns {
        &self.shared.dns
    }

    /// Limits the registry's link; None lifts the limit.
    pub fn shape_registry(&self, bytes_per_s: Option<u64>, way: Direction) -> Result<()> {
        self.shared
            .bridge
            .shape(&self.registry.netns, bytes_per_s, way)
    }

    pub async fn stop_registry(&self) -> Result<()> {
        self.registry.stop().await
    }

    pub async fn start_registry(&self) -> Result<()> {
        self.registry.start().await
    }
}

/// A lab; or the end of the test with a word why not. In CI that is a failure: there nobody reads the word.
#[allow(unused_macros, reason = "the demo is no test")]
macro_rules! lab_or_skip {
    () => {
        match $crate::lab::Lab::available() {
            Ok(()) => $crate::lab::Lab::new().await.unwrap(),
            Err(why) if std::env::var_os("CI").is_some() => panic!("no lab: {why}"),
            Err(why) => {
                // Past libtest, which shows what a test printed only when it failed.
                use std::io::Write;
                let _ = writeln!(std::io::stderr(), "skipped: {why}");
                return;
            }
        }
    };
}
#[allow(unused_imports, reason = "the demo is no test")]
pub(crate) use lab_or_skip;
