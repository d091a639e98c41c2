//! `GET /debug/api/events`: what changes, as it changes (server-sent events).

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval};

use super::super::{Debug, MAX_LISTENERS, view};
use super::refusal;

/// What is under way is told this often, as long as something is.
const TICK: Duration = Duration::from_secs(1);

pub(super) async fn listen(State(debug): State<Debug>) -> Response {
    let Ok(permit) = debug.listeners.clone().try_acquire_owned() else {
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MAX_LISTENERS} pages listen, as many as are allowed: close some"),
        );
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listening = (debug.clone(), debug.recent.listen(), ticks, false, permit);
    let events = stream::unfold(
        listening,
        |(debug, mut ended, mut ticks, mut busy, permit)| async move {
            loop {
                let event = tokio::select! {
                    () = debug.drain.cancelled() => return None,
                    request = ended.recv() => match request {
                        Ok(request) => event("request", &*request),
                        // It was slower than what happens: it reads everything again.
                        Err(RecvError::Lagged(_)) => Ok(Event::default().event("missed").data("{}")),
                        Err(RecvError::Closed) => return None,
                    },
                    _ = ticks.tick() => {
                        let flights = view::flights::of(&debug);
                        let is_busy = !flights.is_empty();
                        // Once more when it has ended.
                        if !is_busy && !busy {
                            continue;
                        }
                        busy = is_busy;
                        event("flights", &flights)
                    }
                };
                // What cannot be written is left out.
                if let Ok(event) = event {
                    return Some((
                        Ok::<_, Infallible>(event),
                        (debug, ended, ticks, busy, permit),
                    ));
                }
            }
        },
    );
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

fn event(name: &str, what: &impl Serialize) -> serde_json::Result<Event> {
    let text = serde_json::to_string(what)?;
    Ok(Event::default().event(name).data(text))
}
