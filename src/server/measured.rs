//! HTTP as it is measured at the door: how long requests took, to the end of their bodies, how much was sent, and how many
//! are under way.
//!
//! Labels are of few values, whatever is asked: a name for each kind of path, the two methods that are served, and the
//! status codes that we send.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use hyper::body::{Frame, SizeHint};
use prometheus::{Histogram, HistogramVec, IntGauge, IntGaugeVec, Registry};
use tokio::time::Instant;

use super::Answers;
use crate::metrics::{self, Kept};

/// Cloneable; all clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    duration: HistogramVec,
    size: HistogramVec,
    under_way: IntGaugeVec,
    /// By handler, method and status code: duration and size.
    ended: Kept<(&'static str, &'static str, StatusCode), (Histogram, Histogram)>,
    /// By handler and method.
    begun: Kept<(&'static str, &'static str), IntGauge>,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        Self(Arc::new(Inner {
            duration: metrics::histograms(
                registry,
                "peili_http_request_duration_seconds",
                "Time from a request's head to the end of the response's body, by handler, method and status code.",
                &["handler", "method", "code"],
                metrics::REQUEST_SECONDS,
            ),
            size: metrics::histograms(
                registry,
                "peili_http_response_size_bytes",
                "Bytes of response bodies that were sent, by handler, method and status code.",
                &["handler", "method", "code"],
                // 1 KiB to 1 GiB: an error, a manifest, a configuration, layers.
                &[0, 2, 4, 6, 8, 10].map(|n| f64::from(1024 * 4_u32.pow(n))),
            ),
            under_way: metrics::gauges(
                registry,
                "peili_http_requests_in_flight",
                "Requests whose response has not ended yet, by handler and method.",
                &["handler", "method"],
            ),
            ended: Kept::default(),
            begun: Kept::default(),
        }))
    }

    /// The same routes, measured. `handler` names the kind of a path, out of few.
    pub fn measure<A: Answers>(self, routes: A, handler: fn(&str) -> &'static str) -> Measured<A> {
        Measured {
            routes,
            handler,
            metrics: self,
        }
    }

    fn under_way(&self, handler: &'static str, method: &'static str) -> &IntGauge {
        let all = &self.0.under_way;
        let make = || all.with_label_values(&[handler, method]);
        self.0.begun.get((handler, method), make)
    }
}

/// Routes that are measured.
#[derive(Clone)]
pub struct Measured<A> {
    routes: A,
    handler: fn(&str) -> &'static str,
    metrics: Metrics,
}

impl<A: Answers> Answers for Measured<A> {
    fn answer(self, request: Request) -> impl Future<Output = Response> + Send + 'static {
        let handler = (self.handler)(request.uri().path());
        let measure = Measure::begin(self.metrics, handler, request.method());
        let answer = self.routes.answer(request);
        answer.map(|response| measure.with_body(response))
    }
}

/// One request under way. Told when dropped.
struct Measure {
    began: Instant,
    handler: &'static str,
    method: &'static str,
    /// None: it ended before there was a response.
    code: Option<StatusCode>,
    bytes: u64,
    metrics: Metrics,
}

impl Measure {
    fn begin(metrics: Metrics, handler: &'static str, method: &Method) -> Self {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        metrics.under_way(handler, method).inc();
        Self {
            began: Instant::now(),
            handler,
            method,
            code: None,
            bytes: 0,
            metrics,
        }
    }

    fn with_body(mut self, response: Response) -> Response {
        self.code = Some(response.status());
        response.map(|body| {
            Body::new(MeasuredBody {
                body,
                measure: self,
            })
        })
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.metrics.under_way(self.handler, self.method).dec();
        let Some(code) = self.code else {
            return;
        };
        let metrics = &*self.metrics.0;
        let labels = (self.handler, self.method, code);
        let (duration, size) = metrics.ended.get(labels, || {
            let labels = [self.handler, self.method, code.as_str()];
            (
                metrics.duration.with_label_values(&labels),
                metrics.size.with_label_values(&labels),
            )
        });
        duration.observe(self.began.elapsed().as_secs_f64());
        size.observe(self.bytes as f64);
    }
}

/// The same body, counted.
struct MeasuredBody {
    body: Body,
    measure: Measure,
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.measure.bytes += bytes as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
