//! Nodes that take bodies from the node under measurement, all at once.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::lab::image::Blob;
use crate::lab::{Image, Node};

const READ: usize = 256 << 10;

/// Connections with a body under way.
pub struct Takers(Vec<Taker>);

struct Taker {
    stream: TcpStream,
    left: u64,
}

impl Takers {
    /// `by` begins to take so many layers of `image`, one after the other and from the first on again, from `from`, as
    /// another node's Peili does.
    pub async fn begin(by: &Node, from: SocketAddr, image: &Image, count: usize) -> Result<Self> {
        let layers = image.layers.iter().cycle().take(count);
        let all = layers.map(|layer| begin(by, from, image, layer));
        Ok(Self(try_join_all(all).await?))
    }

    /// Reads `bytes` more of each body, or what is left of it.
    pub async fn read(&mut self, bytes: u64) -> Result<()> {
        let all = self.0.iter_mut().map(|taker| taker.read(bytes));
        try_join_all(all).await.map(drop)
    }

    /// Reads all to their ends.
    pub async fn finish(mut self) -> Result<()> {
        self.read(u64::MAX).await
    }
}

impl Taker {
    async fn read(&mut self, bytes: u64) -> Result<()> {
        let mut wanted = bytes.min(self.left);
        let mut buffer = vec![0; READ];
        while wanted > 0 {
            let room = wanted.min(READ as u64) as usize;
            let read = self.stream.read(&mut buffer[..room]).await?;
            ensure!(read > 0, "a body ended {} bytes early", self.left);
            self.left -= read as u64;
            wanted -= read as u64;
        }
        Ok(())
    }
}

async fn begin(by: &Node, from: SocketAddr, image: &Image, layer: &Blob) -> Result<Taker> {
    let mut stream = by.netns().connect(from).await?;
    let (name, digest) = (image.name(), &layer.digest);
    let request = format!(
        "GET /v2/{name}/blobs/{digest}?ns=registry.test HTTP/1.1\r\nhost: {from}\r\n\
         x-spegel-mirrored: true\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // To the end of the head, byte by byte: what follows is counted.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("no answer")?);
    }
    if !head.starts_with(b"HTTP/1.1 200 ") {
        stream.read_to_end(&mut head).await?;
        bail!("{digest}: {}", String::from_utf8_lossy(&head));
    }
    Ok(Taker {
        stream,
        left: layer.size,
    })
}
