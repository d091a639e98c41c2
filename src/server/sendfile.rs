//! Parts of files that go from the page cache to the socket without passing through this process: sendfile(2) below hyper.
//!
//! hyper knows bytes in memory, and hands those of a body to the connection's IO as it got them (its vectored strategy, for
//! an IO that says `is_write_vectored`). A [`Window`] makes such bytes of a file: mapped, and not touched by anybody. The IO
//! knows them by their address and sends that part of the file instead. hyper counts and advances its bytes as if they had
//! been written, so where they begin stays where the file is to be sent from.
//!
//! Whoever else looks at the bytes finds the file's own, so a layer around the body costs the saving and nothing more. A
//! test counts what was sent this way: a hyper that copies first would be seen there.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tracing::debug;

use super::buffers::{Buffers, Fitting, LEAST_UNSENT, Share};
use crate::regular_file;

/// Shorter files are read: a mapping is made and taken away in 4 us, in which as much is copied.
const WORTHWHILE: u64 = 64 << 10;
/// Where the page cache is asked, in bytes: the least that the kernel reads ahead (`read_ahead_kb`, 128 by default), so what
/// lies between two places that are there is there, but for rare leftovers of what was given back. One of those stops a
/// worker for one read of the disk.
const SOUNDING: u64 = 128 << 10;
/// Of what is asked for at once; of more than a MiB these are further apart. That much is asked for only on behalf of who was sent
/// as much out of the page cache in milliseconds, and eight a MiB are 3 % of the CPU of that.
const SOUNDINGS: u64 = 8;
/// In bytes: less goes to the socket in one call.
const CORKED: usize = LEAST_UNSENT as usize;

/// How a connection sends parts of files; found in the extensions of each of its requests. The default cannot, and knows of
/// no others.
#[derive(Clone, Debug, Default)]
pub struct FileSender {
    /// None within TLS, where bytes have to be seen to be encrypted.
    windows: Option<Arc<Windows>>,
    share: Arc<Share>,
}

#[derive(Debug, Default)]
struct Windows {
    /// Those whose bytes may still come: one, and the next where a client does not wait for the end of an answer.
    open: Mutex<Vec<Weak<Mapped>>>,
    /// Bytes that went by sendfile.
    sent: AtomicU64,
}

/// A file whose bytes nobody has read.
#[derive(Debug)]
struct Mapped {
    map: Mmap,
    file: Arc<File>,
}

/// Holds the mapping as long as there are bytes of it.
struct Owner(Arc<Mapped>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// A file as bytes for one connection.
#[derive(Debug)]
pub struct Window {
    mapped: Arc<Mapped>,
    bytes: Bytes,
}

impl FileSender {
    pub(super) fn new(buffers: &Buffers) -> Self {
        Self {
            windows: Some(Arc::default()),
            share: Arc::new(buffers.share()),
        }
    }

    /// For a connection that has to see the bytes.
    pub(super) fn without_windows(buffers: &Buffers) -> Self {
        Self {
            windows: None,
            share: Arc::new(buffers.share()),
        }
    }

    /// A body of so many bytes begins.
    pub fn begins(&self, bytes: u64) {
        self.share.begins(bytes);
    }

    /// Bytes of a file to hand to this connection at once, and to have read beyond them: the fewer, the more others are
    /// sent something.
    pub fn at_once(&self) -> u64 {
        self.share.pages()
    }

    /// The same of what is in memory already: more, for who takes it fast.
    pub fn at_once_in_memory(&self) -> u64 {
        self.share.pages_in_memory()
    }

    /// The first `size` bytes of `file`, or those that it is going to have. None where they are as well read.
    pub fn window(&self, file: &Arc<File>, size: u64) -> Option<Window> {
        let windows = self.windows.as_ref().filter(|_| size >= WORTHWHILE)?;
        let mapped = Arc::new(Mapped {
            map: map(file, size)
                .inspect_err(|e| debug!(error = %e, size, "a file cannot be mapped"))
                .ok()?,
            file: Arc::clone(file),
        });
        let mut open = windows.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|window| window.strong_count() > 0);
        open.push(Arc::downgrade(&mapped));
        Some(Window {
            bytes: Bytes::from_owner(Owner(Arc::clone(&mapped))),
            mapped,
        })
    }

    /// Bytes of this connection that went by sendfile so far.
    pub fn sent(&self) -> u64 {
        let windows = self.windows.as_ref();
        windows.map_or(0, |windows| windows.sent.load(Ordering::Relaxed))
    }

    /// The window that an address lies in.
    fn find(&self, at: *const u8) -> Option<Arc<Mapped>> {
        let open = &self.windows.as_ref()?.open;
        let open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter()
            .filter_map(Weak::upgrade)
            .find(|mapped| mapped.map.as_ptr_range().contains(&at))
    }
}

#[allow(unsafe_code)]
fn map(file: &File, size: u64) -> io::Result<Mmap> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    // SAFETY: what could go wrong is a read of these bytes while the file changes, or beyond its end. Nobody reads them: they
    // go to the IO of the connection that the window was made for, `SendingIo`, which compares their address and has the
    // kernel read the file. Within TLS there are no windows. What a layer in between would read are blobs, which containerd
    // renames into place once they are whole and never writes to again, and ingests, of which only what is written is ever
    // given out (`Window::cached`).
    unsafe { MmapOptions::new().len(size).map(file) }
}

impl Window {
    /// The bytes of `range`, where all of them are in the page cache: whoever sends them does not wait for a disk. None
    /// where they are not, or not there at all, or where that cannot be told (tmpfs); they are to be read elsewhere than on
    /// a worker then.
    pub fn cached(&self, range: Range<u64>) -> Option<Bytes> {
        let last = range.end.checked_sub(1).filter(|_| !range.is_empty())?;
        let apart = SOUNDING.max((range.end - range.start) / SOUNDINGS);
        let soundings = (range.start..last).step_by(apart as usize);
        soundings
            .chain([last])
            .all(|at| regular_file::read_cached(&self.mapped.file, at, &mut [0]))
            .then(|| self.bytes.slice(range.start as usize..range.end as usize))
    }
}

/// The connection's socket, which sends the windows of its sender by sendfile.
pub(super) struct SendingIo {
    stream: TcpStream,
    sender: FileSender,
    fitting: Fitting,
    /// The window of the last write: most likely that of the next.
    last: Weak<Mapped>,
    /// What does not fill a packet is kept until there is more, or hyper has no more.
    is_corked: bool,
}

impl SendingIo {
    pub(super) fn new(stream: TcpStream, sender: FileSender) -> Self {
        Self {
            fitting: Fitting::new(Arc::clone(&sender.share), &stream),
            stream,
            sender,
            last: Weak::new(),
            is_corked: false,
        }
    }

    fn window(&mut self, at: *const u8) -> Option<Arc<Mapped>> {
        let last = self.last.upgrade();
        let last = last.filter(|mapped| mapped.map.as_ptr_range().contains(&at));
        last.or_else(|| {
            let found = self.sender.find(at)?;
            self.last = Arc::downgrade(&found);
            Some(found)
        })
    }

    /// Each call of sendfile would end with a packet of what is left over. Where the other side of the socket was forgotten
    /// the kernel sends it after 200 ms (tcp(7)).
    fn cork(&mut self, cork: bool) {
        if self.is_corked != cork {
            self.is_corked = cork;
            // Without it there are more packets.
            let _ = SockRef::from(&self.stream).set_tcp_cork(cork);
        }
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.fitting.sent(bytes, &self.stream);
        }
        written
    }

    /// What `send` has sent, as soon as the socket takes something.
    fn poll_socket(
        &self,
        cx: &mut Context<'_>,
        mut send: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let send = || send(self.stream.as_fd()).map_err(io::Error::from);
            match self.stream.try_io(Interest::WRITABLE, send) {
                // Both mean: once more.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// What comes before a window. It is sent with the window's first bytes: as a packet of its own it would wake who waits for it
    /// once more, which is a fifth of what a blob of 64 KiB costs.
    fn poll_before(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let sent = self.poll_socket(cx, |socket| {
            sendmsg(socket, bufs, &mut SendAncillaryBuffer::default(), flags)
        });
        self.wrote(sent)
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mapped: &Mapped,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let start = bytes.as_ptr().addr() - mapped.map.as_ptr().addr();
        if bytes.len() > CORKED {
            self.cork(true);
        }
        let sent = ready!(self.poll_socket(cx, |socket| {
            let mut offset = start as u64;
            rustix::fs::sendfile(socket, &mapped.file, Some(&mut offset), bytes.len())
        }))?;
        if sent == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "the file ends at byte {start}, before the length that it had or was to have"
                ),
            )));
        }
        self.fitting.sent(sent, &self.stream);
        if let Some(windows) = &self.sender.windows {
            windows.sent.fetch_add(sent as u64, Ordering::Relaxed);
        }
        Poll::Ready(Ok(sent))
    }
}

impl AsyncRead for SendingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SendingIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.window(buf.as_ptr()) {
            Some(mapped) => self.poll_send(cx, &mapped, buf),
            None => {
                let written = Pin::new(&mut self.stream).poll_write(cx, buf);
                self.wrote(written)
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // An empty one may begin where a window does.
        let Some(first) = bufs.iter().position(|buf| !buf.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let bufs = &bufs[first..];
        if let Some(mapped) = self.window(bufs[0].as_ptr()) {
            return self.poll_send(cx, &mapped, &bufs[0]);
        }
        let before = bufs[1..]
            .iter()
            .take_while(|buf| self.window(buf.as_ptr()).is_none())
            .count();
        let (bufs, behind) = bufs.split_at(before + 1);
        if !behind.is_empty() {
            return self.poll_before(cx, bufs);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cork(false);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
