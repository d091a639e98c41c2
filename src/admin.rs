//! The other listeners: what Prometheus asks, what a person asks who wants to see that it works, and what a node asks that
//! knows nobody.

pub mod api;
pub mod doctor;
mod guard;
pub mod id;
mod view;
mod web;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::advertise::Holdings;
use crate::content::ContentStore;
use crate::metrics::Page;
use crate::mirror::Mirror;
use crate::oci::filter::Filter;
use crate::readiness::Readiness;
use crate::recent::{Recent, Totals};
use crate::routing::{self, Neighbour, Peer};
use crate::try_pull;
pub use guard::Names;

/// Pages that are open at once; each holds a connection.
const MAX_LISTENERS: usize = 32;
/// Lookups and pulls that are tried at once: they cost the cluster something.
const MAX_TRIALS: usize = 4;

/// Who is known now.
pub type Neighbours = Arc<dyn Fn() -> BoxFuture<'static, Vec<Neighbour>> + Send + Sync>;

/// How the numbers stand.
pub type Tally = Arc<dyn Fn() -> Totals + Send + Sync>;

/// What the debug page and its JSON are made from. Cloneable.
#[derive(Clone)]
pub struct Debug {
    parts: Arc<Parts>,
    manifests: view::Manifests,
    listeners: Arc<Semaphore>,
    trials: Arc<Semaphore>,
}

/// What only the process knows.
pub struct Parts {
    pub me: Peer,
    pub recent: Recent,
    pub totals: Tally,
    pub neighbours: Neighbours,
    pub router: Arc<dyn routing::Router>,
    pub store: Arc<dyn ContentStore>,
    pub mirror: Mirror,
    pub holdings: Holdings,
    pub filter: Arc<Filter>,
    pub readiness: Readiness,
    /// This node's own, as its containerd asks it.
    pub registry: try_pull::Registry,
    /// What this pod is called.
    pub names: Names,
    /// Looks at this node; None: nobody can.
    pub doctor: Option<doctor::Examine>,
    /// Who listens is told to go then.
    pub drain: CancellationToken,
}

impl Debug {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
            manifests: view::Manifests::default(),
            listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
            trials: Arc::new(Semaphore::new(MAX_TRIALS)),
        }
    }
}

impl Deref for Debug {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// All routes of the metrics port. None: there is no debug page, and `/debug` is 404.
pub fn router(metrics: Page, debug: Option<Debug>) -> Router {
    let routes = Router::new()
        .route("/metrics", get(page))
        .with_state(metrics);
    let Some(debug) = debug else {
        return routes;
    };
    let names = debug.names.clone();
    let doctor = debug.doctor.clone().map(doctor::router).unwrap_or_default();
    let pages = api::routes().merge(web::routes()).with_state(debug);
    let pages = pages.merge(doctor);
    routes.merge(pages.layer(middleware::from_fn_with_state(names, guard::guard)))
}

/// What kind of request a path is of, for the metrics.
pub fn handler(path: &str) -> &'static str {
    match path {
        "/metrics" => "metrics",
        _ if path == "/debug" || path.starts_with("/debug/") => "debug",
        _ => "other",
    }
}

async fn page(State(metrics): State<Page>) -> Response {
    match metrics.text() {
        Ok(page) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(e) => {
            error!(error = %e, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
