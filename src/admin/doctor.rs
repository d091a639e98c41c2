//! `/debug/api/doctor`: how this node is, as it sees itself.
//!
//! GET costs nothing but a look around; POST has another node deliver a few bytes, too. Both are behind [`super::guard`].

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures::future::BoxFuture;
use serde_json::Value;

use super::api::json;

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
    json(&examine(Cost::Nothing).await)
}

async fn look_and_ask(State(examine): State<Examine>) -> Response {
    json(&examine(Cost::Traffic).await)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use http_body_util::BodyExt as _;
    use hyper::{Method, Request};
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;

    async fn asked(method: Method) -> (StatusCode, String) {
        let examine: Examine =
            Arc::new(|cost| Box::pin(async move { json!({ "costs": cost == Cost::Traffic }) }));
        let request = Request::builder().method(method).uri("/debug/api/doctor");
        let request = request.body(Body::empty()).unwrap();
        let response = router(examine).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn only_a_post_costs_anything() {
        let ok = |text: &str| (StatusCode::OK, text.to_string());

        assert_eq!(asked(Method::GET).await, ok(r#"{"costs":false}"#));
        assert_eq!(asked(Method::POST).await, ok(r#"{"costs":true}"#));
        let (status, _) = asked(Method::PUT).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
}
