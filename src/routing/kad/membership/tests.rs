//! The handshake between members, strangers and liars, over pipes.

use std::io::Write as _;

use libp2p::identity::Keypair;
use libp2p::multihash::Multihash;
use tokio::io::{DuplexStream, ReadBuf, duplex};

use super::*;

const ONE: &str = "0123456789abcdef0123456789abcdef";
const TWO: &str = "fedcba9876543210fedcba9876543210";

/// tokio's pipe, as futures' traits have it.
struct Pipe(DuplexStream);

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut into = ReadBuf::new(buf);
        let read = Pin::new(&mut self.0);
        ready!(tokio::io::AsyncRead::poll_read(read, cx, &mut into))?;
        Poll::Ready(Ok(into.filled().len()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

fn pipe() -> (Pipe, Pipe) {
    let (one, other) = duplex(4096);
    (Pipe(one), Pipe(other))
}

/// A node with these secrets, and its file.
fn node(secrets: &[&str]) -> (Membership, tempfile::NamedTempFile) {
    let mut file = tempfile::NamedTempFile::new().expect("tempfile");
    file.write_all(secrets.join("\n").as_bytes())
        .expect("write");
    let keypair = Keypair::generate_ed25519();
    let membership = Membership {
        noise: noise::Config::new(&keypair).expect("noise"),
        members: Arc::new(Members::load(file.path()).expect("secrets")),
        me: keypair.public().to_peer_id(),
    };
    (membership, file)
}

/// How both sides of a meeting end.
async fn meet(dialer: &[&str], listener: &[&str]) -> [Result<(), Refusal>; 2] {
    let ((a, _a), (b, _b)) = (node(dialer), node(listener));
    let (to_b, to_a) = pipe();
    let (at_a, at_b) = (a.me, b.me);
    let (dialed, listened) = tokio::join!(a.dialed(to_b, at_b), b.listened(to_a, at_a));
    [dialed.map(drop), listened.map(drop)]
}

/// Computed with Python's hmac and struct modules. Whoever changes them shuts the releases before out.
#[test]
fn version_1_is_these_bytes() {
    let id = |byte: u8| {
        let key = [&[8, 1, 0x12, 0x20][..], &[byte; 32]].concat();
        PeerId::from_multihash(Multihash::wrap(0, &key).expect("short")).expect("a peer id")
    };
    let meeting = Meeting {
        dialer: id(1),
        listener: id(2),
        dialer_nonce: vec![3; 32],
        listener_nonce: vec![4; 32],
    };
    let (of_one, _file) = node(&[ONE]);
    let proven = |role| {
        let proof = of_one.members.prove(&meeting.claim(role));
        proof.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    assert_eq!(
        proven(Role::Dialer),
        "f94bb7c033193b03d57fe8fc3bca8274efceddb3cff0f08472a9a0a4170d3336"
    );
    assert_eq!(
        proven(Role::Listener),
        "6ec92ecb2e9b342978af93fd6cf3e4877355d6a091b3c8debf254806c1fcaf38"
    );

    let frame = Frame {
        nonce: vec![1, 2],
        proof: vec![3],
        refused: true,
    };
    assert_eq!(frame.encode_to_vec(), [10, 2, 1, 2, 18, 1, 3, 24, 1]);
    // A later release says more.
    let more = [&frame.encode_to_vec()[..], &[0xa2, 6, 3, 7, 7, 7]].concat();
    assert_eq!(Frame::decode(&more[..]).expect("version 1"), frame);
}

#[tokio::test]
async fn who_has_a_secret_in_common_meets() {
    for (dialer, listener) in [
        (&[ONE][..], &[ONE][..]),
        (&[ONE], &[ONE, TWO]),
        (&[ONE, TWO], &[TWO, ONE]),
        (&[TWO, ONE], &[TWO]),
    ] {
        let [dialed, listened] = meet(dialer, listener).await;

        dialed.expect("a member");
        listened.expect("a member");
    }
}

#[tokio::test]
async fn who_has_another_secret_is_told_so_and_so_is_the_operator() {
    let [dialed, listened] = meet(&[ONE], &[TWO]).await;
    let (dialed, listened) = (dialed.expect_err("wrong"), listened.expect_err("wrong"));

    assert!(matches!(dialed, Refusal::Refused), "{dialed}");
    assert!(matches!(listened, Refusal::OtherSecret), "{listened}");
    for refusal in [dialed, listened] {
        // As the transport wraps it.
        let error = io::Error::other(refusal);
        assert_eq!(Stranger::in_error(&error), Some(Stranger::OtherSecret));
    }

    // It verifies our first secret, and proves one that we have not.
    let [dialed, listened] = meet(&[ONE], &[TWO, ONE]).await;
    let dialed = dialed.expect_err("wrong");
    assert!(matches!(dialed, Refusal::OtherSecret), "{dialed}");
    listened.expect("it has verified us");

    for harmless in [
        Refusal::Broken("x"),
        Refusal::Io(io::Error::other("x")),
        Refusal::Noise(noise::Error::BadSignature),
    ] {
        assert_eq!(Stranger::in_error(&io::Error::other(harmless)), None);
    }
}

#[tokio::test]
async fn who_relays_between_two_members_gets_in_at_neither() {
    let ((a, _a), (b, _b)) = (node(&[ONE]), node(&[ONE]));
    // Both speak to him: noise has told them his name.
    let liar = Keypair::generate_ed25519().public().to_peer_id();
    let (to_liar, from_a) = duplex(4096);
    let (from_liar, to_b) = duplex(4096);
    let relay = tokio::spawn(async move {
        let (mut from_a, mut from_liar) = (from_a, from_liar);
        let _ = tokio::io::copy_bidirectional(&mut from_a, &mut from_liar).await;
    });

    let (dialed, listened) =
        tokio::join!(a.dialed(Pipe(to_liar), liar), b.listened(Pipe(to_b), liar));

    assert!(matches!(dialed, Err(Refusal::Refused)));
    assert!(matches!(listened, Err(Refusal::OtherSecret)));
    relay.abort();
}

#[tokio::test]
async fn what_was_said_once_proves_nothing_twice() {
    let ((a, _a), (b, _b)) = (node(&[ONE]), node(&[ONE]));
    let (at_a, at_b) = (a.me, b.me);
    // A true meeting, overheard by somebody who can pretend to be A.
    let (to_b, mut from_a) = pipe();
    let (mut to_a, from_b) = pipe();
    let (heard, dialed, listened) = tokio::join!(
        async {
            let nonce = receive(&mut from_a).await.expect("a nonce");
            send(&mut to_a, &nonce).await.expect("sent");
            let theirs = receive(&mut to_a).await.expect("a nonce");
            send(&mut from_a, &theirs).await.expect("sent");
            let proof = receive(&mut from_a).await.expect("a proof");
            send(&mut to_a, &proof).await.expect("sent");
            let last = receive(&mut to_a).await.expect("a proof");
            send(&mut from_a, &last).await.expect("sent");
            [nonce, proof]
        },
        a.clone().dialed(to_b, at_b),
        b.clone().listened(from_b, at_a),
    );
    drop((dialed.expect("a member"), listened.expect("a member")));

    let (mut again, to_a) = pipe();
    let (replayed, listened) = tokio::join!(
        async {
            let [nonce, proof] = heard;
            send(&mut again, &nonce).await.expect("sent");
            receive(&mut again).await.expect("a nonce");
            send(&mut again, &proof).await.expect("sent");
            receive(&mut again).await.expect("an answer")
        },
        b.listened(to_a, at_a)
    );
    assert!(replayed.refused && replayed.proof.is_empty());
    assert!(matches!(listened, Err(Refusal::OtherSecret)));

    // Whoever is called and gives back what he is given.
    let (to_mirror, mut mirror) = pipe();
    let (dialed, ()) = tokio::join!(a.dialed(to_mirror, at_b), async {
        for _ in 0..2 {
            let frame = receive(&mut mirror).await.expect("a frame");
            send(&mut mirror, &frame).await.expect("sent");
        }
    });
    assert!(matches!(dialed, Err(Refusal::OtherSecret)));
}

#[tokio::test]
async fn what_is_no_proof_ends_it_at_once_and_takes_no_memory() {
    let nonce = [&[0, 34, 10, 32][..], &[7; 32]].concat();
    for (said, error) in [
        (vec![0x02, 0x01], "at most 512 bytes"),
        (vec![0xff, 0xff, 0, 0], "at most 512 bytes"),
        (vec![0, 0], "a nonce has 32 bytes"),
        (vec![0, 3, 10, 1, 7], "a nonce has 32 bytes"),
        (vec![0, 2, 0xff, 0xff], "it is no message"),
        (vec![0, 9, 1], "unexpected end of file"),
        ([&nonce[..], &[0, 0]].concat(), "another cluster secret"),
        ([&nonce[..], &[9, 9]].concat(), "at most 512 bytes"),
    ] {
        let (b, _file) = node(&[ONE]);
        let (mut stranger, to_b) = pipe();
        stranger.write_all(&said).await.expect("sent");
        let ended = async {
            // Half-open from here on: it says no more.
            tokio::io::AsyncWriteExt::shutdown(&mut stranger.0)
                .await
                .expect("shut");
            b.listened(to_b, PeerId::random()).await.map(drop)
        };

        let refused = ended.await.expect_err(error).to_string();

        assert!(refused.contains(error), "{said:?}: {refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_secret_ends_its_connections_and_no_others() {
    let (a, _a) = node(&[ONE]);
    let (b, b_file) = node(&[ONE, TWO]);
    let (c, _c) = node(&[TWO]);
    let members = b.members.clone();
    let mut streams = Vec::new();
    for (dialer, secret) in [(a, ONE), (c, TWO)] {
        std::fs::write(
            b_file.path(),
            [secret, "\n", if secret == ONE { TWO } else { ONE }].concat(),
        )
        .expect("write");
        members.look();
        let (to_b, from) = pipe();
        let (me, b) = (dialer.me, b.clone());
        let at_b = b.me;
        let (dialed, listened) = tokio::join!(dialer.dialed(to_b, at_b), b.listened(from, me));
        streams.push((dialed.expect("a member"), listened.expect("a member")));
    }
    let [(mut a, mut from_a), (mut c, mut from_c)] = <[_; 2]>::try_from(streams).ok().expect("two");

    std::fs::write(b_file.path(), TWO).expect("write");
    members.look();

    // It sleeps in a read when it happens.
    let begun = tokio::time::Instant::now();
    let ended = from_a.read(&mut [0]).await.expect_err("removed");
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
    assert!(begun.elapsed() <= END);
    from_a.write_all(b"x").await.expect_err("removed");
    assert!(from_a.read(&mut [0]).await.is_err(), "for good");
    // A has not heard, and its own file has it still.
    a.write_all(b"x").await.expect("its side is open");

    c.write_all(b"x").await.expect("a member");
    let mut heard = [0];
    from_c.read_exact(&mut heard).await.expect("a member");
    assert_eq!(&heard, b"x");
}
