//! Real routers in one process, as benchmarks and examples have them, too, and others beside them.

pub mod other;

pub use peili::testing::nodes::*;
