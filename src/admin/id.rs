//! Whom a node that knows nobody may call: what HTTP bootstrap asks for, in Spegel's words.
//!
//! Spegel's nodes name themselves alone. We name some neighbours, too: behind one address stand many nodes, and the one
//! that is asked may be the one that asks.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use futures::future::BoxFuture;
use serde::Serialize;
use tracing::error;

/// Who is there now, each with its addresses as `/ip4/10.0.0.1/tcp/5001`.
pub type Introduce = Arc<dyn Fn() -> BoxFuture<'static, Vec<Vec<String>>> + Send + Sync>;

/// `/id` and nothing else.
pub fn router(introduce: Introduce) -> Router {
    Router::new().route("/id", get(id)).with_state(introduce)
}

/// libp2p's AddrInfo. The id may be empty, and is: whoever answers at the address tells its own, and one that was
/// restarted under a new name is still found.
#[derive(Serialize)]
struct Entry {
    #[serde(rename = "ID")]
    id: &'static str,
    #[serde(rename = "Addrs")]
    addrs: Vec<String>,
}

async fn id(State(introduce): State<Introduce>) -> impl IntoResponse {
    let all = introduce().await;
    let entries: Vec<Entry> = all
        .into_iter()
        .map(|addrs| Entry { id: "", addrs })
        .collect();
    let body = serde_json::to_vec(&entries).unwrap_or_else(|e| {
        error!(error = %e, "peers cannot be written");
        b"[]".to_vec()
    });
    ([(header::CONTENT_TYPE, "application/json")], body)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn peers_are_named_as_spegel_names_them() {
        let introduce: Introduce = Arc::new(|| {
            Box::pin(async {
                let of = |text: &str| text.to_string();
                vec![
                    vec![of("/ip4/10.0.0.1/tcp/5001"), of("/ip6/fd00::1/tcp/5001")],
                    vec![of("/ip4/10.0.0.2/tcp/5001")],
                ]
            })
        });
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router(introduce.clone()).oneshot(request).await.unwrap()
        };

        let response = ask("/id").await;

        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            r#"[{"ID":"","Addrs":["/ip4/10.0.0.1/tcp/5001","/ip6/fd00::1/tcp/5001"]},{"ID":"","Addrs":["/ip4/10.0.0.2/tcp/5001"]}]"#
        );
        assert_eq!(ask("/metrics").await.status(), StatusCode::NOT_FOUND);
    }
}
