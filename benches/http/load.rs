//! Who asks: connections that each ask for the same thing again and again, until the time is over.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};

/// Thrown away by the kernel at once; the buffer is not touched.
const READ: usize = 1 << 20;
/// A head is some 300 bytes.
const MAX_HEAD: usize = 16 << 10;
/// Who does not send for so long does not work.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct Load {
    at: SocketAddr,
    path: String,
    clients: usize,
    seconds: f64,
    /// As another node asks, who is not sent elsewhere
    #[arg(long)]
    as_peer: bool,
}

/// What came of it, all connections together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Loaded {
    /// Of bodies, those that were cut off at the end, too.
    pub bytes: u64,
    /// Whole answers.
    pub requests: u64,
    pub seconds: f64,
}

impl Load {
    pub fn run(&self) -> Result<()> {
        // All are connected before the first asks.
        let ready = Barrier::new(self.clients + 1);
        let (began, all) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients)
                .map(|_| scope.spawn(|| self.client(&ready)))
                .collect();
            ready.wait();
            let began = Instant::now();
            let all: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            (began, all)
        });
        let mut sum = Loaded::default();
        for one in all {
            let one = one.map_err(|_| anyhow::anyhow!("a client panicked"))??;
            sum.bytes += one.bytes;
            sum.requests += one.requests;
        }
        sum.seconds = began.elapsed().as_secs_f64();
        println!("{}", serde_json::to_string(&sum)?);
        Ok(())
    }

    fn client(&self, ready: &Barrier) -> Result<Loaded> {
        let connected = TcpStream::connect(self.at);
        ready.wait();
        let mut stream = connected.with_context(|| format!("connecting to {}", self.at))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let peer = match self.as_peer {
            true => "x-spegel-mirrored: true\r\n",
            false => "",
        };
        let (path, at) = (&self.path, self.at);
        let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\n{peer}\r\n");
        let until = Instant::now() + crate::seconds(self.seconds);
        let mut loaded = Loaded::default();
        while Instant::now() < until {
            stream.write_all(request.as_bytes())?;
            let (mut left, read) = head(&mut stream)?;
            loaded.bytes += read;
            while left > 0 && Instant::now() < until {
                let room = left.min(READ as u64) as usize;
                let read = discard(&stream, room)?;
                ensure!(read > 0, "a body ended {left} bytes early");
                left -= read as u64;
                loaded.bytes += read as u64;
            }
            loaded.requests += u64::from(left == 0);
        }
        Ok(loaded)
    }
}

/// Bytes of the body that are still to come, and those that came with its head.
fn head(stream: &mut TcpStream) -> Result<(u64, u64)> {
    let mut buffer = vec![0; MAX_HEAD];
    let mut filled = 0;
    let end = loop {
        ensure!(filled < MAX_HEAD, "a head of more than {MAX_HEAD} bytes");
        let read = stream.read(&mut buffer[filled..])?;
        ensure!(read > 0, "no answer");
        filled += read;
        let end = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        bail!("{head}");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: u64 = length.context("no Content-Length")?.trim().parse()?;
    let came = (filled - end) as u64;
    Ok((length - came, came))
}

/// Bytes that came and were thrown away.
fn discard(stream: &TcpStream, length: usize) -> Result<usize> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; READ]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        loop {
            match recv(stream, &mut buffer[..length], RecvFlags::TRUNC) {
                Ok((_, read)) => return Ok(read),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    })
}
