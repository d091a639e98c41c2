//! The container runtime interface, as kubelet speaks it: the few messages that a pull needs, written by hand.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

pub mod pods;

/// kubelet gives a pull minutes; a test that takes longer than this has failed.
const PULL_TIMEOUT: Duration = Duration::from_secs(180);
/// The other calls are answered from memory.
const TIMEOUT: Duration = Duration::from_secs(10);

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const REMOVE: &str = "/runtime.v1.ImageService/RemoveImage";
const LIST: &str = "/runtime.v1.ImageService/ListImages";
const VERSION: &str = "/runtime.v1.RuntimeService/Version";

#[derive(Clone, PartialEq, Message)]
struct ImageReference {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageReference>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

/// Whom a registry knows: what an imagePullSecret says.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    pub user: &'static str,
    pub password: &'static str,
}

impl Login {
    /// As basic auth sends it.
    pub fn header(&self) -> String {
        let login = format!("{}:{}", self.user, self.password);
        format!("Basic {}", STANDARD.encode(login))
    }
}

/// RemoveImageRequest and ImageFilter are alike in what is used of them.
#[derive(Clone, PartialEq, Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageReference>,
}

impl OfImage {
    fn new(image: &str) -> Self {
        let image = image.to_owned();
        Self {
            image: Some(ImageReference { image }),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    images: Vec<CriImage>,
}

/// An image as the CRI lists it.
#[derive(Clone, PartialEq, Message)]
pub struct CriImage {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub repo_digests: Vec<String>,
    #[prost(uint64, tag = "4")]
    pub size: u64,
}

/// Who is behind the socket.
#[derive(Clone, PartialEq, Message)]
pub struct CriVersion {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    #[prost(string, tag = "3")]
    pub runtime_version: String,
    #[prost(string, tag = "4")]
    pub runtime_api_version: String,
}

/// A pull that succeeded.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The id of the image: the digest of its config.
    pub id: String,
    pub took: Duration,
}

/// With the pod's credentials, if it has any.
pub async fn pull(socket: &Path, reference: &str, login: Option<&Login>) -> Result<Pulled> {
    let start = Instant::now();
    let request = PullImageRequest {
        image: OfImage::new(reference).image,
        auth: login.map(|login| AuthConfig {
            username: login.user.to_owned(),
            password: login.password.to_owned(),
        }),
    };
    let answer: PullImageResponse = call(socket, PULL, request, PULL_TIMEOUT).await?;
    Ok(Pulled {
        id: answer.image_ref,
        took: start.elapsed(),
    })
}

pub async fn remove(socket: &Path, reference: &str) -> Result<()> {
    let Empty {} = call(socket, REMOVE, OfImage::new(reference), TIMEOUT).await?;
    Ok(())
}

pub async fn list(socket: &Path) -> Result<Vec<CriImage>> {
    let answer: ListImagesResponse = call(socket, LIST, Empty {}, TIMEOUT).await?;
    Ok(answer.images)
}

pub async fn version(socket: &Path) -> Result<CriVersion> {
    call(socket, VERSION, Empty {}, TIMEOUT).await
}

async fn call<Q, A>(socket: &Path, method: &'static str, question: Q, limit: Duration) -> Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let answer = async {
        let channel = containerd_client::connect(socket).await?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let answer = client
            .unary(
                tonic::Request::new(question),
                PathAndQuery::from_static(method),
                ProstCodec::<Q, A>::default(),
            )
            .await?;
        anyhow::Ok(answer.into_inner())
    };
    tokio::time::timeout(limit, answer)
        .await
        .with_context(|| format!("{method}: no answer within {limit:?}"))?
        .context(method)
}
