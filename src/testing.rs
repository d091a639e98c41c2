//! Fakes of what is slow, privileged or random, and the conformance suites that they and the real things pass alike.

pub mod conformance;
pub mod router;
