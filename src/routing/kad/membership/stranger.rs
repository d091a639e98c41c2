//! What the handshake makes of somebody who says anything at all: for whoever looks for input that breaks a promise.

use futures::io::Cursor;
use libp2p::identity::Keypair;

use super::*;

impl Membership {
    /// Whether somebody who has no secret is let in by what he says, be he called or calling. All of it is there at once,
    /// and nobody listens to what is answered.
    pub(crate) fn believes(members: Arc<Members>, says: &[u8]) -> bool {
        let keypair = Keypair::generate_ed25519();
        let noise = noise::Config::new(&keypair).expect("a key of this release's kind");
        let membership = Self::new(noise, members, keypair.public().to_peer_id());
        let stranger = PeerId::random();
        let says = || Cursor::new(says.to_vec());
        let stream = || Overheard(says());
        let dialed = membership.clone().dialed(stream(), stranger);
        let listened = membership.listened(stream(), stranger);
        let ended = |result: Option<bool>| result.expect("nothing is waited for");
        ended(dialed.now_or_never().map(|it| it.is_ok()))
            || ended(listened.now_or_never().map(|it| it.is_ok()))
    }
}

/// Is read, and takes whatever is written.
struct Overheard(Cursor<Vec<u8>>);

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
