//! HTTP bootstrap: whole nodes in one process, which find each other by a URL, plain and with certificates on both sides.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use peili::app::{App, Config, Introduction};
use peili::config::Store;
use peili::content::layout;
use peili::mirror::{self, InFlightSharing};
use peili::routing::bootstrap::{Bootstrap, Bootstrapper, http};
use peili::routing::kad;
use peili::testing::conformance::routing::eventually;
use peili::tls::CertDir;
use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

struct Node {
    registry: SocketAddr,
    metrics: SocketAddr,
    introduction: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<anyhow::Result<()>>,
    _layout: TempDir,
}

impl Node {
    /// At 127.0.1.x; its `/id` is of `certificates`, if there are any.
    async fn start(number: u8, certificates: Option<&Path>, bootstrap: Option<Bootstrap>) -> Self {
        let ip = IpAddr::from([127, 0, 1, number]);
        let at = |port| vec![SocketAddr::new(ip, port)];
        Self::at(ip, at(0), certificates, bootstrap).await
    }

    async fn at(
        ip: IpAddr,
        introduction: Vec<SocketAddr>,
        certificates: Option<&Path>,
        bootstrap: Option<Bootstrap>,
    ) -> Self {
        let layout = empty_layout();
        let anywhere = vec![SocketAddr::new(ip, 0)];
        let app = App::bind(Config {
            registry: anywhere.clone(),
            admin: anywhere.clone(),
            debug_web: true,
            introduction: Some(Introduction {
                listen: introduction,
                certificates: certificates.map(CertDir::new),
            }),
            store: Store::OciLayout(layout::Config {
                path: layout.path().to_path_buf(),
            }),
            routing: kad::Config {
                listen: anywhere,
                advertise: vec![ip],
                registry_port: 5000,
                data_dir: None,
                bootstrap,
                resolve_timeout: Duration::from_millis(20),
                zone: None,
                members: None,
            },
            mirror: mirror::Config {
                retries: 3,
                zone: None,
            },
            in_flight_sharing: InFlightSharing::Off,
            filter: Default::default(),
            basic_auth: None,
            token: None,
            max_uploads: 64,
            grace_period: Duration::from_secs(5),
            doctor: None,
        });
        let app = app.await.unwrap();
        let (registry, metrics) = (app.registry_addr().unwrap(), app.metrics_addr().unwrap());
        let introduction = app.introduction_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.run(async {
            let _ = stopped.await;
        }));
        Self {
            registry,
            metrics,
            introduction,
            stop: Some(stop),
            task,
            _layout: layout,
        }
    }

    async fn ready(&self) {
        eventually("the node is ready", async || {
            let answer = get(self.registry, "/readyz").await;
            answer.starts_with("HTTP/1.1 200").then_some(())
        })
        .await;
    }

    async fn knows(&self, peers: usize) {
        let line = format!("\npeili_peers{{state=\"known\"}} {peers}\n");
        eventually("the node knows the others", async || {
            get(self.metrics, "/metrics")
                .await
                .contains(&line)
                .then_some(())
        })
        .await;
    }

    async fn end(mut self) {
        let _ = self.stop.take().unwrap().send(());
        (&mut self.task).await.unwrap().unwrap();
    }
}

fn empty_layout() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    write("index.json", r#"{"schemaVersion":2,"manifests":[]}"#);
    dir
}

/// What is answered, head and all; what the other side closes is no answer.
async fn get(at: SocketAddr, path: &str) -> String {
    let mut said = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(at).await {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.read_to_end(&mut said).await;
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn by_url(url: String, cert_dir: Option<&Path>) -> Option<Bootstrap> {
    Some(Bootstrap::Http(http::Config {
        url: url.parse().unwrap(),
        cert_dir: cert_dir.map(PathBuf::from),
    }))
}

/// A directory as cert-manager fills it: a certificate for `ip`, of this authority.
fn issue(authority: &CertifiedKey, directory: &Path, ip: &str) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([ip.to_string()]).unwrap();
    let certificate = params
        .signed_by(&key, &authority.cert, &authority.key_pair)
        .unwrap();
    for (name, text) in [
        ("ca.crt", authority.cert.pem()),
        ("tls.crt", certificate.pem()),
        ("tls.key", key.serialize_pem()),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

fn authority() -> CertifiedKey {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key_pair = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key_pair).unwrap();
    CertifiedKey { cert, key_pair }
}

#[tokio::test]
async fn a_node_is_found_by_a_url_and_names_its_neighbours_there() {
    let first = Node::start(1, None, None).await;
    let url = format!("http://{}/id", first.introduction);
    let second = Node::start(2, None, by_url(url, None)).await;
    second.ready().await;
    second.knows(1).await;
    first.knows(1).await;

    let said = get(first.introduction, "/id").await;

    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    let entries: serde_json::Value = serde_json::from_str(body).unwrap();
    let names = |n: usize, ip: &str| {
        let address = entries[n]["Addrs"][0].as_str().unwrap_or_default();
        assert_eq!(entries[n]["ID"], "");
        assert!(address.starts_with(&format!("/ip4/{ip}/tcp/")), "{body}");
    };
    names(0, "127.0.1.1");
    names(1, "127.0.1.2");
    assert_eq!(entries.as_array().unwrap().len(), 2);

    // Whoever asks the second finds the first, though that one is asked no more.
    let url = format!("http://{}/id", second.introduction);
    let third = Node::start(3, None, by_url(url, None)).await;
    third.knows(2).await;
    for node in [first, second, third] {
        node.end().await;
    }
}

#[tokio::test]
async fn a_node_that_is_led_to_itself_is_ready_alone() {
    let ip = IpAddr::from([127, 0, 1, 11]);
    let probe = std::net::TcpListener::bind((ip, 0)).unwrap();
    let itself = probe.local_addr().unwrap();
    drop(probe);
    let url = format!("http://{itself}/id");

    let node = Node::at(ip, vec![itself], None, by_url(url, None)).await;

    node.ready().await;
    node.knows(0).await;
    node.end().await;
}

#[tokio::test]
async fn with_certificates_both_sides_show_one_and_renewed_ones_count_without_a_restart() {
    let [first_dir, second_dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (ours, others) = (authority(), authority());
    issue(&ours, first_dir.path(), "127.0.1.21");
    issue(&others, second_dir.path(), "127.0.1.22");
    let first = Node::start(21, Some(first_dir.path()), None).await;
    let url = format!("https://{}/id", first.introduction);
    let second = Node::start(22, None, by_url(url, Some(second_dir.path()))).await;

    // Of another authority: it is not served, and says what is wrong.
    eventually("the reason is told", async || {
        let said = get(second.registry, "/readyz").await;
        said.contains("no TLS connection: invalid peer certificate")
            .then_some(())
    })
    .await;
    // Nor is one that speaks plainly: an alert of TLS is all that it hears.
    let said = get(first.introduction, "/id").await;
    assert!(
        !said.contains("HTTP/1.1") && !said.contains("Addrs"),
        "{said:?}"
    );

    // The directory of the second is renewed, and it goes in.
    issue(&ours, second_dir.path(), "127.0.1.22");
    second.ready().await;
    second.knows(1).await;

    // Then that of the first, of the authority to which the cluster moves.
    issue(&others, first_dir.path(), "127.0.1.21");
    issue(&others, second_dir.path(), "127.0.1.22");
    let url = format!("https://{}/id", first.introduction);
    let third = Node::start(23, None, by_url(url, Some(second_dir.path()))).await;
    third.knows(2).await;
    for node in [first, second, third] {
        node.end().await;
    }
}

/// The authorities of a machine are those of a whole process: this test, run again with a URL.
#[test]
fn child_that_asks_a_url() {
    let Ok(url) = std::env::var("PEILI_TEST_URL") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bootstrapper = Bootstrapper::new(by_url(url, None).unwrap()).unwrap();
    match runtime.block_on(bootstrapper.find(&[])) {
        Ok(found) => println!("said: {:?}", found.candidates),
        Err(error) => println!("said: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_of_its_own_a_node_trusts_whom_its_machine_trusts() {
    let (dir, trusted) = (tempfile::tempdir().unwrap(), authority());
    issue(&trusted, dir.path(), "127.0.1.31");
    let other = dir.path().join("other.crt");
    std::fs::write(&other, authority().cert.pem()).unwrap();
    // Any web server with a file in it; it asks nobody for a certificate.
    let chain = CertificateDer::pem_file_iter(dir.path().join("tls.crt")).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.path().join("tls.key")).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.1.31:0").await.unwrap();
    let url = format!("https://{}/peers.json", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let body = r#"[{"ID":"","Addrs":["/ip4/192.0.2.7/tcp/5001"]}]"#;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head + body).as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    // One of ours beside it, which serves nobody without a certificate.
    let ours = tempfile::tempdir().unwrap();
    issue(&trusted, ours.path(), "127.0.1.32");
    let node = Node::start(32, Some(ours.path()), None).await;
    let strict = format!("https://{}/id", node.introduction);
    let ca = dir.path().join("ca.crt");
    for (url, authorities, expected) in [
        (&url, &ca, "said: [/ip4/192.0.2.7/tcp/5001]"),
        (&url, &other, "no TLS connection: invalid peer certificate"),
        (
            &url,
            &dir.path().join("absent"),
            "no certificate authorities are found on this machine",
        ),
        (&strict, &ca, "received fatal alert"),
    ] {
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["child_that_asks_a_url", "--exact", "--nocapture"])
            .env("PEILI_TEST_URL", url)
            .env("SSL_CERT_FILE", authorities)
            .env_remove("SSL_CERT_DIR")
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(expected), "{}: {said}", authorities.display());
    }
    node.end().await;
}
