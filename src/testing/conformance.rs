//! One suite per seam: the contract of the trait, judged from outside.

pub mod content;
pub mod routing;
