//! How a part makes its metrics: a struct of its own, registered into the registry that it is handed.
//!
//! A name that is registered twice or is not well formed is a mistake in this program, and is found by its first start.

mod kept;
mod page;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

pub use kept::Kept;
pub use page::{OpenMetrics, Page, PageError};

pub fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

pub fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

/// A gauge of what nobody is told when it changes: it is looked up when somebody asks.
pub fn looked_up(
    registry: &Registry,
    name: &str,
    help: &str,
    look: impl Fn() -> i64 + Clone + Send + Sync + 'static,
) {
    let gauge = IntGauge::new(name, help);
    register(registry, gauge.map(|gauge| LookedUp { gauge, look }));
}

#[derive(Clone)]
struct LookedUp<F> {
    gauge: IntGauge,
    look: F,
}

impl<F: Fn() -> i64 + Send + Sync> Collector for LookedUp<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.look)());
        self.gauge.collect()
    }
}

/// Buckets for requests to the end of their bodies, in seconds: from what is in memory to a layer over a slow link.
pub const REQUEST_SECONDS: &[f64] = &[
    0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 60.0, 300.0,
];

/// `buckets` are upper bounds, in the unit that the name ends with.
pub fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(options, labels))
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("metric names and labels are well formed");
    registry
        .register(Box::new(collector.clone()))
        .expect("metric names are registered once");
    collector
}
