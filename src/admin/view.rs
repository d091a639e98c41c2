//! What is shown: small copies of what the parts know, for the page and for its JSON alike, so that both say the same.

pub mod content;
pub mod flights;
pub mod overview;
pub mod peers;
pub mod pulls;
pub mod words;

pub use content::Manifests;
