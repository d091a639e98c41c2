//! HTTP as it is measured at the door: how long requests took, to the end of their bodies, how much was sent, and how many
//! are under way.
//!
//! Labels are of few values, whatever is asked: a name for each kind of path, the two methods that are served, and the
//! status codes that we send.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus::{HistogramVec, IntGauge, IntGaugeVec, Registry};
use tokio::time::Instant;

use crate::metrics;

#[derive(Clone, Debug)]
pub struct Metrics {
    duration: HistogramVec,
    size: HistogramVec,
    under_way: IntGaugeVec,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        Self {
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
        }
    }

    /// The same routes, measured. `handler` names the kind of a path, out of few.
    pub fn measure(self, router: Router, handler: fn(&str) -> &'static str) -> Router {
        router.layer(middleware::from_fn(move |request: Request, next: Next| {
            let measure = Measure::begin(&self, handler(request.uri().path()), request.method());
            async move { measure.with_body(next.run(request).await) }
        }))
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
    under_way: IntGauge,
    metrics: Metrics,
}

impl Measure {
    fn begin(metrics: &Metrics, handler: &'static str, method: &Method) -> Self {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        let under_way = metrics.under_way.with_label_values(&[handler, method]);
        under_way.inc();
        Self {
            began: Instant::now(),
            handler,
            method,
            code: None,
            bytes: 0,
            under_way,
            metrics: metrics.clone(),
        }
    }

    fn with_body(mut self, response: Response) -> Response {
        self.code = Some(response.status());
        response.map(|body| {
            Body::new(Measured {
                body,
                measure: self,
            })
        })
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        self.under_way.dec();
        let Some(code) = self.code else {
            return;
        };
        let labels = [self.handler, self.method, code.as_str()];
        let duration = self.metrics.duration.with_label_values(&labels);
        duration.observe(self.began.elapsed().as_secs_f64());
        let size = self.metrics.size.with_label_values(&labels);
        size.observe(self.bytes as f64);
    }
}

/// The same body, counted.
struct Measured {
    body: Body,
    measure: Measure,
}

impl HttpBody for Measured {
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
