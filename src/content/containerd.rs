//! ContentStore over containerd's socket and its blob directory.
//!
//! Blobs are opened by path, so that serving them costs containerd nothing and goes on while it restarts; where the
//! path is not readable they come through the socket. The channel connects when it is used and again after every
//! break, through the path of the socket: a bind-mounted socket *file* would be dead for ever after containerd's first
//! restart, so it is the directory that must be mounted.

mod images;
mod paths;
pub mod told;
mod version;
mod watch;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::{
    GetImageRequest, InfoRequest, PluginsRequest, ReadContentRequest,
    content_client::ContentClient, events_client::EventsClient, images_client::ImagesClient,
    introspection_client::IntrospectionClient,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower::service_fn;

use super::{Blob, ContentStore, ReadRange, Snapshot, StoreError};
use crate::inflight::ContentRoot;
use crate::oci::{Digest, TagName};
use crate::readiness::Readiness;
use paths::Opened;
pub use version::version;

/// All images of a node arrive in one message; a thousand of them take about 1 MiB. containerd's own Go client allows
/// this much (defaults.DefaultMaxRecvMsgSize).
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// The containerd namespace whose images are shared; others are ignored. Kubernetes uses `k8s.io`.
    pub namespace: String,
    /// Where the content store is mounted here; by default where containerd says that it is.
    pub content_path: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("containerd namespace {0:?} has characters that cannot be sent")]
    Namespace(String),
}

/// Cloneable handle on one containerd. Nothing is connected before it is used.
#[derive(Clone)]
pub struct Containerd(Arc<Inner>);

struct Inner {
    config: Config,
    /// Made anew when containerd did not answer: a connection that hangs does not end by itself.
    channel: RwLock<Channel>,
    namespace: MetadataValue<Ascii>,
    /// As configured, or what introspection said last; kept through a restart of containerd, so that blobs are served
    /// meanwhile.
    root: ContentRoot,
    readiness: Readiness,
}

impl Containerd {
    /// `readiness` hears when containerd is awaited.
    pub fn new(config: Config, readiness: Readiness) -> Result<Self, ConfigError> {
        let namespace = config
            .namespace
            .parse()
            .map_err(|_| ConfigError::Namespace(config.namespace.clone()))?;
        let channel = RwLock::new(channel(&config.socket));
        let root = match &config.content_path {
            Some(path) => ContentRoot::known(path.clone()),
            None => ContentRoot::unknown(),
        };
        Ok(Self(Arc::new(Inner {
            config,
            channel,
            namespace,
            root,
            readiness,
        })))
    }

    /// The directory above `blobs/` and `ingest/`: known from the configuration, or as soon as containerd has said it.
    pub fn content_root(&self) -> ContentRoot {
        self.0.root.clone()
    }
}

/// Connects when it is used, and again after every break.
fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    // The address is never used: the connector goes to the socket.
    Endpoint::from_static("http://containerd.invalid").connect_with_connector_lazy(service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { io::Result::Ok(TokioIo::new(UnixStream::connect(socket).await?)) }
        },
    ))
}

#[async_trait]
impl ContentStore for Containerd {
    async fn resolve(&self, tag: &TagName) -> Result<Option<Digest>, StoreError> {
        let request = self.0.namespaced(GetImageRequest {
            name: tag.to_string(),
        });
        let image = match self.0.images().get(request).await {
            Ok(response) => response.into_inner().image,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.0.error("images.Get", &status)),
        };
        let Some(target) = image.and_then(|image| image.target) else {
            return Ok(None);
        };
        target
            .digest
            .parse()
            .map(Some)
            .map_err(|e| StoreError::Failed(format!("image {tag}: {e}")))
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        match self.0.root().await {
            Ok(root) => match paths::open(&root, digest).await {
                Ok(Opened::Blob(blob)) => Ok(Some(blob)),
                Ok(Opened::Absent) => Ok(None),
                Ok(Opened::NotReadable) => self.0.open_by_socket(digest).await,
                Err(e) => Err(StoreError::Failed(format!(
                    "opening {digest} below {}: {e}",
                    root.display()
                ))),
            },
            Err(e) => Err(e),
        }
    }

    fn watch(&self) -> BoxStream<'static, Snapshot> {
        watch::snapshots(self.0.clone())
    }
}

impl Inner {
    fn channel(&self) -> Channel {
        self.channel
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn reconnect(&self) {
        *self.channel.write().unwrap_or_else(PoisonError::into_inner) =
            channel(&self.config.socket);
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel())
    }

    /// containerd wants its namespace as metadata of each call.
    fn namespaced<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    fn error(&self, call: &str, status: &Status) -> StoreError {
        let text = format!(
            "{call} at {}: {}",
            self.config.socket.display(),
            Explained(status)
        );
        match status.code() {
            // tonic gives `Unknown` for a connection that broke under a call.
            Code::Unavailable | Code::Unknown | Code::Cancelled => StoreError::Unreachable(text),
            _ => StoreError::Failed(text),
        }
    }

    /// The directory above `blobs/` and `ingest/`: as configured, else as containerd said last, else as it says now.
    async fn root(&self) -> Result<PathBuf, StoreError> {
        match self.root.get() {
            Some(root) => Ok(root),
            None => self.learn_root().await,
        }
    }

    /// Asks introspection where the content plugin keeps its files (exports["root"], on containerd 1.6, 1.7 and 2.x).
    async fn learn_root(&self) -> Result<PathBuf, StoreError> {
        let request = PluginsRequest {
            filters: vec![r#"type=="io.containerd.content.v1""#.into()],
        };
        let plugins = IntrospectionClient::new(self.channel())
            .plugins(request)
            .await
            .map_err(|status| self.error("introspection.Plugins", &status))?
            .into_inner()
            .plugins;
        let root: PathBuf = plugins
            .into_iter()
            .find_map(|mut plugin| plugin.exports.remove("root"))
            .ok_or_else(|| {
                StoreError::Failed(
                    "containerd does not say where its content is: name it with \
                     --containerd-content-path"
                        .into(),
                )
            })?
            .into();
        self.root.set(root.clone());
        Ok(root)
    }

    async fn open_by_socket(self: &Arc<Self>, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let request = self.namespaced(InfoRequest {
            digest: digest.to_string(),
        });
        let info = match self.content().info(request).await {
            Ok(response) => response.into_inner().info,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.error("content.Info", &status)),
        };
        let size = info.and_then(|info| u64::try_from(info.size).ok());
        Ok(size.map(|size| {
            let reader = SocketBlob {
                containerd: self.clone(),
                digest: digest.clone(),
            };
            Blob::from_reader(reader, size)
        }))
    }
}

/// A blob that is read through containerd's API.
struct SocketBlob {
    containerd: Arc<Inner>,
    digest: Digest,
}

impl ReadRange for SocketBlob {
    fn read_range(&self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let containerd = self.containerd.clone();
        let request = containerd.namespaced(ReadContentRequest {
            digest: self.digest.to_string(),
            offset: range.start as i64,
            size: (range.end - range.start) as i64,
        });
        stream::once(async move { containerd.content().read(request).await })
            .map_ok(|response| response.into_inner().map_ok(|message| message.data.into()))
            .try_flatten()
            .map_err(io::Error::other)
            .boxed()
    }
}

/// A status with the reason at its bottom: tonic's own text for a socket that is not there is "transport error".
struct Explained<'a>(&'a Status);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0.message();
        f.write_str(message)?;
        let causes = std::iter::successors(std::error::Error::source(self.0), |e| e.source());
        match causes.last().map(ToString::to_string) {
            Some(reason) if !message.contains(&reason) => write!(f, ": {reason}"),
            _ => Ok(()),
        }
    }
}
