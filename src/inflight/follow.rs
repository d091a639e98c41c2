//! The bytes of a download as they are written, or before that where they pass through this node (`passing`).
//!
//! A download that begins anew after a failure is cut for its readers as soon as less is there than they have. One
//! that has grown past them again within a look's time is not noticed: what they get are bytes of the same layer all
//! the same, and their containerd checks the digest.

use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Ingest, POLL};
use crate::regular_file;
use crate::server::sendfile::{FileSender, Window};

/// As much at once as of a complete blob: larger reads are no more than a tenth faster and take memory for each body.
const CHUNK: u64 = 256 << 10;
/// Without growth, nobody writes any more: containerd itself would be waiting for a registry that says nothing. Readers
/// have less patience; this is for those who have none of their own.
const STALLED: Duration = Duration::from_secs(20);

/// One who reads.
struct Reader {
    ingest: Ingest,
    /// What is still to be read.
    range: Range<u64>,
    /// What is written of it, for a connection that can send parts of files.
    window: Option<Window>,
    /// The longest that the file has been.
    longest: u64,
    /// Tells of bytes on their way to the file, which are kept as long as somebody is told.
    passing: watch::Receiver<u64>,
}

impl Ingest {
    /// The bytes of `range`, in order, each when it is there, and not more. Ends with an error where they will not come:
    /// when the download was given up or began anew, at once (after what is there of it), and when it has not grown for
    /// 20 s.
    pub fn follow(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        self.send(range, &FileSender::default())
    }

    /// The same for a connection that can send parts of files: what is written and in the page cache is not read.
    pub fn send(
        &self,
        range: Range<u64>,
        sender: &FileSender,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        sender.begins(range.end.saturating_sub(range.start));
        let reader = Reader {
            ingest: self.clone(),
            range,
            window: sender.window(&self.data, self.total()),
            longest: 0,
            passing: self.tail.subscribe(),
        };
        stream::try_unfold(reader, move |mut reader| async move {
            let chunk = reader.next().await?;
            Ok(chunk.map(|chunk| (chunk, reader)))
        })
        .boxed()
    }

    async fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let chunk = regular_file::read_at(&self.data, offset, length).await?;
        if chunk.is_empty() {
            return Err(ended("the download began anew", offset));
        }
        Ok(chunk)
    }
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let (offset, most) = (
            self.range.start,
            (self.range.end - self.range.start).min(CHUNK),
        );
        let began = Instant::now();
        let chunk = loop {
            self.passing.mark_unchanged();
            if let Some(chunk) = self.ingest.tail.get(offset, most) {
                break chunk;
            }
            // Whether it is given up, before how much there is: the last bytes may have been written in between.
            let is_abandoned = self.ingest.is_abandoned()?;
            let written = self.ingest.written()?;
            if written < self.longest {
                return Err(ended("the download began anew", written));
            }
            self.longest = written;
            if written > offset {
                let length = (written - offset).min(most);
                let window = self.window.as_ref();
                if let Some(chunk) = window.and_then(|it| it.cached(offset..offset + length)) {
                    break chunk;
                }
                break self.ingest.read(offset, length as usize).await?;
            }
            if is_abandoned {
                return Err(ended("the download was given up", written));
            }
            if began.elapsed() >= STALLED {
                return Err(ended("the download has not grown for long", written));
            }
            // Where nothing passes any more, the file tells.
            let _ = timeout(POLL, self.passing.changed()).await;
        };
        self.range.start += chunk.len() as u64;
        Ok(Some(chunk))
    }
}

fn ended(why: &str, at: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("{why}, with {at} bytes there"),
    )
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use tokio::time::timeout;

    use super::*;
    use crate::inflight::{ContentRoot, Inflight, Passing};
    use crate::oci::Digest;
    use crate::testing::ingest::{FakeIngest, FakeIngests};
    use crate::testing::noise;

    const ROOM: Duration = Duration::from_secs(10);

    async fn begun(layer: &[u8]) -> (FakeIngests, FakeIngest, Ingest) {
        let (ingests, fake, ingest, _) = passing(layer).await;
        (ingests, fake, ingest)
    }

    /// A download whose bytes pass through this node.
    async fn passing(layer: &[u8]) -> (FakeIngests, FakeIngest, Ingest, Passing) {
        let ingests = FakeIngests::new();
        let digest = Digest::sha256(layer);
        let fake = ingests.begin("layer", &digest, layer.len() as u64);
        let root = ContentRoot::known(ingests.root().to_owned());
        let inflight = Inflight::new(root, "k8s.io".into());
        let ingest = inflight.find(&digest).await.unwrap().unwrap();
        (ingests, fake, ingest, inflight.passing(&digest))
    }

    /// What comes until the end or the error, and the error.
    async fn all(body: BoxStream<'static, io::Result<Bytes>>) -> (Vec<u8>, Option<String>) {
        let mut bytes = Vec::new();
        let ended = timeout(
            ROOM,
            body.try_for_each(|chunk| {
                bytes.extend_from_slice(&chunk);
                std::future::ready(Ok(()))
            }),
        );
        let ended = ended.await.expect("an end");
        (bytes, ended.err().map(|e| e.to_string()))
    }

    #[tokio::test]
    async fn readers_get_each_byte_when_it_is_there_and_the_commit_does_not_disturb_them() {
        let layer = noise(3 << 20, 1);
        let (_ingests, mut fake, ingest) = begun(&layer).await;
        fake.write(&layer[..1 << 20]);
        let mut body = ingest.follow(0..layer.len() as u64);
        let mut got = Vec::new();
        while got.len() < 1 << 20 {
            got.extend(body.try_next().await.unwrap().unwrap());
        }
        assert!(got == layer[..1 << 20]);
        assert!(timeout(POLL * 3, body.next()).await.is_err(), "and no more");

        fake.write(&layer[1 << 20..]);
        let blob = fake.commit();
        // The garbage collector takes what no image names.
        std::fs::remove_file(blob).unwrap();

        let (rest, error) = all(body).await;
        assert_eq!(error, None);
        got.extend(rest);
        assert!(got == layer);
    }

    #[tokio::test]
    async fn a_range_ends_where_it_ends() {
        let layer = noise(1 << 20, 2);
        let (_ingests, mut fake, ingest) = begun(&layer).await;
        fake.write(&layer[..900_000]);

        let (part, error) = all(ingest.follow(5..700_000)).await;
        assert_eq!(error, None);
        assert!(part == layer[5..700_000]);
        assert_eq!(all(ingest.follow(7..7)).await, (vec![], None));

        let later = tokio::spawn(all(ingest.follow(900_000..1_000_000)));
        fake.write(&layer[900_000..]);
        let (part, error) = later.await.unwrap();
        assert_eq!(error, None);
        assert!(part == layer[900_000..1_000_000]);
    }

    #[tokio::test]
    async fn what_was_given_up_or_began_anew_ends_its_readers() {
        let layer = noise(100_000, 3);
        for anew in [false, true] {
            let (_ingests, mut fake, ingest) = begun(&layer).await;
            fake.write(&layer[..60_000]);
            let mut body = ingest.follow(0..100_000);
            assert!(body.try_next().await.unwrap().unwrap() == layer[..60_000]);

            let why = if anew {
                fake.truncate(0);
                fake.write(&layer[..100]);
                "began anew"
            } else {
                fake.write(&layer[60_000..70_000]);
                fake.abort();
                "given up"
            };

            let (rest, error) = all(body).await;
            let error = error.unwrap();
            assert!(error.contains(why), "{error}");
            let expected = if anew { 60_000..60_000 } else { 60_000..70_000 };
            assert!(rest == layer[expected], "no wrong byte");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_writes_any_more_ends_its_readers_later() {
        let layer = noise(1000, 4);
        let (_ingests, mut fake, ingest) = begun(&layer).await;
        fake.write(&layer[..10]);
        let mut body = ingest.follow(0..1000);
        assert_eq!(body.try_next().await.unwrap().unwrap().len(), 10);
        let began = Instant::now();

        assert!(body.try_next().await.is_err());

        assert!(began.elapsed() >= STALLED, "{:?}", began.elapsed());
        assert!(began.elapsed() < STALLED * 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn who_does_not_read_takes_no_memory() {
        let layer = noise(8 << 20, 5);
        let (_ingests, mut fake, ingest) = begun(&layer).await;
        fake.write(&layer[..4 << 20]);
        let mut body = ingest.follow(0..layer.len() as u64);

        let first = body.try_next().await.unwrap().unwrap();

        assert_eq!(first.len() as u64, CHUNK, "one chunk is read for one taken");
        // Nothing was read ahead: what is written over now is what comes.
        fake.write_at(CHUNK, &[7; CHUNK as usize]);
        let second = body.try_next().await.unwrap().unwrap();
        assert!(second.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn what_passes_is_read_before_it_is_in_the_file_and_what_is_older_from_there() {
        let layer = noise(3 << 20, 6);
        let (_ingests, mut fake, ingest, passing) = passing(&layer).await;
        fake.write(&layer[..1 << 20]);
        let mut body = ingest.follow(0..layer.len() as u64);
        let mut got = Vec::new();
        while got.len() < 1 << 20 {
            got.extend(body.try_next().await.unwrap().unwrap());
        }

        for offset in [1 << 20, 3 << 19] {
            passing.push(offset as u64, &layer[offset..offset + (1 << 19)]);
            while got.len() < offset + (1 << 19) {
                got.extend(body.try_next().await.unwrap().unwrap());
            }
        }
        assert_eq!(ingest.available().unwrap(), 2 << 20);
        assert_eq!(ingest.written().unwrap(), 1 << 20);
        // Who comes later needs what is in the file, and the rest.
        let (late, error) = all(ingest.follow(5..2 << 20)).await;
        assert_eq!(error, None);
        assert!(late == layer[5..2 << 20]);

        // The rest comes from elsewhere.
        drop(passing);
        fake.write(&layer[1 << 20..]);
        fake.commit();
        let (rest, error) = all(body).await;
        assert_eq!(error, None);
        got.extend(rest);
        assert!(got == layer);
    }

    #[tokio::test]
    async fn a_reader_that_is_ahead_of_the_file_ends_with_the_download() {
        let layer = noise(100_000, 7);
        let (_ingests, mut fake, ingest, passing) = passing(&layer).await;
        fake.write(&layer[..1000]);
        let mut body = ingest.follow(0..100_000);
        assert_eq!(body.try_next().await.unwrap().unwrap().len(), 1000);
        passing.push(1000, &layer[1000..60_000]);
        assert_eq!(body.try_next().await.unwrap().unwrap().len(), 59_000);
        fake.write(&layer[1000..2000]);

        drop(passing);
        fake.abort();

        let error = body.try_next().await.unwrap_err().to_string();
        assert!(error.contains("given up"), "{error}");
    }
}
