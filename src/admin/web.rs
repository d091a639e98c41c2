//! `/debug/web/`: the same as the JSON, for people.
//!
//! Everything is made here, escaped by the templates' compiler, and everything that the page needs is in this program: it
//! works where there is no internet, and its policy allows nothing else. The script reads the page again when something
//! has changed and puts the sections that differ in their places.

mod drawing;
mod pages;

use askama::Template;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use tracing::error;

use super::api::word;
use super::{Debug, view};
use crate::try_pull::Platform;

const HTML: &str = "text/html; charset=utf-8";

pub(super) fn routes() -> Router<Debug> {
    let asset = |kind: &'static str, text: &'static str| {
        get(move || async move {
            let kind = (header::CONTENT_TYPE, HeaderValue::from_static(kind));
            // Another release has others at the same place.
            let cache: (HeaderName, _) =
                (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            ([kind, cache], text)
        })
    };
    let to_web = || get(|| async { Redirect::permanent("/debug/web/") });
    Router::new()
        .route("/debug", to_web())
        .route("/debug/", to_web())
        .route("/debug/web", to_web())
        .route("/debug/web/", get(overview))
        .route("/debug/web/cluster", get(cluster))
        .route("/debug/web/content", get(content))
        .route("/debug/web/flights", get(flights))
        .route("/debug/web/pulls", get(pulls))
        .route("/debug/web/try", get(try_pull))
        .route(
            "/debug/web/app.js",
            asset(
                "text/javascript; charset=utf-8",
                include_str!("web/assets/app.js"),
            ),
        )
        .route(
            "/debug/web/style.css",
            asset(
                "text/css; charset=utf-8",
                include_str!("web/assets/style.css"),
            ),
        )
        .route(
            "/debug/web/icon.svg",
            asset("image/svg+xml", include_str!("web/assets/icon.svg")),
        )
}

fn page(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => ([(header::CONTENT_TYPE, HTML)], text).into_response(),
        Err(e) => {
            error!(error = %e, "a page cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn overview(State(debug): State<Debug>) -> Response {
    page(&pages::Overview::of(
        &debug,
        view::overview::of(&debug).await,
    ))
}

async fn cluster(State(debug): State<Debug>) -> Response {
    page(&pages::Cluster::of(&debug, view::peers::of(&debug).await))
}

async fn content(State(debug): State<Debug>, RawQuery(query): RawQuery) -> Response {
    let search = word(query.as_deref(), "q");
    let content = view::content::of(&debug, &search).await;
    page(&pages::Content::of(&debug, content, search))
}

async fn flights(State(debug): State<Debug>) -> Response {
    page(&pages::Flights::of(&debug, view::flights::of(&debug)))
}

async fn pulls(State(debug): State<Debug>) -> Response {
    page(&pages::Pulls::of(&debug, view::pulls::of(&debug)))
}

async fn try_pull(State(debug): State<Debug>) -> Response {
    page(&pages::Try::of(&debug, Platform::here().to_string()))
}
