//! The bytes of a blob's file on their way to a connection: what is in memory as it is, the rest from the disk, and of that
//! no more ahead of the connection than there is room for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};

use super::shorter_than_it_was;
use crate::regular_file;
use crate::server::sendfile::{FileSender, Window};

/// Bytes read at once. Two of these are in memory for each body under way: with 64 uploads 256 KiB take 40 MiB, 1 MiB
/// takes 105 and is no more than a tenth faster (measured; docs/performance.md). 64 KiB halves the throughput. With more than
/// 32 bodies it is what each has of the page cache, which is less.
pub(super) const CHUNK: u64 = 256 << 10;

/// A body under way.
struct Sending {
    file: Arc<File>,
    sender: FileSender,
    window: Option<Window>,
    /// What is still to be sent.
    range: Range<u64>,
    /// Up to where the kernel was told to read, once something was not in memory.
    told: Option<u64>,
}

/// The bytes of `range` of a file of `size` bytes, in order, for the connection of `sender`.
pub(super) fn send(
    file: &Arc<File>,
    size: u64,
    range: Range<u64>,
    sender: &FileSender,
) -> BoxStream<'static, io::Result<Bytes>> {
    sender.begins(range.end.saturating_sub(range.start));
    let sending = Sending {
        file: Arc::clone(file),
        sender: sender.clone(),
        window: sender.window(file, size),
        range,
        told: None,
    };
    stream::try_unfold(sending, |mut sending| async move {
        let chunk = sending.next().await?;
        Ok(chunk.map(|chunk| (chunk, sending)))
    })
    .boxed()
}

impl Sending {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let at_once = self.sender.at_once();
        let in_memory = match self.told {
            None => self.sender.at_once_in_memory(),
            Some(_) => at_once,
        };
        let chunk = match self.cached(in_memory) {
            Some(chunk) => chunk,
            None => self.read(at_once).await?,
        };
        self.range.start += chunk.len() as u64;
        self.read_ahead(self.range.start, at_once);
        Ok(Some(chunk))
    }

    /// Taken out of the page cache by the connection itself: no memory is taken for it, and what is counted as sent is ahead
    /// of the socket by one of these.
    fn cached(&self, at_once: u64) -> Option<Bytes> {
        let window = self.window.as_ref()?;
        match window.cached(self.part(at_once)) {
            None if at_once > CHUNK => window.cached(self.part(CHUNK)),
            found => found,
        }
    }

    /// Where the connection cannot take it.
    async fn read(&mut self, at_once: u64) -> io::Result<Bytes> {
        let part = self.part(CHUNK.min(at_once));
        let length = (part.end - part.start) as usize;
        // A window has been asked for it.
        if self.window.is_none() {
            let mut chunk = vec![0; length];
            if regular_file::read_cached(&self.file, part.start, &mut chunk) {
                return Ok(chunk.into());
            }
        }
        if self.told.is_none() {
            regular_file::read_nothing_ahead(&self.file);
            self.told = Some(part.end);
            self.read_ahead(part.end, at_once);
        }
        let chunk = regular_file::read_in_turn(&self.file, part.start, length).await?;
        match chunk.is_empty() {
            true => Err(shorter_than_it_was(part.start)),
            false => Ok(chunk),
        }
    }

    /// So much beyond `from`, where anything was not in memory; not a little at a time.
    fn read_ahead(&mut self, from: u64, at_once: u64) {
        let Some(told) = self.told else { return };
        let end = self.range.end;
        let wanted = told.max(from)..end.min(from + at_once);
        let length = wanted.end.saturating_sub(wanted.start);
        let is_rest = wanted.end == end && length > 0;
        if (is_rest || length >= CHUNK.max(at_once / 2).min(at_once))
            && regular_file::read_ahead(&self.file, wanted.clone())
        {
            self.told = Some(wanted.end);
        }
    }

    /// The first of what is to be sent.
    fn part(&self, length: u64) -> Range<u64> {
        self.range.start..self.range.end.min(self.range.start + length)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::time::Duration;

    use futures::{FutureExt as _, TryStreamExt as _};

    use super::*;
    use crate::testing::{cold_file, cool, eventually, noise};

    const SIZE: u64 = 16 << 20;
    const ROOM: Duration = Duration::from_secs(10);

    fn cold(bytes: &[u8]) -> Arc<File> {
        Arc::new(cold_file(bytes))
    }

    fn is_in_memory(file: &File, at: u64) -> bool {
        regular_file::read_cached(file, at, &mut [0])
    }

    #[tokio::test]
    async fn what_is_on_the_disk_is_read_ahead_of_the_connection_and_not_far() {
        let bytes = noise(SIZE as usize, 1);
        let file = cold(&bytes);
        let sender = FileSender::default();
        let far = CHUNK + sender.at_once();
        let mut body = send(&file, SIZE, 0..SIZE, &sender);

        let first = body.try_next().await.unwrap().unwrap();

        assert!(first == bytes[..CHUNK as usize]);
        let is_read = async || is_in_memory(&file, far - 1).then_some(());
        eventually("what is to be read ahead", ROOM, is_read).await;
        let beyond = (far + CHUNK..SIZE).step_by(64 << 10);
        let asked = beyond.clone().count();
        let read = beyond.filter(|at| is_in_memory(&file, *at)).count();
        // A kernel begins to read what it is asked for, and a disk may have brought it before it looks once more.
        assert!(read < asked / 10, "{read} of {asked}");

        let rest: Vec<Bytes> = body.try_collect().await.unwrap();
        assert!(rest.concat() == bytes[CHUNK as usize..]);
    }

    #[tokio::test]
    async fn of_what_is_in_memory_nothing_is_read_ahead() {
        let bytes = noise(SIZE as usize, 2);
        let file = cold(&bytes);
        let wanted = 5_u64..3 << 20;
        file.read_exact_at(&mut vec![0; 4 << 20], 0).unwrap();

        let mut told = Vec::new();
        for _ in 0..10 {
            let mut sending = Sending {
                window: None,
                sender: FileSender::default(),
                range: wanted.clone(),
                told: None,
                file: Arc::clone(&file),
            };
            let mut sent = Vec::new();
            while let Some(chunk) = sending.next().await.unwrap() {
                sent.extend_from_slice(&chunk);
            }
            assert!(sent == bytes[wanted.start as usize..wanted.end as usize]);
            told.push(sending.told);
        }

        // A page that the kernel has in its hands at that moment counts as on the disk.
        assert!(
            told.iter().filter(|told| told.is_none()).count() > 5,
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn who_waits_for_the_disk_gets_its_turn() {
        const BODIES: usize = 100;
        let bytes = noise(1 << 20, 4);
        let file = cold(&bytes);
        let begin = || send(&file, 1 << 20, 0..1 << 20, &FileSender::default());
        // As many are given up in the middle of a read.
        for mut body in (0..BODIES).map(|_| begin()) {
            let _ = body.next().now_or_never();
        }
        cool(&file);

        let all = (0..BODIES).map(|_| begin().try_collect::<Vec<Bytes>>());
        let all = futures::future::try_join_all(all);

        for body in tokio::time::timeout(ROOM, all).await.unwrap().unwrap() {
            assert!(body.concat() == bytes);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_was_ends_with_an_error() {
        let bytes = noise(1 << 20, 3);
        let file = cold(&bytes);
        let body = send(&file, SIZE, 0..SIZE, &FileSender::default());

        let sent: Result<Vec<Bytes>, _> = body.try_collect().await;

        let error = sent.expect_err("it is shorter");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
