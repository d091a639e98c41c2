//! Messages on the wire: `/peili/flight/1`, one stream for each, a message and its answer.
//!
//! Each is a length (u32, big endian) and as many bytes. A stream that ends before its answer is a refusal, so an empty
//! answer is an answer. What a message means is not known here.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::{self, ProtocolSupport};

use crate::routing::messenger::MAX_MESSAGE;

pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/peili/flight/1");

/// Calls under way on one connection, both directions together. One node's containerd wants some tens of layers at the
/// same time, and in a cluster of two all of those meet at one peer. Each caller has a connection of its own, so that a
/// thousand callers are a thousand times one or two. Beyond it the caller is refused.
const MAX_PER_CONNECTION: usize = 128;

/// No caller waits so long (meeting points answer in milliseconds, and are given 250 of them). This frees what a peer that
/// hangs leaves behind, and is what Kademlia takes for the same.
const FORGOTTEN: Duration = Duration::from_secs(10);

pub type Behaviour = request_response::Behaviour<Frames>;
pub type Event = request_response::Event<Bytes, Bytes>;
pub type AnswerTo = request_response::ResponseChannel<Bytes>;

pub fn behaviour() -> Behaviour {
    let config = request_response::Config::default()
        .with_request_timeout(FORGOTTEN)
        .with_max_concurrent_streams(MAX_PER_CONNECTION);
    request_response::Behaviour::with_codec(Frames, [(PROTOCOL, ProtocolSupport::Full)], config)
}

/// Bytes, as they are.
#[derive(Clone, Copy, Debug)]
pub struct Frames;

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Bytes> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    if length as usize > MAX_MESSAGE {
        return Err(too_long(length as usize));
    }
    // Grows with what comes: a length alone takes no memory.
    let mut bytes = Vec::new();
    io.take(length.into()).read_to_end(&mut bytes).await?;
    if bytes.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}

async fn write<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: Bytes) -> io::Result<()> {
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|length| *length as usize <= MAX_MESSAGE)
        .ok_or_else(|| too_long(bytes.len()))?;
    // In one piece, which is one packet for almost every message.
    let mut frame = Vec::with_capacity(4 + bytes.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&bytes);
    io.write_all(&frame).await?;
    io.flush().await
}

fn too_long(length: usize) -> io::Error {
    let what = format!("a message of {length} bytes; {MAX_MESSAGE} are allowed");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl request_response::Codec for Frames {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Bytes;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        message: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, message).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, answer).await
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn framed(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut wire = Cursor::new(Vec::new());
        write(&mut wire, bytes.into()).await?;
        Ok(wire.into_inner())
    }

    #[tokio::test]
    async fn what_is_written_is_read_up_to_the_longest() {
        for length in [0, 1, 200, MAX_MESSAGE] {
            let message = vec![7; length];
            let wire = framed(message.clone()).await.unwrap();

            let read = read(&mut Cursor::new(wire)).await.unwrap();

            assert_eq!(read, message, "{length}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_neither_written_nor_read() {
        let written = framed(vec![7; MAX_MESSAGE + 1]).await.unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::InvalidData);

        for length in [MAX_MESSAGE as u32 + 1, u32::MAX] {
            let mut wire = length.to_be_bytes().to_vec();
            wire.extend([7; 100]);
            let read = read(&mut Cursor::new(wire)).await.unwrap_err();
            assert_eq!(read.kind(), io::ErrorKind::InvalidData, "{length}");
        }
    }

    #[tokio::test]
    async fn what_breaks_off_is_no_message() {
        let wire = framed(vec![7; 100]).await.unwrap();
        for cut in [0, 3, 4, 50, 103] {
            let read = read(&mut Cursor::new(wire[..cut].to_vec())).await;
            let kind = read.map_err(|e| e.kind());
            assert_eq!(kind, Err(io::ErrorKind::UnexpectedEof), "{cut}");
        }
    }
}
