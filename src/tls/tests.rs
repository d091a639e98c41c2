use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

struct Authority(CertifiedKey);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key_pair = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key_pair).unwrap();
        Self(CertifiedKey { cert, key_pair })
    }

    /// As cert-manager would: the authority, a certificate for `name` and its key.
    fn issue(&self, directory: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_string()]).unwrap();
        let cert = params.signed_by(&key, &self.0.cert, &self.0.key_pair);
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write(CA, &self.0.cert.pem());
        write(CERTIFICATE, &cert.unwrap().pem());
        write(KEY, &key.serialize_pem());
    }
}

/// What the client hears of the server in these two directories.
async fn met(client: &CertDir, server: &CertDir) -> Result<String, String> {
    let (ours, theirs) = duplex(1 << 16);
    let acceptor = TlsAcceptor::from(server.server().await.map_err(|e| e.to_string())?);
    tokio::spawn(async move {
        if let Ok(mut stream) = acceptor.accept(theirs).await {
            let _ = stream.write_all(b"here").await;
            let _ = stream.shutdown().await;
        }
    });
    let connector = TlsConnector::from(client.client().await.map_err(|e| e.to_string())?);
    let name = ServerName::try_from("peili.test").unwrap();
    let mut stream = connector
        .connect(name, ours)
        .await
        .map_err(|e| e.to_string())?;
    let mut heard = String::new();
    // TLS 1.3 tells a client of its refused certificate only when it reads.
    stream
        .read_to_string(&mut heard)
        .await
        .map_err(|e| e.to_string())?;
    Ok(heard)
}

#[tokio::test]
async fn both_sides_show_a_certificate_of_one_authority_and_a_renewed_one_counts_at_once() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (client, server) = (CertDir::new(ours.path()), CertDir::new(theirs.path()));
    let authority = Authority::new();
    authority.issue(ours.path(), "node.test");
    authority.issue(theirs.path(), "peili.test");
    assert_eq!(met(&client, &server).await.unwrap(), "here");

    // A client of somebody else is refused by the server, and that server by ours.
    let other = Authority::new();
    other.issue(ours.path(), "node.test");
    let refused = met(&client, &server).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    std::fs::write(ours.path().join(CA), authority.0.cert.pem()).unwrap();
    let refused = met(&client, &server).await.unwrap_err();
    assert!(refused.to_lowercase().contains("alert"), "{refused}");

    // The right authority with another name than the one that was asked for.
    authority.issue(ours.path(), "node.test");
    authority.issue(theirs.path(), "elsewhere.test");
    let refused = met(&client, &server).await.unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");

    authority.issue(theirs.path(), "peili.test");
    assert_eq!(met(&client, &server).await.unwrap(), "here");
}

#[tokio::test]
async fn what_cannot_be_used_is_named_with_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let dir = CertDir::new(directory.path());
    let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
    for (file, content, said) in [
        (CA, None, "cannot read "),
        (
            CA,
            Some(String::new()),
            "has no certificate in PEM: there is none in it",
        ),
        (CERTIFICATE, Some("?".into()), "has no certificate in PEM"),
        (KEY, Some("?".into()), "has no private key in PEM"),
        (KEY, Some("x".repeat(2 << 20)), "it is longer than 1 MiB"),
        (KEY, Some(key.serialize_pem()), "cannot be used"),
    ] {
        authority.issue(directory.path(), "peili.test");
        match content {
            Some(text) => std::fs::write(at(file), text).unwrap(),
            None => std::fs::remove_file(at(file)).unwrap(),
        }

        for error in [
            dir.client().await.map(drop).unwrap_err().to_string(),
            dir.server().await.map(drop).unwrap_err().to_string(),
        ] {
            assert!(error.contains(said), "{file}: {error}");
            assert!(
                error.contains(directory.path().to_str().unwrap()),
                "{error}"
            );
        }
    }
}
