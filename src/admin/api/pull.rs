//! `POST /debug/api/pull`: an image through this node's own mirror, as containerd would; one line of JSON for each event.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;

use super::super::Debug;
use super::{a_trial, asked, refusal};
use crate::oci::ImageName;
use crate::try_pull::{self, Platform};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    image: String,
    /// This node's own where none is said.
    #[serde(default)]
    platform: String,
}

pub(super) async fn answer(State(debug): State<Debug>, body: Bytes) -> Response {
    let asked: Asked = match asked(&body) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let image: ImageName = match asked.image.trim().parse() {
        Ok(image) => image,
        Err(e) => {
            return refusal(
                StatusCode::BAD_REQUEST,
                format!("{e}: write it in full, such as docker.io/library/nginx:1.27"),
            );
        }
    };
    let platform = match asked.platform.trim() {
        "" => Ok(Platform::here()),
        text => text.parse(),
    };
    let Ok(platform) = platform else {
        return refusal(
            StatusCode::BAD_REQUEST,
            "this is no platform: write it as linux/amd64",
        );
    };
    let permit = match a_trial(&debug) {
        Ok(permit) => permit,
        Err(refusal) => return *refusal,
    };
    let events = try_pull::pull(debug.registry.clone(), image, platform);
    let lines = stream::unfold(
        (events, debug.drain.clone(), permit),
        |(mut events, drain, permit)| async move {
            let event = tokio::select! {
                () = drain.cancelled() => return None,
                event = events.recv() => event?,
            };
            let mut line = serde_json::to_vec(&event).ok()?;
            line.push(b'\n');
            Some((
                Ok::<_, Infallible>(Bytes::from(line)),
                (events, drain, permit),
            ))
        },
    );
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}
