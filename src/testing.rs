//! Fakes of what is slow, privileged or random, and the conformance suites that they and the real things pass alike.
//!
//! Only with the feature `testing`. What stands here panics where a test should fail.

pub mod conformance;
pub mod content;
pub mod counted;
pub mod fetch;
pub mod fuzz;
pub mod ingest;
pub mod measure;
pub mod memory;
pub mod nodes;
pub mod peer;
pub mod raw_http;
pub mod registry;
pub mod router;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Waits until `condition` gives something, and returns that. Panics with `what` after `limit`.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A new file of these bytes, on the disk alone. Not below /tmp: a tmpfs does not say what is in memory, for all of it is.
pub fn cold_file(bytes: &[u8]) -> std::fs::File {
    use std::os::unix::fs::FileExt as _;
    let file = tempfile::tempfile_in("/var/tmp").expect("a file below /var/tmp");
    file.write_all_at(bytes, 0).expect("room");
    cool(&file);
    file
}

/// From now on its bytes are on the disk alone.
pub fn cool(file: &std::fs::File) {
    file.sync_all().expect("written");
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("a file on a disk");
}

/// Bytes that no compression shortens and no two seeds share.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
