//! The other listeners: what Prometheus asks, and what a node asks that knows nobody.

pub mod doctor;
pub mod id;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tracing::error;

use crate::metrics::Page;

/// All routes of the metrics port.
pub fn router(metrics: Page) -> Router {
    Router::new()
        .route("/metrics", get(page))
        .with_state(metrics)
}

/// What kind of request a path is of, for the metrics.
pub fn handler(path: &str) -> &'static str {
    match path {
        "/metrics" => "metrics",
        "/debug/api/doctor" => "doctor",
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
