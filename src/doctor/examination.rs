//! The doctor inside of the daemon: once after the start, and whenever somebody asks.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::delivery::deliver;
use super::live::{Live, Peers};
use super::observe::Observer;
use super::{Config, Report, examine};
use crate::admin::doctor::{Cost, Examine};
use crate::advertise::Holdings;
use crate::content::containerd::Containerd;
use crate::finding::State;
use crate::mirror::Papers;
use crate::oci::filter::Filter;
use crate::readiness::Readiness;
use crate::routing::Router;
use crate::routing::kad;

/// What does not become ready by then says so now, with what else is wrong.
const READY: Duration = Duration::from_secs(60);

/// What it takes to look at this node from inside.
#[derive(Clone)]
pub struct Examination {
    pub config: Arc<Config>,
    pub observer: Observer,
    /// None: this node's content is a directory.
    pub containerd: Option<Containerd>,
    /// What this node holds.
    pub holdings: Holdings,
    pub routing: kad::Metrics,
    pub router: Arc<dyn Router>,
    pub filter: Arc<Filter>,
    /// What peers are shown.
    pub papers: Papers,
    pub readiness: Readiness,
}

impl Examination {
    /// Watches what containerd does, until `stop`.
    pub fn observe(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let holdings = self.holdings.subscribe();
        let (observer, filter) = (self.observer.clone(), self.filter.clone());
        let containerd = self.containerd.clone();
        async move {
            if let Some(containerd) = containerd {
                observer.run(holdings, containerd, filter, stop).await;
            }
        }
    }

    /// Once this node is ready, says in one warning each what would make it silently useless.
    pub fn begin(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        async move {
            let said = async {
                let _ = timeout(READY, this.readiness.ready()).await;
                let report = examine(&this.config, Ok(this.live())).await;
                say(&report);
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = said => {}
            }
        }
    }

    /// For who asks at the metrics port; one at a time.
    pub fn on_request(&self) -> Examine {
        let (this, one) = (self.clone(), Arc::new(Mutex::new(())));
        Arc::new(move |cost| {
            let (this, one) = (this.clone(), one.clone());
            Box::pin(async move {
                let _one = one.lock().await;
                this.answer(cost).await
            })
        })
    }

    async fn answer(&self, cost: Cost) -> Value {
        let mut live = self.live();
        if cost == Cost::Traffic {
            let held = self.holdings.now();
            let (snapshot, papers) = (&held.snapshot, &self.papers);
            let delivered = deliver(self.router.clone(), snapshot, &self.filter, papers);
            live.delivery = Some(delivered.await);
        }
        let report = examine(&self.config, Ok(live.clone())).await;
        let mut said = serde_json::to_value(report.json()).unwrap_or_default();
        said["live"] = json!(live);
        said
    }

    fn live(&self) -> Live {
        Live {
            awaited: self.readiness.awaited(),
            peers: Peers {
                known: self.routing.peers_in("known"),
                connected: self.routing.peers_in("connected"),
            },
            strangers: self.routing.strangers().into(),
            observed: self.observer.observed(),
            delivery: None,
        }
    }
}

fn say(report: &Report) {
    for finding in &report.findings {
        let cure = finding.cure.as_deref().unwrap_or_default();
        match finding.state {
            State::Warning | State::Broken => warn!(
                check = finding.check,
                state = finding.state.as_str(),
                seen = finding.seen,
                cure,
                "this node is not as it should be"
            ),
            State::Ok | State::Skipped => {}
        }
    }
    info!(
        verdict = report.verdict().as_str(),
        distribution = report.distribution,
        "checked"
    );
}
