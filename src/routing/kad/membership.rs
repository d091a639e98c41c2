//! The handshake of a closed swarm: noise, then a proof on both sides that the cluster's secret is known.
//!
//! It stands where noise alone would stand, under a name of its own. So a stranger comes no further than to the encrypted
//! stream: no yamux, and with it no DHT, no messages, no identify and no ping. Who speaks `/noise` alone (a node without a
//! secret, a Spegel) finds no handshake in common.
//!
//! ```text
//! dialer                                      listener
//!   ── nonce ─────────────────────────────────▶
//!   ◀───────────────────────────────── nonce ──
//!   ── proof ─────────────────────────────────▶    who calls shows first: a listener shows nothing to strangers
//!   ◀───────────────── proof, or "refused" ────
//! ```
//!
//! A frame is two bytes of length, the higher first, and a protobuf message, whose unknown fields are passed over. A proof is
//! over both peer ids, which noise has authenticated, so nobody can pass on one member's words to another as his own; over
//! both nonces, so none is good twice; and over who proves it, so none is good as its own answer.
//!
//! The transport gives the whole of it, noise and yamux included, [`DIAL`](super::behaviour::DIAL).

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, FutureExt as _};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, NegotiationError, OutboundConnectionUpgrade, ProtocolError,
};
use libp2p::{PeerId, noise};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::membership::{Claim, Members};

pub const PROTOCOL: &str = "/peili/noise-member/1";
const LABEL: &str = "peili member connection 1";
/// Ours have 34 bytes; a later release may say more.
const MAX_FRAME: usize = 512;
const NONCE: usize = 32;
/// A secret that is removed ends its connections within this, one by one: a lookup under way loses a peer or two, not all.
pub const END: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(bytes = "vec", tag = "1")]
    nonce: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    proof: Vec<u8>,
    /// The other side's proof is by none of the secrets here.
    #[prost(bool, tag = "3")]
    refused: bool,
}

/// Why somebody was not let in, or did not let us in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no handshake in common: it has no cluster secret")]
    NoSecret,
    #[error("it has another cluster secret")]
    OtherSecret,
    #[error("it says that this node has another cluster secret")]
    Refused,
    #[error("sent what is no proof: {0}")]
    Broken(&'static str),
    #[error(transparent)]
    Noise(noise::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// For the operator: which of the two sides lacks what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// One side has a secret and the other none.
    NoSecret,
    /// They have no secret in common.
    OtherSecret,
}

impl Stranger {
    pub const ALL: [Stranger; 2] = [Stranger::NoSecret, Stranger::OtherSecret];

    /// For a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Stranger::NoSecret => "no_secret",
            Stranger::OtherSecret => "other_secret",
        }
    }

    /// Whether a connection failed for want of a secret in common, as far as its error tells.
    pub fn in_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                match refusal {
                    Refusal::NoSecret => return Some(Self::NoSecret),
                    Refusal::OtherSecret | Refusal::Refused => return Some(Self::OtherSecret),
                    Refusal::Broken(_) | Refusal::Noise(_) | Refusal::Io(_) => {}
                }
            }
            match error.downcast_ref() {
                // Whoever proposes one handshake goes on with it at once, and what he says then is no proposal.
                Some(
                    NegotiationError::Failed
                    | NegotiationError::ProtocolError(
                        ProtocolError::InvalidMessage | ProtocolError::InvalidProtocol,
                    ),
                ) => return Some(Self::NoSecret),
                Some(NegotiationError::ProtocolError(ProtocolError::IoError(error)))
                    if error.kind() == io::ErrorKind::InvalidData =>
                {
                    return Some(Self::NoSecret);
                }
                _ => {}
            }
            // These two name their cause's cause as their own.
            next = match (error.downcast_ref(), error.downcast_ref::<io::Error>()) {
                (Some(noise::Error::Io(error)), _) => Some(error),
                (_, Some(error)) => error.get_ref().map(|error| error as _),
                _ => error.source(),
            };
        }
        None
    }
}

#[derive(Clone)]
pub struct Membership {
    noise: noise::Config,
    members: Arc<Members>,
    me: PeerId,
}

#[derive(Clone, Copy)]
enum Role {
    Dialer,
    Listener,
}

/// What both sides prove.
struct Meeting {
    dialer: PeerId,
    listener: PeerId,
    dialer_nonce: Vec<u8>,
    listener_nonce: Vec<u8>,
}

impl Meeting {
    fn claim(&self, role: Role) -> Claim {
        Claim::new(LABEL)
            .with(match role {
                Role::Dialer => "dialer",
                Role::Listener => "listener",
            })
            .with(self.dialer.to_bytes())
            .with(self.listener.to_bytes())
            .with(&self.dialer_nonce)
            .with(&self.listener_nonce)
    }
}

impl Membership {
    pub fn new(noise: noise::Config, members: Arc<Members>, me: PeerId) -> Self {
        Self { noise, members, me }
    }

    async fn dialed<S>(self, mut stream: S, listener: PeerId) -> Result<Proven<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let dialer_nonce = nonce();
        send(&mut stream, &of_nonce(&dialer_nonce)).await?;
        let meeting = Meeting {
            dialer: self.me,
            listener,
            dialer_nonce,
            listener_nonce: nonce_in(receive(&mut stream).await?)?,
        };
        let proof = self.members.prove(&meeting.claim(Role::Dialer));
        send(&mut stream, &of_proof(&proof)).await?;
        let answer = receive(&mut stream).await?;
        if answer.refused {
            return Err(Refusal::Refused);
        }
        let claim = meeting.claim(Role::Listener);
        match self.members.verify(&claim, &answer.proof) {
            Some(removed) => Ok(Proven::new(stream, removed)),
            None => Err(Refusal::OtherSecret),
        }
    }

    async fn listened<S>(self, mut stream: S, dialer: PeerId) -> Result<Proven<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let dialer_nonce = nonce_in(receive(&mut stream).await?)?;
        let listener_nonce = nonce();
        send(&mut stream, &of_nonce(&listener_nonce)).await?;
        let meeting = Meeting {
            dialer,
            listener: self.me,
            dialer_nonce,
            listener_nonce,
        };
        let shown = receive(&mut stream).await?;
        let claim = meeting.claim(Role::Dialer);
        let Some(removed) = self.members.verify(&claim, &shown.proof) else {
            let refused = Frame {
                refused: true,
                ..Frame::default()
            };
            send(&mut stream, &refused).await?;
            stream.close().await?;
            return Err(Refusal::OtherSecret);
        };
        let proof = self.members.prove(&meeting.claim(Role::Listener));
        send(&mut stream, &of_proof(&proof)).await?;
        Ok(Proven::new(stream, removed))
    }
}

fn nonce() -> Vec<u8> {
    rand::random::<[u8; NONCE]>().to_vec()
}

fn of_nonce(nonce: &[u8]) -> Frame {
    Frame {
        nonce: nonce.to_vec(),
        ..Frame::default()
    }
}

fn of_proof(proof: &[u8]) -> Frame {
    Frame {
        proof: proof.to_vec(),
        ..Frame::default()
    }
}

fn nonce_in(frame: Frame) -> Result<Vec<u8>, Refusal> {
    match frame.nonce.len() {
        NONCE => Ok(frame.nonce),
        _ => Err(Refusal::Broken("a nonce has 32 bytes")),
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let message = frame.encode_to_vec();
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let bytes = [&length.to_be_bytes()[..], &message].concat();
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Frame, Refusal> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_FRAME {
        return Err(Refusal::Broken("a frame has at most 512 bytes"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Frame::decode(&message[..]).map_err(|_| Refusal::Broken("it is no message"))
}

impl UpgradeInfo for Membership {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Upgraded<S> = BoxFuture<'static, Result<(PeerId, Proven<noise::Output<S>>), Refusal>>;

impl<S> InboundConnectionUpgrade<S> for Membership
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, Proven<noise::Output<S>>);
    type Error = Refusal;
    type Future = Upgraded<S>;

    fn upgrade_inbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move {
            let noise = self.noise.clone();
            let encrypted = noise.upgrade_inbound(socket, PROTOCOL).await;
            let (peer, stream) = encrypted.map_err(refusal)?;
            Ok((peer, self.listened(stream, peer).await?))
        }
        .boxed()
    }
}

impl<S> OutboundConnectionUpgrade<S> for Membership
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, Proven<noise::Output<S>>);
    type Error = Refusal;
    type Future = Upgraded<S>;

    fn upgrade_outbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move {
            let noise = self.noise.clone();
            let encrypted = noise.upgrade_outbound(socket, PROTOCOL).await;
            let (peer, stream) = encrypted.map_err(refusal)?;
            Ok((peer, self.dialed(stream, peer).await?))
        }
        .boxed()
    }
}

/// A dialer proposes its only protocol and goes on at once: that the other side has not agreed shows in the first read.
fn refusal(error: noise::Error) -> Refusal {
    match Stranger::in_error(&error) {
        Some(_) => Refusal::NoSecret,
        None => Refusal::Noise(error),
    }
}

/// A stream between two members, until the secret by which the other proved it is removed here.
pub struct Proven<S> {
    stream: S,
    removed: BoxFuture<'static, ()>,
    is_over: bool,
}

impl<S> Proven<S> {
    fn new(stream: S, removed: CancellationToken) -> Self {
        let removed = async move {
            removed.cancelled().await;
            tokio::time::sleep(END.mul_f64(rand::random())).await;
        };
        Self {
            stream,
            removed: removed.boxed(),
            is_over: false,
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.is_over {
            true => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the secret that has proven this connection is removed",
            )),
            false => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Proven<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // Of the two directions this one is always waited for.
        if !self.is_over && self.removed.as_mut().poll(cx).is_ready() {
            self.is_over = true;
        }
        self.check()?;
        Poll::Ready(Ok(ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Proven<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(feature = "testing")]
mod stranger;
#[cfg(test)]
mod tests;
