//! What is read to its end, and looked at, before a byte of it is handed on.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::attempt::PeerError;
use super::body::Source;
use super::search::Delivery;
use crate::oci::Key;
use crate::oci::distribution::MAX_MANIFEST;

/// What is no longer than this is read whole and compared with its digest before its first byte is handed on: a config, a
/// small layer. A peer that takes longer for it than for a first byte would be left in mid-body, too (`body`).
const CHECKED: u64 = 64 << 10;

/// What is read whole has this long from its first byte on: with as much again for whoever is asked next within the time for
/// a first byte. Kilobytes take milliseconds, and who brings them one by one is no use.
pub(super) const WHOLE: Duration = Duration::from_secs(1);

/// Refuses what containerd would refuse, as long as another may be asked: its pull fails with a wrong length or a wrong
/// byte, and asks nobody else.
pub(super) async fn checked(
    source: &mut Source,
    key: &Key,
    length: Option<u64>,
    deadline: Instant,
) -> Result<(), PeerError> {
    if let Some(expected) = length {
        self::length(source, expected)?;
    }
    let answer = &source.delivery.answer;
    let (span, total) = (answer.span, answer.total);
    let is_whole = span.len() == total && source.growing.is_none();
    if let Key::Content(digest) = key
        && is_whole
        && total <= CHECKED
    {
        let deadline = deadline.min(Instant::now() + WHOLE);
        let bytes = whole(&mut source.delivery, deadline).await?;
        if !digest.verifies(&bytes) {
            return Err(PeerError::Wrong("what has another digest".into()));
        }
        source.delivery.answer.put_back(bytes);
    }
    Ok(())
}

/// Refuses what is of another length, in bytes.
pub(super) fn length(source: &Source, expected: u64) -> Result<(), PeerError> {
    let total = source.delivery.answer.total;
    if total != expected {
        let why = format!("a length of {total}, not {expected}");
        return Err(PeerError::Wrong(why));
    }
    Ok(())
}

pub(super) fn not_it() -> PeerError {
    PeerError::Wrong("what is not the manifest".into())
}

/// Reads a manifest to its end, in bounded time and memory.
pub(super) async fn whole(delivery: &mut Delivery, deadline: Instant) -> Result<Bytes, PeerError> {
    let total = delivery.answer.total;
    if total > MAX_MANIFEST {
        return Err(PeerError::Wrong(format!("a manifest of {total} bytes")));
    }
    let patience = deadline.saturating_duration_since(Instant::now());
    let mut bytes = Vec::with_capacity(total as usize);
    let read = async {
        while let Some(chunk) = delivery.answer.next().await? {
            if chunk.len() as u64 > total - bytes.len() as u64 {
                return Err(PeerError::Wrong(format!("more than {total} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(())
    };
    tokio::time::timeout_at(deadline, read)
        .await
        .unwrap_or(Err(PeerError::Silent(patience)))?;
    if bytes.len() as u64 != total {
        let length = bytes.len();
        return Err(PeerError::Wrong(format!("{length} of {total} bytes")));
    }
    Ok(bytes.into())
}
