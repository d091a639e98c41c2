//! Composition root: bind, run, drain. The one place that names concrete types.
//!
//! Binding can fail and changes nothing; running serves at once, and what is awaited stands behind `/readyz`. Until
//! then an answer is a quick 404, and containerd goes upstream as it would without us.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libp2p::Multiaddr;
use prometheus::Registry;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::basic_auth::Secret;
use crate::config::Store;
use crate::content::ContentStore;
use crate::content::containerd::Containerd;
use crate::content::layout::Layout;
use crate::doctor::examination::Examination;
use crate::doctor::observe::Observer;
use crate::inflight::{Inflight, Uplink};
use crate::membership::Members;
use crate::metrics::Page;
use crate::mirror::flight::{self, Flight};
use crate::mirror::{self, InFlightSharing, Mirror, Papers};
use crate::node_token::NodeToken;
use crate::oci::filter::Filter;
use crate::readiness::Readiness;
use crate::recent::Recent;
use crate::registry::door::Door;
use crate::registry::heard::Heard;
use crate::registry::uploads::Uploads;
use crate::routing::Router;
use crate::routing::flight::Flights;
use crate::routing::kad::{self, EventLoop, Kad};
use crate::routing::messenger::{Call, Messenger as _};
use crate::server::{Server, measured};
use crate::shutdown::Shutdown;
use crate::tls::CertDir;
use crate::{admin, advertise, doctor, http_get, registry, try_pull};

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
    /// Whether `/debug` is served there, too.
    pub debug_web: bool,
    pub introduction: Option<Introduction>,
    pub store: Store,
    pub routing: kad::Config,
    pub mirror: mirror::Config,
    pub in_flight_sharing: mirror::InFlightSharing,
    /// What is neither served nor told to others.
    pub filter: Filter,
    /// Who is this node's own containerd; None: everybody.
    pub token: Option<NodeToken>,
    /// What containerd and peers must send, and peers are sent; None: nothing.
    pub basic_auth: Option<Secret>,
    /// Bodies under way to peers at once.
    pub max_uploads: usize,
    /// From SIGTERM to SIGKILL, as the kubelet has it.
    pub grace_period: Duration,
    /// What is looked at, after the start and for who asks; None: nothing.
    pub doctor: Option<doctor::Config>,
}

/// Where `/id` is served.
#[derive(Debug)]
pub struct Introduction {
    pub listen: Vec<SocketAddr>,
    /// None: over plain HTTP.
    pub certificates: Option<CertDir>,
}

impl Introduction {
    async fn bind(self) -> Result<Server> {
        let server = Server::bind(&self.listen)
            .await
            .context("--http-bootstrap-addr")?;
        match self.certificates {
            None => Ok(server),
            Some(certificates) => server
                .over_tls(certificates)
                .await
                .context("--http-bootstrap-cert-dir"),
        }
    }
}

/// Everything bound, nothing served yet.
pub struct App {
    registry: Server,
    admin: Server,
    debug_web: bool,
    introduction: Option<Server>,
    store: Arc<dyn ContentStore>,
    router: Kad,
    event_loop: EventLoop,
    calls: mpsc::Receiver<Call>,
    flights: Flights,
    heard: Heard,
    holdings: advertise::Holdings,
    examination: Option<Examination>,
    flight: Flight,
    mirror: Mirror,
    filter: Arc<Filter>,
    token: Option<NodeToken>,
    basic_auth: Option<Arc<Secret>>,
    members: Option<Arc<Members>>,
    uploads: Uploads,
    inflight: Inflight,
    uplink: Uplink,
    access: registry::access::Metrics,
    http: measured::Metrics,
    metrics: Page,
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
        let runtime = Handle::current();
        crate::metrics::looked_up(
            &metrics,
            "peili_tasks",
            "Tasks of this process that have not ended: a few dozen, and one for each connection.",
            move || i64::try_from(runtime.metrics().num_alive_tasks()).unwrap_or(i64::MAX),
        );
        let readiness = Readiness::new();

        if let Some(token) = &config.token {
            token.check()?;
        }
        let basic_auth = config.basic_auth.map(Arc::new);
        let members = config.routing.members.clone();
        let papers = Papers {
            basic_auth: basic_auth.clone(),
            members: members.clone(),
        };
        let registry = Server::bind(&config.registry)
            .await
            .context("--registry-addr")?;
        let admin = Server::bind(&config.admin)
            .await
            .context("--metrics-addr")?;
        let introduction = match config.introduction {
            Some(introduction) => Some(introduction.bind().await?),
            None => None,
        };
        let mut watched = None;
        let (store, inflight): (Arc<dyn ContentStore>, _) = match config.store {
            Store::Containerd(config) => {
                let namespace = config.namespace.clone();
                let containerd = Containerd::new(config, readiness.clone())?;
                let inflight = Inflight::new(containerd.content_root(), namespace);
                watched = Some(containerd.clone());
                (Arc::new(containerd), inflight)
            }
            // Nobody downloads into a layout in a way that others could follow.
            Store::OciLayout(config) => {
                let layout = Layout::new(config, readiness.clone())?;
                (Arc::new(layout), Inflight::off())
            }
        };
        let routing_metrics = kad::Metrics::new(&metrics);
        let kad::Bound {
            kad: router,
            event_loop,
            calls,
        } = kad::bind(
            config.routing,
            routing_metrics.clone(),
            readiness.guard("routing"),
        )
        .await?;
        let inflight = match config.in_flight_sharing {
            InFlightSharing::Off => Inflight::off(),
            InFlightSharing::Auto | InFlightSharing::Always => inflight,
        };
        let uplink = Uplink::default();
        let flights = Flights::new(Arc::new(router.clone()), rand::make_rng::<StdRng>());
        let flight = Flight::new(
            flight::Parts {
                rendezvous: Arc::new(flights.clone()),
                store: store.clone(),
                inflight: inflight.clone(),
                uplink: uplink.clone(),
                sharing: config.in_flight_sharing,
                papers: papers.clone(),
            },
            flight::Metrics::new(&metrics),
        );
        let heard = Heard::default();
        let filter = Arc::new(config.filter);
        let holdings = advertise::Holdings::default();
        let examination = config.doctor.map(|doctor| Examination {
            config: Arc::new(doctor),
            observer: Observer::new(heard.clone(), &metrics),
            containerd: watched,
            holdings: holdings.clone(),
            routing: routing_metrics.clone(),
            router: Arc::new(router.clone()),
            filter: filter.clone(),
            papers: papers.clone(),
            readiness: readiness.clone(),
        });
        let mirror = Mirror::new(
            Arc::new(router.clone()),
            config.mirror,
            mirror::Metrics::new(&metrics),
        )
        .with_flight(flight.clone())
        .with_papers(papers);
        Ok(Self {
            registry,
            admin,
            debug_web: config.debug_web,
            introduction,
            store,
            router,
            event_loop,
            calls,
            flights,
            heard,
            holdings,
            examination,
            flight,
            mirror,
            filter,
            token: config.token,
            basic_auth,
            members,
            uploads: Uploads::new(config.max_uploads),
            inflight,
            uplink,
            access: registry::access::Metrics::new(&metrics),
            http: measured::Metrics::new(&metrics),
            metrics: Page::new(metrics, routing_metrics.libp2p()),
            readiness,
            grace_period: config.grace_period,
        })
    }

    /// Where `/id` is served, once it is bound; None: nowhere.
    pub fn introduction_addr(&self) -> Option<SocketAddr> {
        self.introduction.as_ref()?.local_addr().ok()
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
        let pulls = advertise::Pulls::default();
        let holdings = self.holdings;
        let token = self.token.map(Arc::new);
        let totals: admin::Tally = {
            let access = self.access.clone();
            Arc::new(move || access.totals())
        };
        let debug = admin::Parts {
            me: swarm.me(),
            recent: self.access.recent(),
            totals: totals.clone(),
            neighbours: neighbours(swarm.clone()),
            router: router.clone(),
            store: self.store.clone(),
            mirror: self.mirror.clone(),
            holdings: holdings.clone(),
            filter: self.filter.clone(),
            readiness: self.readiness.clone(),
            registry: try_pull::Registry {
                at: http_get::from_here(registry_addr),
                token: token.clone(),
                basic_auth: self.basic_auth.clone(),
            },
            names: admin::Names::of_this_machine(),
            doctor: self.examination.as_ref().map(Examination::on_request),
            drain: shutdown.drain.clone(),
        };
        let debug = self.debug_web.then(|| admin::Debug::new(debug));
        shutdown.spawn(sample(self.access.recent(), totals, shutdown.drain.clone()));

        if let Some(members) = &self.members {
            shutdown.spawn(members.clone().follow(shutdown.drain.clone()));
        }
        let measured = self.http.clone();
        shutdown.spawn(self.registry.run(
            measured.measure(
                registry::router(registry::Registry {
                    store: self.store.clone(),
                    mirror: self.mirror,
                    readiness: self.readiness.clone(),
                    metrics: self.access,
                    filter: self.filter.clone(),
                    pulls: pulls.clone(),
                    heard: self.heard,
                    token,
                    basic_auth: self.basic_auth,
                    door: self.members.clone().map(|it| Door::new(it, &swarm.me())),
                    uploads: self.uploads,
                    verified: Default::default(),
                    inflight: self.inflight.clone(),
                    uplink: self.uplink,
                }),
                registry::handler,
            ),
            shutdown.clone(),
        ));
        if let Some(examination) = self.examination {
            shutdown.spawn(examination.observe(shutdown.drain.clone()));
            shutdown.spawn(examination.begin(shutdown.drain.clone()));
        }
        shutdown.spawn(
            self.admin.run(
                self.http
                    .measure(admin::router(self.metrics, debug), admin::handler),
                shutdown.clone(),
            ),
        );
        if let Some(introduction) = self.introduction {
            let routes = admin::id::router(introduce(swarm.clone()));
            shutdown.spawn(introduction.run(routes, shutdown.clone()));
        }
        shutdown.spawn(advertise::run(
            self.store,
            router,
            self.filter,
            pulls,
            holdings,
            self.readiness.guard("content"),
            shutdown.drain.clone(),
        ));
        let (inflight, drain) = (self.inflight, shutdown.drain.clone());
        shutdown.spawn(async move {
            tokio::select! {
                () = drain.cancelled() => {}
                readable = inflight.readable() => {
                    if let Err(reason) = readable {
                        warn!(reason, "layers that are still being written cannot be read (yet): they are shared when they are whole");
                    }
                }
            }
        });
        // Bodies under way look for other peers when theirs fail, and others follow them: all that is routing ends after
        // them.
        let stop_routing = CancellationToken::new();
        let mut routing = tokio::spawn(self.event_loop.run(stop_routing.clone()));
        // Both end with the router.
        let meeting = tokio::spawn(self.flights.serve(self.calls));
        let flight = self.flight.clone();
        let flying = tokio::spawn(self.flight.run(stop_routing.clone()));
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
        let leaving = async {
            flight.leave().await;
            swarm.leave().await;
        };
        let _ = tokio::time::timeout(GOODBYE, leaving).await;
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
        meeting.abort();
        flying.abort();
        info!("ended");
        Ok(())
    }
}

/// What minutes hold is as exact as this.
async fn sample(recent: Recent, totals: admin::Tally, stop: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(5);
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => recent.sample(&totals()),
        }
    }
}

fn neighbours(swarm: Kad) -> admin::Neighbours {
    Arc::new(move || {
        let swarm = swarm.clone();
        Box::pin(async move { swarm.neighbours().await })
    })
}

fn introduce(swarm: Kad) -> admin::id::Introduce {
    Arc::new(move || {
        let swarm = swarm.clone();
        Box::pin(async move {
            let known = swarm.introduce().await;
            let words = |at: Vec<Multiaddr>| at.iter().map(Multiaddr::to_string).collect();
            known.into_iter().map(words).collect()
        })
    })
}
