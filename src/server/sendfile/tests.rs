use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;

use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use futures::stream;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::Advice;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::server::Server;
use crate::server::tests::connection;
use crate::shutdown::Shutdown;

const STEP: u64 = 256 << 10;

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut noise);
    noise
}

fn sender() -> FileSender {
    FileSender::new(&Buffers::default())
}

/// Not below /tmp, which may be a tmpfs: that one does not say what is in memory, for all of it is.
fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A server that sends `/<from>/<to>` of a file of `size` bytes, and the sender of the connection that came last.
struct Serving {
    address: SocketAddr,
    sender: Arc<Mutex<FileSender>>,
    _shutdown: Shutdown,
}

async fn serving(file: &NamedTempFile, size: u64) -> Serving {
    let file = Arc::new(file.reopen().unwrap());
    let last = Arc::new(Mutex::new(FileSender::default()));
    let keep = Arc::clone(&last);
    let answer = move |Path((from, to)): Path<(u64, u64)>,
                       Extension(sender): Extension<FileSender>| async move {
        *keep.lock().unwrap() = sender.clone();
        let window = sender.window(&file, size).expect("a window");
        let chunks = (from..to).step_by(STEP as usize).map(move |at| {
            let chunk = window.cached(at..(at + STEP).min(to));
            chunk.ok_or(io::Error::other("not cached"))
        });
        Response::builder()
            .header("content-length", to - from)
            .body(Body::from_stream(stream::iter(chunks)))
            .unwrap()
    };
    let server = Server::bind(&["127.0.0.1:0".parse().unwrap()])
        .await
        .unwrap();
    let address = server.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let router = Router::new().route("/{from}/{to}", get(answer));
    shutdown.spawn(server.run(router, shutdown.clone()));
    Serving {
        address,
        sender: last,
        _shutdown: shutdown,
    }
}

impl Serving {
    fn sent(&self) -> u64 {
        self.sender.lock().unwrap().sent()
    }
}

async fn ask(stream: &mut TcpStream, range: &Range<u64>) {
    let head = format!(
        "GET /{}/{} HTTP/1.1\r\nhost: x\r\n\r\n",
        range.start, range.end
    );
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// The body of the next answer.
async fn body(stream: &mut TcpStream, length: u64) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.expect("all of it");
    body
}

#[tokio::test]
async fn every_byte_of_any_range_goes_by_sendfile_and_is_the_right_one() {
    let bytes = noise(5_000_001, 1);
    let file = file(&bytes);
    let serving = serving(&file, bytes.len() as u64).await;
    let mut stream = TcpStream::connect(serving.address).await.unwrap();

    let mut expected = 0;
    for range in [
        0..5_000_001,
        1..2,
        4095..4097,
        262_143..2_000_003,
        5_000_000..5_000_001,
    ] {
        ask(&mut stream, &range).await;
        let length = range.end - range.start;
        let body = body(&mut stream, length).await;
        assert!(
            body == bytes[range.start as usize..range.end as usize],
            "{range:?}"
        );
        expected += length;
        // A hyper that copies what it is given would send all of it some other way.
        assert_eq!(serving.sent(), expected, "{range:?}");
    }
}

/// A packet of its own wakes who waits for it once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_comes_with_the_first_bytes() {
    const ASKED: usize = 100;
    let file = file(&noise(1 << 20, 8));
    let serving = serving(&file, 1 << 20).await;
    let address = serving.address;

    let asking = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let mut alone = 0;
        for _ in 0..ASKED {
            stream
                .write_all(b"GET /0/1000 HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap();
            let mut answer = [0; 4096];
            let read = stream.read(&mut answer).unwrap();
            alone += usize::from(answer[..read].ends_with(b"\r\n\r\n"));
            let head = answer.windows(4).position(|it| it == b"\r\n\r\n");
            let end = head.expect("a head") + 4 + 1000;
            stream.read_exact(&mut answer[read..end]).unwrap();
        }
        alone
    });

    // The kernel keeps it back for 0.2 s, which may pass on a busy machine.
    let alone = asking.await.unwrap();
    assert!(alone <= ASKED / 10, "{alone} of {ASKED} came alone");
}

#[tokio::test]
async fn answers_that_were_asked_for_at_once_come_in_order() {
    let bytes = noise(1_000_000, 2);
    let file = file(&bytes);
    let serving = serving(&file, bytes.len() as u64).await;
    let mut stream = TcpStream::connect(serving.address).await.unwrap();

    let ranges = [0..700_000, 300_000..300_001, 5..1_000_000];
    for range in &ranges {
        ask(&mut stream, range).await;
    }

    for range in ranges {
        let body = body(&mut stream, range.end - range.start).await;
        assert!(
            body == bytes[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
}

#[tokio::test]
async fn a_file_that_becomes_shorter_ends_the_body_with_a_fin() {
    let bytes = noise(8 << 20, 3);
    let file = file(&bytes);
    let serving = serving(&file, bytes.len() as u64).await;
    let mut stream = TcpStream::connect(serving.address).await.unwrap();
    ask(&mut stream, &(0..8 << 20)).await;
    let mut received = body(&mut stream, 1000).await;

    file.as_file().set_len(6 << 20).unwrap();

    let read = stream.read_to_end(&mut received).await;
    read.expect("a FIN, not a reset");
    assert!(received.len() <= 6 << 20, "{}", received.len());
    assert!(received == bytes[..received.len()]);
}

#[tokio::test]
async fn who_looks_at_the_bytes_finds_those_of_the_file() {
    let bytes = noise(3_000_000, 4);
    let file = file(&bytes);
    let window = sender().window(&Arc::new(file.reopen().unwrap()), 3_000_000);
    let window = window.unwrap();

    let part = window.cached(1_234_567..2_345_678).unwrap();
    drop(window);

    assert!(part == bytes[1_234_567..2_345_678]);
}

#[test]
fn what_is_not_in_memory_or_not_in_the_file_is_not_given_out() {
    let bytes = noise(4 << 20, 5);
    let file = file(&bytes);
    let shared = Arc::new(file.reopen().unwrap());
    // A growing file: there will be 8 MiB.
    let window = sender().window(&shared, 8 << 20).unwrap();

    assert!(window.cached(0..4 << 20).is_some());
    assert!(window.cached(0..(4 << 20) + 1).is_none(), "not written yet");
    assert!(window.cached(7..7).is_none());
    file.as_file().write_at(b"x", 4 << 20).unwrap();
    assert!(window.cached(0..(4 << 20) + 1).is_some());

    file.as_file().sync_all().unwrap();
    // Advice: what another core has in hand at the moment stays.
    let is_on_the_disk_alone = (0..1000).any(|_| {
        rustix::fs::fadvise(&shared, 0, None, Advice::DontNeed).unwrap();
        window.cached(1 << 20..2 << 20).is_none()
    });
    assert!(is_on_the_disk_alone);
    shared
        .read_exact_at(&mut vec![0; 1 << 20], 1 << 20)
        .unwrap();
    assert!(window.cached(1 << 20..2 << 20).is_some());
}

#[test]
fn small_files_and_connections_that_encrypt_have_no_window() {
    let file = file(&noise(1 << 20, 6));
    let file = Arc::new(file.reopen().unwrap());
    assert!(sender().window(&file, WORTHWHILE - 1).is_none());
    assert!(sender().window(&file, WORTHWHILE).is_some());
    assert!(FileSender::default().window(&file, 1 << 20).is_none());
}

#[test]
fn a_sender_forgets_windows_that_nobody_holds() {
    let file = file(&noise(1 << 20, 7));
    let file = Arc::new(file.reopen().unwrap());
    let sender = sender();
    let mut chunks = Vec::new();
    for _ in 0..100 {
        let window = sender.window(&file, 1 << 20).unwrap();
        chunks = vec![window.cached(0..10).unwrap()];
    }

    let at = chunks[0].as_ptr();
    assert!(sender.find(at).is_some());
    drop(chunks);

    assert!(sender.find(at).is_none());
    let windows = sender.windows.as_ref().unwrap();
    assert!(windows.open.lock().unwrap().len() <= 2);
}

#[tokio::test]
async fn packets_are_full_until_hyper_has_no_more() {
    let bytes = noise(1 << 20, 9);
    let file = file(&bytes);
    let sender = sender();
    let (stream, mut to) = connection().await;
    let mut io = SendingIo::new(stream, sender.clone());
    let is_corked = |io: &SendingIo| SockRef::from(&io.stream).tcp_cork().unwrap();
    let window = sender.window(&Arc::new(file.reopen().unwrap()), 1 << 20);
    let chunk = window.unwrap().cached(0..CORKED as u64 + 1).unwrap();

    let sent = io.write(&chunk).await.unwrap();
    assert!(is_corked(&io));
    io.flush().await.unwrap();
    assert!(!is_corked(&io));

    let mut received = vec![0; sent];
    to.read_exact(&mut received).await.unwrap();
    assert!(received == bytes[..sent]);
    io.write_all(&chunk[..CORKED]).await.unwrap();
    assert!(!is_corked(&io), "one call is enough for so much");
}
