//! `/debug/api/doctor`: how this node is, as it sees itself.
//!
//! GET costs nothing but a look around; POST has another node deliver a few bytes, too.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use serde_json::Value;
use tracing::error;

/// What may be spent on an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    Nothing,
    /// A few bytes of another node's.
    Traffic,
}

/// Looks at everything: `{"verdict":…,"distribution":…,"findings":[…],"live":{…}}`.
pub type Examine = Arc<dyn Fn(Cost) -> BoxFuture<'static, Value> + Send + Sync>;

/// `/debug/api/doctor` and nothing else.
pub fn router(examine: Examine) -> Router {
    Router::new()
        .route("/debug/api/doctor", get(look).post(look_and_ask))
        .with_state(examine)
}

async fn look(State(examine): State<Examine>) -> Response {
    answer(examine(Cost::Nothing).await)
}

async fn look_and_ask(State(examine): State<Examine>, headers: HeaderMap) -> Response {
    // The one place that keeps another site's page from having this done by a browser.
    if is_cross_site(&headers) {
        return (StatusCode::FORBIDDEN, "asked for by another site's page\n").into_response();
    }
    answer(examine(Cost::Traffic).await)
}

/// Browsers say where a POST comes from: in Sec-Fetch-Site (Fetch Metadata), and in Origin. Who says neither is no browser.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let host = text(header::HOST.as_str()).unwrap_or("");
            let (_, of) = origin.split_once("://").unwrap_or_default();
            host.is_empty() || of != host
        }
        (None, None) => false,
    }
}

fn answer(said: Value) -> Response {
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    match serde_json::to_vec(&said) {
        Ok(body) => (head, body).into_response(),
        Err(e) => {
            error!(error = %e, "findings cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use hyper::{Method, Request};
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;

    async fn asked(method: Method, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let examine: Examine =
            Arc::new(|cost| Box::pin(async move { json!({ "costs": cost == Cost::Traffic }) }));
        let mut request = Request::builder().method(method).uri("/debug/api/doctor");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = router(examine).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn only_a_post_costs_anything() {
        let ok = |text: &str| (StatusCode::OK, text.to_string());

        assert_eq!(asked(Method::GET, &[]).await, ok(r#"{"costs":false}"#));
        assert_eq!(asked(Method::POST, &[]).await, ok(r#"{"costs":true}"#));
        let (status, _) = asked(Method::PUT, &[]).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn another_sites_page_cannot_have_it_done() {
        let host = ("host", "127.0.0.1:9090");
        for (headers, expected) in [
            (vec![host, ("sec-fetch-site", "same-origin")], 200),
            (vec![host, ("sec-fetch-site", "none")], 200),
            (vec![host, ("sec-fetch-site", "cross-site")], 403),
            (vec![host, ("sec-fetch-site", "same-site")], 403),
            (vec![host, ("origin", "http://127.0.0.1:9090")], 200),
            (vec![host, ("origin", "http://evil.example")], 403),
            (vec![host, ("origin", "null")], 403),
            (vec![host, ("origin", "")], 403),
        ] {
            let (status, _) = asked(Method::POST, &headers).await;
            assert_eq!(status, expected, "{headers:?}");
        }
    }
}
