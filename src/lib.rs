//! Peili, a stateless image mirror for Kubernetes nodes.
pub mod commands;
pub mod config;
pub mod hosts;
pub mod oci;
pub mod readiness;
pub mod routing;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
