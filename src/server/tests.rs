use super::*;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpSocket, TcpStream};

/// A connection: the end that asked for it, and the other.
pub(super) async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (from, to) = tokio::join!(TcpStream::connect(address), listener.accept());
    (from.unwrap(), to.unwrap().0)
}

async fn serving(router: Router) -> (SocketAddr, Shutdown) {
    let server = Server::bind(&["127.0.0.1:0".parse().unwrap()])
        .await
        .unwrap();
    let address = server.local_addr().unwrap();
    let shutdown = Shutdown::new();
    shutdown.spawn(server.run(router, shutdown.clone()));
    (address, shutdown)
}

async fn ask(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    stream
}

/// What comes of a body of these chunks and then an error.
async fn failing_after(chunks: usize, size: usize) -> Vec<u8> {
    let body = move |axum::Extension(flushes): axum::Extension<Flushes>| async move {
        let chunks = stream::iter((0..chunks).map(move |_| Ok(Bytes::from(vec![7; size]))))
            .chain(stream::iter([Err(io::Error::other("the source died"))]));
        axum::response::Response::builder()
            .header("content-length", 100_000_000)
            .body(Body::from_stream(flushes.before_the_end_of(chunks)))
            .unwrap()
    };
    let (address, _shutdown) = serving(Router::new().route("/", get(body))).await;
    let mut received = Vec::new();
    let read = ask(address).await.read_to_end(&mut received).await;
    read.expect("a FIN, not a reset");
    let head = received.windows(4).position(|w| w == b"\r\n\r\n");
    received.split_off(head.expect("a head") + 4)
}

#[tokio::test]
async fn a_failing_body_ends_with_a_fin_behind_every_byte_it_had() {
    // hyper would drop the first of these unsent, and send headers without a byte.
    for (chunks, size) in [(1, 10), (3, 1000), (20, 100_000)] {
        assert_eq!(failing_after(chunks, size).await.len(), chunks * size);
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_last_byte_of_a_connection_that_closes() {
    const SIZE: usize = 40 << 20;
    let body = || async { Bytes::from(vec![7; SIZE]) };
    let (address, shutdown) = serving(Router::new().route("/", get(body))).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    // Its first byte is there, its buffers fill, and the server is told to end. (Nothing is waited for: the longer
    // the client takes, the likelier a server that does not wait for it is found out.)
    let mut received = vec![0; 1];
    client.read_exact(&mut received).await.unwrap();
    shutdown.drain.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;

    client
        .read_to_end(&mut received)
        .await
        .expect("a FIN, not a reset");

    let head = received.windows(4).position(|w| w == b"\r\n\r\n");
    assert_eq!(received.len() - head.unwrap() - 4, SIZE);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_written_megabytes_for() {
    const CHUNK: usize = 256 << 10;
    let produced = Arc::new(AtomicUsize::new(0));
    let counted = produced.clone();
    let body = move || async move {
        Body::from_stream(stream::repeat_with(move || {
            counted.fetch_add(CHUNK, Ordering::Relaxed);
            io::Result::Ok(Bytes::from(vec![7; CHUNK]))
        }))
    };
    let (address, _shutdown) = serving(Router::new().route("/", get(body))).await;
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(CHUNK as u32).unwrap();
    let mut client = client.connect(address).await.unwrap();
    let head = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(head).await.unwrap();
    client.read_u8().await.unwrap();

    // Until nothing more is taken of the body.
    let (mut before, mut now) = (0, produced.load(Ordering::Relaxed));
    while now > before {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (before, now) = (now, produced.load(Ordering::Relaxed));
    }

    // The client's buffer (twice what it asks for), ours, and one chunk between them. It was 3.5 MiB.
    assert!(
        now <= 2 * CHUNK + buffers::LEAST_UNSENT as usize + 2 * CHUNK,
        "{now}"
    );
}

#[tokio::test]
async fn who_sends_a_head_byte_by_byte_is_not_waited_for() {
    let mut server = Server::bind(&["127.0.0.1:0".parse().unwrap()])
        .await
        .unwrap();
    server.head_timeout = Duration::from_millis(300);
    let address = server.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let router = Router::new().route("/", get(|| async { "here" }));
    shutdown.spawn(server.run(router, shutdown.clone()));
    let mut loris = TcpStream::connect(address).await.unwrap();

    let began = tokio::time::Instant::now();
    let ended = loop {
        // It never gets to the end of its head.
        let sent = loris.write_all(b"x").await;
        let read = timeout(Duration::from_millis(50), loris.read_u8()).await;
        if sent.is_err() || read.is_ok() {
            break began.elapsed();
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "still waited for"
        );
    };

    assert!(ended >= Duration::from_millis(250), "{ended:?}");
    let mut received = Vec::new();
    let mut other = ask(address).await;
    other.read_to_end(&mut received).await.unwrap();
    assert!(received.ends_with(b"here"));
}

#[tokio::test]
async fn unread_input_does_not_turn_the_end_into_a_reset() {
    let router = Router::new().route("/", get(|| async { "enough" }));
    let (address, _shutdown) = serving(router).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 500000\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&[b'x'; 300_000]).await.unwrap();

    let mut received = Vec::new();
    let read = client.read_to_end(&mut received).await;

    read.expect("a FIN, not a reset");
    assert!(String::from_utf8(received).unwrap().ends_with("enough"));
}

#[tokio::test]
async fn at_the_cut_a_body_ends_short_with_a_fin() {
    let router = Router::new().route(
        "/",
        get(|| async {
            let endless = stream::iter([io::Result::Ok(Bytes::from("first"))]);
            Body::from_stream(endless.chain(stream::pending()))
        }),
    );
    let (address, shutdown) = serving(router).await;
    let mut client = ask(address).await;
    let mut received = vec![0; 1];
    client.read_exact(&mut received).await.unwrap();

    let finished = tokio::spawn(async move { shutdown.finish(Duration::ZERO).await });
    client
        .read_to_end(&mut received)
        .await
        .expect("a FIN, not a reset");
    drop(client);

    assert!(String::from_utf8(received).unwrap().contains("first"));
    assert_eq!(finished.await.unwrap(), 0);
}

#[tokio::test]
async fn a_drain_lets_the_body_under_way_finish_and_takes_no_new_connection() {
    let (more, chunks) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(1);
    let chunks = Arc::new(std::sync::Mutex::new(Some(chunks)));
    let router = Router::new().route(
        "/",
        get(move || async move {
            let chunks = chunks.lock().unwrap().take().unwrap();
            Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(chunks))
        }),
    );
    let (address, shutdown) = serving(router).await;
    let mut client = ask(address).await;
    more.send(Ok("first".into())).await.unwrap();
    let mut received = vec![0; 1];
    client.read_exact(&mut received).await.unwrap();

    let drained = tokio::spawn(async move { shutdown.finish(Duration::from_secs(20)).await });
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    more.send(Ok("last".into())).await.unwrap();
    drop(more);
    client.read_to_end(&mut received).await.unwrap();
    drop(client);

    assert!(String::from_utf8(received).unwrap().contains("last"));
    assert_eq!(drained.await.unwrap(), 0);
}
