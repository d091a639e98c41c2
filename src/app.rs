//! Composition root: bind, run, drain. The one place that names concrete types.
//!
//! Binding can fail and changes nothing; running serves at once, and what is awaited stands behind `/readyz`. Until
//! then an answer is a quick 404, and containerd goes upstream as it would without us.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Store;
use crate::content::ContentStore;
use crate::content::containerd::Containerd;
use crate::content::layout::Layout;
use crate::mirror::{self, Mirror};
use crate::node_token::NodeToken;
use crate::readiness::Readiness;
use crate::registry::uploads::Uploads;
use crate::routing::Router;
use crate::routing::kad::{self, EventLoop, Kad};
use crate::server::Server;
use crate::shutdown::Shutdown;
use crate::{admin, advertise, registry};

/// What is cut at the end of the grace period must still reach the other side before the kubelet's SIGKILL turns it
/// into a reset, and before the pod's network goes, which turns it into silence.
const BEFORE_THE_END: Duration = Duration::from_secs(5);

/// The router says goodbye within 300 ms, unless something is wrong with it.
const GOODBYE: Duration = Duration::from_secs(1);
/// The router closes its connections in half a second.
const ROUTER_END: Duration = Duration::from_secs(2);

/// The parts' own configurations, gathered.
#[derive(Debug)]
pub struct Config {
    /// Candidates to bind, the first that can be.
    pub registry: Vec<SocketAddr>,
    pub admin: Vec<SocketAddr>,
    pub store: Store,
    pub routing: kad::Config,
    pub mirror: mirror::Config,
    /// Hosts of the registries that are mirrored; None: every registry.
    pub mirrored: Option<HashSet<String>>,
    /// Who is this node's own containerd; None: everybody.
    pub token: Option<NodeToken>,
    /// Bodies under way to peers at once.
    pub max_uploads: usize,
    /// From SIGTERM to SIGKILL, as the kubelet has it.
    pub grace_period: Duration,
}

/// Everything bound, nothing served yet.
pub struct App {
    registry: Server,
    admin: Server,
    store: Arc<dyn ContentStore>,
    router: Kad,
    event_loop: EventLoop,
    mirror: Mirror,
    mirrored: Option<HashSet<String>>,
    token: Option<NodeToken>,
    uploads: Uploads,
    access: registry::access::Metrics,
    metrics: Registry,
    readiness: Readiness,
    grace_period: Duration,
}

impl App {
    pub async fn bind(config: Config) -> Result<Self> {
        let metrics = Registry::new();
        // Memory, CPU, descriptors; the default registry has it, one's own has not.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics
            .register(Box::new(process))
            .context("process metrics")?;
        let readiness = Readiness::new();

        if let Some(token) = &config.token {
            token.check()?;
        }
        let registry = Server::bind(&config.registry)
            .await
            .context("--registry-addr")?;
        let admin = Server::bind(&config.admin)
            .await
            .context("--metrics-addr")?;
        let store: Arc<dyn ContentStore> = match config.store {
            Store::Containerd(config) => Arc::new(Containerd::new(config, readiness.clone())?),
            Store::OciLayout(config) => Arc::new(Layout::new(config, readiness.clone())?),
        };
        let (router, event_loop) = kad::bind(
            config.routing,
            kad::Metrics::new(&metrics),
            readiness.guard("routing"),
        )
        .await?;
        let mirror = Mirror::new(
            Arc::new(router.clone()),
            config.mirror,
            mirror::Metrics::new(&metrics),
        );
        Ok(Self {
            registry,
            admin,
            store,
            router,
            event_loop,
            mirror,
            mirrored: config.mirrored,
            token: config.token,
            uploads: Uploads::new(config.max_uploads),
            access: registry::access::Metrics::new(&metrics),
            metrics,
            readiness,
            grace_period: config.grace_period,
        })
    }

    /// Where the registry listens, once it is bound.
    pub fn registry_addr(&self) -> std::io::Result<SocketAddr> {
        self.registry.local_addr()
    }

    pub fn metrics_addr(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `stop`, then drains.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<()> {
        let (registry_addr, metrics_addr) = (self.registry_addr()?, self.metrics_addr()?);
        let shutdown = Shutdown::new();
        let swarm = self.router.clone();
        let router: Arc<dyn Router> = Arc::new(self.router);

        shutdown.spawn(self.registry.run(
            registry::router(registry::Registry {
                store: self.store.clone(),
                mirror: self.mirror,
                readiness: self.readiness.clone(),
                metrics: self.access,
                mirrored: self.mirrored.map(Arc::new),
                token: self.token.map(Arc::new),
                uploads: self.uploads,
            }),
            shutdown.clone(),
        ));
        shutdown.spawn(
            self.admin
                .run(admin::router(self.metrics), shutdown.clone()),
        );
        shutdown.spawn(advertise::run(
            self.store,
            router,
            self.readiness.guard("content"),
            shutdown.drain.clone(),
        ));
        // Bodies under way look for other peers when theirs fail: the router ends after them.
        let stop_routing = CancellationToken::new();
        let mut routing = tokio::spawn(self.event_loop.run(stop_routing.clone()));
        info!(registry = %registry_addr, metrics = %metrics_addr, "serving");

        tokio::select! {
            () = stop => {}
            // A mirror without a router only looks alive. The kubelet starts a new one.
            ended = &mut routing => return ended
                .context("the router's task")
                .and_then(|()| bail!("the router has ended")),
        }
        info!("draining");
        // Dropped with the process: nobody should be sent here any more.
        let _leaving = self.readiness.guard("shutdown");
        // Before the listeners close, so that nobody is sent here to be refused.
        let _ = tokio::time::timeout(GOODBYE, swarm.leave()).await;
        let left = shutdown
            .finish(self.grace_period.saturating_sub(BEFORE_THE_END))
            .await;
        if left > 0 {
            warn!(tasks = left, "ended with work under way");
        }
        stop_routing.cancel();
        if tokio::time::timeout(ROUTER_END, routing).await.is_err() {
            warn!("the router has not ended");
        }
        info!("ended");
        Ok(())
    }
}
