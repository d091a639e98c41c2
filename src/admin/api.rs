//! `/debug/api/`: what a running Peili can tell, as JSON (docs/debug-api.md).

mod events;
mod find;
mod pull;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tracing::error;

use super::{Debug, MAX_TRIALS, view};
pub use find::{Asked as FindAsked, Found, Holder, Said};
pub use view::peers::Peers;

/// An image's name and a platform are shorter.
const MAX_BODY: usize = 4 << 10;

pub(super) fn routes() -> Router<Debug> {
    Router::new()
        .route("/debug/api/overview", get(overview))
        .route("/debug/api/peers", get(peers))
        .route("/debug/api/content", get(content))
        .route("/debug/api/flights", get(flights))
        .route("/debug/api/pulls", get(pulls))
        .route("/debug/api/events", get(events::listen))
        .route("/debug/api/find", post(find::answer))
        .route("/debug/api/pull", post(pull::answer))
}

async fn overview(State(debug): State<Debug>) -> Response {
    json(&view::overview::of(&debug).await)
}

async fn peers(State(debug): State<Debug>) -> Response {
    json(&view::peers::of(&debug).await)
}

async fn content(State(debug): State<Debug>, RawQuery(query): RawQuery) -> Response {
    let search = word(query.as_deref(), "q");
    json(&view::content::of(&debug, &search).await)
}

async fn flights(State(debug): State<Debug>) -> Response {
    json(&view::flights::of(&debug))
}

async fn pulls(State(debug): State<Debug>) -> Response {
    json(&view::pulls::of(&debug))
}

/// One value of a query; empty where there is none.
pub(super) fn word(query: Option<&str>, name: &str) -> String {
    let query = query.unwrap_or_default();
    let mut all = form_urlencoded::parse(query.as_bytes());
    let found = all.find(|(key, _)| key == name);
    found
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

pub(super) fn json(what: &impl Serialize) -> Response {
    match serde_json::to_vec(what) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(e) => {
            error!(error = %e, "an answer cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Serialize)]
struct Mistake {
    error: String,
}

fn refusal(status: StatusCode, error: impl ToString) -> Response {
    let error = error.to_string();
    (status, json(&Mistake { error })).into_response()
}

/// What a POST asks for.
fn asked<T: DeserializeOwned>(body: &Bytes) -> Result<T, Box<Response>> {
    let mistake = |status, error: String| Err(Box::new(refusal(status, error)));
    if body.len() > MAX_BODY {
        let error = format!("more than {MAX_BODY} bytes were sent");
        return mistake(StatusCode::PAYLOAD_TOO_LARGE, error);
    }
    serde_json::from_slice(body).or_else(|e| {
        let error = format!("this is not what is asked for: {e}");
        mistake(StatusCode::BAD_REQUEST, error)
    })
}

/// A place for something that costs traffic.
fn a_trial(debug: &Debug) -> Result<OwnedSemaphorePermit, Box<Response>> {
    debug.trials.clone().try_acquire_owned().map_err(|_| {
        Box::new(refusal(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MAX_TRIALS} lookups and pulls are being tried, as many as are allowed: try again when one has ended"),
        ))
    })
}
