use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::dns::fake::NameServer;
use super::*;

#[test]
fn urls_are_read_with_their_ports_and_paths() {
    for (text, tls, host, port, path, written) in [
        (
            "http://peers/id",
            false,
            "peers",
            80,
            "/id",
            "http://peers/id",
        ),
        (
            "https://peers.test.",
            true,
            "peers.test.",
            443,
            "/",
            "https://peers.test./",
        ),
        (
            "https://10.0.0.1:8443/a?b=c",
            true,
            "10.0.0.1",
            8443,
            "/a?b=c",
            "https://10.0.0.1:8443/a?b=c",
        ),
        (
            "http://[fd00::1]:5002/id",
            false,
            "fd00::1",
            5002,
            "/id",
            "http://[fd00::1]:5002/id",
        ),
        (
            "http://[fd00::1]/id",
            false,
            "fd00::1",
            80,
            "/id",
            "http://[fd00::1]/id",
        ),
        (
            "http://peers:80/id",
            false,
            "peers",
            80,
            "/id",
            "http://peers/id",
        ),
    ] {
        let url: Url = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(
            (url.tls, url.host.as_str(), url.port, url.path.as_str()),
            (tls, host, port, path),
            "{text}"
        );
        assert_eq!(url.to_string(), written);
    }
    for (text, reason) in [
        ("peers/id", "is no URL"),
        ("peers:5002", "begins with neither"),
        ("ftp://peers/id", "begins with neither"),
        ("http://:80/id", ""),
        ("http://", "is no URL"),
        ("http://user:secret@peers/id", "has a user in it"),
        ("http://peers:0/id", "port"),
        ("http://peers:70000/id", ""),
    ] {
        let error = text.parse::<Url>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

/// Of a URL whose host is an address: its name server knows nothing.
async fn client(url: &str) -> Client {
    let resolver = NameServer::start().await.resolver(&[]);
    let url = url.parse().unwrap();
    let cert_dir = None;
    Client::new(Config { url, cert_dir }, resolver)
}

/// What is made of an answer that is sent as it is; it is sent again to whoever asks again.
async fn made_of(answer: Vec<u8>) -> Result<Vec<String>, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/id", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let _ = stream.write_all(&answer).await;
        }
    });
    let client = client(&url).await;
    let found = client.ask().await.map_err(|e| e.to_string())?;
    Ok(found.iter().map(Multiaddr::to_string).collect())
}

fn ok(body: impl Into<Vec<u8>>) -> Vec<u8> {
    let body = body.into();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}

#[tokio::test]
async fn an_answer_of_spegels_or_ours_names_peers() {
    for (body, peers) in [
        (
            r#"[{"ID":"","Addrs":["/ip4/10.0.0.1/tcp/5001","/ip6/fd00::1/tcp/5001"]}]"#,
            &["/ip4/10.0.0.1/tcp/5001", "/ip6/fd00::1/tcp/5001"][..],
        ),
        (
            // Some that are of no use, a field that is new, a list that Go has left out.
            r#"[{"ID":"x","Addrs":["/dns4/a/tcp/1","/ip4/10.0.0.1/tcp/5001"],"New":1},{"ID":"","Addrs":null},{}]"#,
            &["/ip4/10.0.0.1/tcp/5001"],
        ),
        ("[]", &[]),
        (r#"[{"ID":"","Addrs":[]}]"#, &[]),
    ] {
        assert_eq!(made_of(ok(body)).await.unwrap(), peers, "{body}");
    }
    let many: Vec<String> = (0..1000)
        .map(|n| format!("\"/ip4/10.0.{}.{}/tcp/5001\"", n / 250, n % 250))
        .collect();
    let many = format!(r#"[{{"ID":"","Addrs":[{}]}}]"#, many.join(","));
    assert_eq!(made_of(ok(many)).await.unwrap().len(), MAX_ADDRESSES);
}

#[tokio::test]
async fn garbage_is_an_error_that_says_what_it_is() {
    let long = "\"".repeat(1 << 20);
    for (answer, said) in [
        (ok("<html>"), "is no list of peers such as"),
        (ok(""), "is no list of peers"),
        (ok(r#"{"ID":"","Addrs":[]}"#), "is no list of peers"),
        (ok(b"\xff\xfe\x00".as_slice()), "is no list of peers"),
        (ok("[".repeat(60_000)), "is no list of peers"),
        (
            ok(r#"[{"Addrs":["10.0.0.1:5001"]}]"#),
            "none of its 1 addresses can be used; \"10.0.0.1:5001\" is no address",
        ),
        (ok(long), "longer than 65536 bytes"),
        (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "it is answered 503",
        ),
        (
            b"HTTP/1.1 301 Moved\r\nlocation: https://a/\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "answered 301 Moved Permanently to \"https://a/\", and nobody is followed",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), "invalid HTTP"),
        (vec![], ""),
    ] {
        let error = made_of(answer).await.unwrap_err();
        assert!(error.contains(said), "{error}");
        assert!(error.len() < 1000, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_answers_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/id", listener.local_addr().unwrap());
    let client = client(&url).await;

    let error = client.ask().await.unwrap_err();

    assert!(matches!(error, Error::Timeout), "{error}");
    drop(listener);
}
