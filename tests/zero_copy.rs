//! A blob's way through the whole registry: out of the page cache by sendfile, whatever lies around its body.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn, map_response};
use axum::response::Response;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use peili::content::layout::{self, Layout};
use peili::oci::Digest;
use peili::readiness::Readiness;
use peili::registry;
use peili::server::Answers as _;
use peili::server::sendfile::FileSender;
use peili::shutdown::Shutdown;
use peili::testing::router::FakeSwarm;
use peili::testing::{self, cool, noise};
use tempfile::TempDir;
use tokio::net::TcpStream;

const SIZE: usize = 5_000_001;

struct Served {
    address: SocketAddr,
    blob: Vec<u8>,
    digest: Digest,
    /// Of the connection that asked last.
    sender: Arc<Mutex<FileSender>>,
    _layout: TempDir,
    _shutdown: Shutdown,
}

/// A registry whose routes are changed by `around`, with one blob.
async fn served(around: impl Fn(Router) -> Router) -> Served {
    // Not below /tmp: a tmpfs does not say what is in memory, for all of it is.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let root = directory.path();
    let blob = noise(SIZE, 1);
    let digest = Digest::sha256(&blob);
    let blobs = root.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(
        root.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .unwrap();
    std::fs::write(blobs.join(digest.hex()), &blob).unwrap();
    let config = layout::Config {
        path: root.to_owned(),
    };
    let store = Layout::new(config, Readiness::new()).unwrap();

    let (server, address) = testing::registry::server().await;
    let metrics = prometheus::Registry::new();
    let mirror = testing::registry::mirror(FakeSwarm::new().join(address), &metrics);
    let routes = registry::router(testing::registry::over(store, mirror, &metrics));
    let routes = Router::new().fallback(move |request| routes.clone().answer(request));
    let sender = Arc::new(Mutex::new(FileSender::default()));
    let last = Arc::clone(&sender);
    let look = from_fn(move |request: Request, next: Next| {
        *last.lock().unwrap() = request.extensions().get().cloned().unwrap();
        next.run(request)
    });
    let shutdown = Shutdown::new();
    shutdown.spawn(server.run(around(routes).layer(look), shutdown.clone()));
    Served {
        address,
        blob,
        digest,
        sender,
        _layout: directory,
        _shutdown: shutdown,
    }
}

impl Served {
    async fn get(&self, range: &str) -> Bytes {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let path = format!("/v2/app/blobs/{}?ns=registry.test", self.digest);
        let request = hyper::Request::get(path)
            .header("host", "node")
            .header("range", range)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 206);
        answer.into_body().collect().await.unwrap().to_bytes()
    }

    /// Bytes of the last connection that went by sendfile.
    fn sent(&self) -> u64 {
        self.sender.lock().unwrap().sent()
    }
}

#[tokio::test]
async fn a_blob_and_its_parts_go_by_sendfile() {
    let served = served(|routes| routes).await;
    for (range, part) in [
        ("bytes=0-", 0..SIZE),
        ("bytes=4097-2000003", 4097..2_000_004),
        ("bytes=-1", SIZE - 1..SIZE),
    ] {
        let got = served.get(range).await;
        assert!(got == served.blob[part.clone()], "{range}");
        assert_eq!(served.sent(), part.len() as u64, "{range}");
    }
}

#[tokio::test]
async fn a_layer_around_the_body_gets_the_right_bytes() {
    let copied = map_response(|response: Response| async {
        response.map(|body| {
            let chunks = body.into_data_stream();
            Body::from_stream(chunks.map(|chunk| chunk.map(|chunk| chunk.to_vec())))
        })
    });
    let served = served(|routes| routes.layer(copied.clone())).await;

    let got = served.get("bytes=77-").await;

    assert!(got == served.blob[77..]);
    assert_eq!(served.sent(), 0, "the layer's own bytes were sent");
}

#[tokio::test]
async fn what_is_on_the_disk_alone_is_read_and_right() {
    let served = served(|routes| routes).await;
    let path = served
        ._layout
        .path()
        .join("blobs/sha256")
        .join(served.digest.hex());
    let file = std::fs::File::open(path).unwrap();
    cool(&file);

    let got = served.get("bytes=0-").await;

    assert!(got == served.blob[..]);
}
