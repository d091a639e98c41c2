//! A wire with a tap: what goes through it to a Peili's registry port is counted, can be held at a byte, and can go wrong.
//!
//! Bytes are handed on as they come, and so is how a connection ends: a FIN for a FIN and a reset for a reset.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use crate::cell::Moment;
use crate::lab::net::{Entrance, Netns};
use crate::spoil::{Mode, halved, slowly};

/// A request to wait for.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Is in the request's path.
    pub path: String,
    /// It has a Range.
    pub ranged: bool,
}

/// Whoever is held goes on when this is dropped.
pub struct Held {
    _release: oneshot::Sender<()>,
}

struct Gate {
    pattern: Pattern,
    at: Moment,
    tell: oneshot::Sender<Held>,
}

struct State {
    mode: watch::Sender<Mode>,
    gate: Mutex<Option<Gate>>,
    /// Bytes that came from behind.
    passed: AtomicU64,
    connections: Mutex<Vec<AbortHandle>>,
    entrance: Entrance,
    behind: SocketAddr,
}

pub struct Tap {
    state: Arc<State>,
    on: SocketAddr,
    accept: Mutex<Option<JoinHandle<()>>>,
}

impl Tap {
    /// Listens `on` this address in `netns`; `behind` is asked from there.
    pub async fn start(netns: &Netns, on: SocketAddr, behind: SocketAddr) -> Result<Self> {
        let this = Self {
            state: Arc::new(State {
                mode: watch::Sender::new(Mode::Pass),
                gate: Mutex::default(),
                passed: AtomicU64::new(0),
                connections: Mutex::default(),
                entrance: netns.entrance(),
                behind,
            }),
            on,
            accept: Mutex::default(),
        };
        this.listen().await?;
        Ok(this)
    }

    /// Again, after [`Tap::refuse`].
    pub async fn listen(&self) -> Result<()> {
        if self.accept.lock().unwrap().is_some() {
            return Ok(());
        }
        let listener = self.state.entrance.listen(self.on).await?;
        let accept = tokio::spawn(accept(listener, self.state.clone()));
        *self.accept.lock().unwrap() = Some(accept);
        Ok(())
    }

    /// New connections are refused from when this returns. Those under way go on.
    pub async fn refuse(&self) {
        let accept = self.accept.lock().unwrap().take();
        if let Some(accept) = accept {
            accept.abort();
            // Aborted is how it ends.
            let _ = accept.await;
        }
    }

    pub fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// Holds the first request like this at its moment, and says so.
    pub fn hold(&self, pattern: Pattern, at: Moment) -> oneshot::Receiver<Held> {
        let (tell, told) = oneshot::channel();
        *self.state.gate.lock().unwrap() = Some(Gate { pattern, at, tell });
        told
    }

    /// Nobody is held any more.
    pub fn open(&self) {
        self.state.gate.lock().unwrap().take();
    }

    /// Bytes of answers so far, with their heads.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(accept) = self.accept.lock().unwrap().take() {
            accept.abort();
        }
        for connection in self.state.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let connection = tokio::spawn(serve(client, state.clone()));
        let mut connections = state.connections.lock().unwrap();
        connections.retain(|connection| !connection.is_finished());
        connections.push(connection.abort_handle());
    }
}

/// How a connection ends.
enum End {
    Fin,
    Reset,
}

async fn serve(mut client: TcpStream, state: Arc<State>) {
    let _ = client.set_nodelay(true);
    let Ok(mut backend) = state.entrance.connect(state.behind).await else {
        reset(&client);
        return;
    };
    let _ = backend.set_nodelay(true);
    let request = Request::default();
    let end = {
        let (from_client, to_client) = client.split();
        let (from_backend, to_backend) = backend.split();
        let up = up(&state, &request, from_client, to_backend);
        let down = down(&state, &request, from_backend, to_client);
        tokio::pin!(up, down);
        tokio::select! {
            // A client that has no more to ask may still be read to; one that is gone is not.
            ended = &mut up => match ended {
                Ok(()) => down.await,
                Err(_) => End::Reset,
            },
            end = &mut down => end,
        }
    };
    match end {
        End::Reset => reset(&client),
        End::Fin => {
            let _ = client.shutdown().await;
            // With what is unread the kernel would send a reset.
            let mut rest = [0; 4096];
            let drain = async { while client.read(&mut rest).await.is_ok_and(|n| n > 0) {} };
            let _ = tokio::time::timeout(Duration::from_secs(5), drain).await;
        }
    }
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What the connection's last request was.
#[derive(Default)]
struct Request {
    /// It is the one that is waited for.
    is_awaited: AtomicBool,
    /// Its answer's head has not come yet.
    is_new: AtomicBool,
}

/// Requests have no body, so each begins where the last head ended.
async fn up(
    state: &State,
    request: &Request,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        head.extend_from_slice(&buffer[..read]);
        while let Some(end) = end_of_head(&head) {
            let rest = head.split_off(end);
            let text = String::from_utf8_lossy(&head).to_lowercase();
            request.is_awaited.store(false, Ordering::SeqCst);
            request.is_new.store(true, Ordering::SeqCst);
            let awaited = state.gate.lock().unwrap().as_ref().and_then(|gate| {
                let line = text.lines().next().unwrap_or_default();
                let is_it = line.contains(&gate.pattern.path)
                    && (!gate.pattern.ranged || text.contains("\r\nrange:"));
                is_it.then_some(gate.at)
            });
            match awaited {
                Some(Moment::Given(_)) => request.is_awaited.store(true, Ordering::SeqCst),
                Some(_) => held(state).await,
                None => {}
            }
            to.write_all(&head).await?;
            head = rest;
        }
    }
}

/// Tells whoever waits, and goes on when he says so.
async fn held(state: &State) {
    let gate = state.gate.lock().unwrap().take();
    if let Some(gate) = gate {
        let (release, released) = oneshot::channel();
        if gate.tell.send(Held { _release: release }).is_ok() {
            // Dropped is how it is released.
            let _ = released.await;
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

async fn down(
    state: &State,
    request: &Request,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> End {
    let mut modes = state.mode.subscribe();
    let mut head = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    let mut given = 0;
    // What may still come of a body that is cut.
    let mut left = u64::MAX;
    let mut is_late = false;
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Reset => return End::Reset,
            Mode::Silent => {
                // What comes afterwards is no longer what was asked for.
                let _ = modes.changed().await;
                return End::Reset;
            }
            _ => {}
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = modes.changed() => continue,
        };
        let mut bytes = match read {
            Ok(0) => return End::Fin,
            Ok(read) => &buffer[..read],
            Err(_) => return End::Reset,
        };
        state
            .passed
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if request.is_new.load(Ordering::SeqCst) {
            head.extend_from_slice(bytes);
            let Some(end) = end_of_head(&head) else {
                continue;
            };
            request.is_new.store(false, Ordering::SeqCst);
            (given, left) = (0, u64::MAX);
            let body = head.split_off(end);
            let sent = match mode {
                Mode::Errors => {
                    let answer = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = to.write_all(answer).await;
                    return End::Fin;
                }
                Mode::HalfLength => {
                    let (changed, length) = halved(&head);
                    left = length;
                    to.write_all(&changed).await
                }
                Mode::SlowHead => slowly(&mut to, &head).await,
                Mode::SlowLink => {
                    is_late = true;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    to.write_all(&head).await
                }
                _ => to.write_all(&head).await,
            };
            if sent.is_err() {
                return End::Reset;
            }
            head.clear();
            buffer[..body.len()].copy_from_slice(&body);
            bytes = &buffer[..body.len()];
        }
        if bytes.is_empty() {
            continue;
        }
        given += bytes.len() as u64;
        if request.is_awaited.load(Ordering::SeqCst) {
            let at = state.gate.lock().unwrap().as_ref().map(|gate| gate.at);
            if let Some(Moment::Given(at)) = at
                && given >= at
            {
                held(state).await;
                // What is wrong from now on is wrong with these bytes already.
                match *modes.borrow_and_update() {
                    Mode::Reset => return End::Reset,
                    Mode::Silent => continue,
                    _ => {}
                }
            }
        }
        if mode == Mode::SlowLink {
            if !is_late {
                is_late = true;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            for part in bytes.chunks(32 << 10) {
                tokio::time::sleep(Duration::from_micros(part.len() as u64)).await;
                if to.write_all(part).await.is_err() {
                    return End::Reset;
                }
            }
            continue;
        }
        let part = &bytes[..left.min(bytes.len() as u64) as usize];
        let written = tokio::select! {
            written = to.write_all(part) => written,
            // The client takes nothing now; what is wrong is wrong at once.
            () = broken(&mut modes) => continue,
        };
        if written.is_err() {
            return End::Reset;
        }
        left -= part.len() as u64;
        if left == 0 {
            return End::Fin;
        }
    }
}

async fn broken(modes: &mut watch::Receiver<Mode>) {
    let is_broken = |mode: &Mode| matches!(mode, Mode::Reset | Mode::Silent);
    if modes.wait_for(is_broken).await.is_err() {
        std::future::pending::<()>().await;
    }
}
