//! Peili, a stateless image mirror for Kubernetes nodes.
pub mod hosts;
pub mod oci;
pub mod readiness;
pub mod routing;
pub mod shutdown;
#[cfg(feature = "testing")]
pub mod testing;
