//! TLS configurations out of files that somebody renews: a directory with `ca.crt`, `tls.crt` and `tls.key`, as
//! cert-manager writes it into a Secret and the kubelet mounts it.
//!
//! The files are read for each connection, so a renewed certificate counts from the next one on, without a restart and
//! without a watch that could be missed. It costs three small files and a signature, for connections that are rare.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::ClientConfig;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore};

const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// A bundle of all public authorities is some 300 KiB; what is larger is another file.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} has no {what}: {reason}", path = path.display())]
    Pem {
        path: PathBuf,
        what: &'static str,
        reason: String,
    },
    /// The two files do not belong together, or the key is of a kind that is not known.
    #[error("{certificate} and {key} in {directory} cannot be used: {source}", certificate = CERTIFICATE, key = KEY, directory = directory.display())]
    Pair {
        directory: PathBuf,
        source: rustls::Error,
    },
    #[error("{path} has no usable certificate authority: {source}", path = path.display())]
    Authority {
        path: PathBuf,
        source: VerifierBuilderError,
    },
    #[error(
        "no certificate authorities are found on this machine; the variable SSL_CERT_FILE can name a file of them{0}"
    )]
    NoRoots(String),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// A directory with this side's certificate and the authority of the other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertDir(PathBuf);

struct Material {
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl CertDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// For asking: the server must be of `ca.crt`, and is shown `tls.crt`.
    pub async fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        self.read(|material| {
            ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(material.roots)
                .with_client_auth_cert(material.chain, material.key)
                .map_err(|source| self.pair(source))
        })
        .await
        .map(Arc::new)
    }

    /// For answering: whoever asks must show a certificate of `ca.crt`.
    pub async fn server(&self) -> Result<Arc<ServerConfig>, Error> {
        self.read(|material| {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(material.roots.into(), provider())
                    .build()
                    .map_err(|source| Error::Authority {
                        path: self.0.join(CA),
                        source,
                    })?;
            ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(verifier)
                .with_single_cert(material.chain, material.key)
                .map_err(|source| self.pair(source))
        })
        .await
        .map(Arc::new)
    }

    /// A second time where certificate and key did not fit: they are two files, and may have been renewed between one
    /// read and the other.
    async fn read<T>(&self, build: impl Fn(Material) -> Result<T, Error>) -> Result<T, Error> {
        match build(self.material().await?) {
            Err(Error::Pair { .. }) => build(self.material().await?),
            other => other,
        }
    }

    async fn material(&self) -> Result<Material, Error> {
        let mut roots = RootCertStore::empty();
        let path = self.0.join(CA);
        for authority in certificates(&path).await? {
            roots.add(authority).map_err(|e| no_certificate(&path, e))?;
        }
        let path = self.0.join(KEY);
        let key = PrivateKeyDer::from_pem_slice(&read(&path).await?);
        Ok(Material {
            roots,
            chain: certificates(&self.0.join(CERTIFICATE)).await?,
            key: key.map_err(|e| Error::Pem {
                path,
                what: "private key in PEM",
                reason: e.to_string(),
            })?,
        })
    }

    fn pair(&self, source: rustls::Error) -> Error {
        Error::Pair {
            directory: self.0.clone(),
            source,
        }
    }
}

/// For asking a server with a certificate that this machine trusts, without showing one.
pub async fn system_client() -> Result<Arc<ClientConfig>, Error> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.map_err(|e| Error::NoRoots(format!(" ({e})")))?;
    let mut roots = RootCertStore::empty();
    // One that cannot be used is of no server that could be reached by it.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first();
        return Err(Error::NoRoots(
            reason.map_or_else(String::new, |e| format!(" ({e})")),
        ));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Said each time: the process has no default one, so that no other library can choose it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path).await?;
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if all.is_empty() => Err(no_certificate(path, "there is none in it")),
        Ok(all) => Ok(all),
        Err(e) => Err(no_certificate(path, e)),
    }
}

fn no_certificate(path: &Path, reason: impl ToString) -> Error {
    Error::Pem {
        path: path.to_path_buf(),
        what: "certificate in PEM",
        reason: reason.to_string(),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    use tokio::io::AsyncReadExt as _;
    let read = async {
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(path).await?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).await?;
        match bytes.len() as u64 {
            ..=MAX_FILE => Ok(bytes),
            _ => Err(io::Error::other("it is longer than 1 MiB")),
        }
    };
    read.await.map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })
}

#[cfg(test)]
mod tests;
