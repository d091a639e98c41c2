//! Real routers in one process, as benchmarks and examples have them, too.

pub use peili::testing::nodes::*;
