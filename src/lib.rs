//! Peili, a stateless image mirror for Kubernetes nodes.
pub mod advertise;
pub mod content;
pub mod metrics;
pub mod mirror;
pub mod oci;
pub mod readiness;
pub mod registry;
pub mod routing;
pub mod server;
pub mod shutdown;
#[cfg(feature = "testing")]
pub mod testing;
