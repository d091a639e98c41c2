//! What a containerd says of itself, for who wants to know whether this node is set up well.
//!
//! Each question has its own answer: one that hangs takes none of the others with it. containerd 1.6 and 1.7 tell their
//! CRI configuration by a verbose Status; 2.x answers, but with the runtime's part alone, in which no registry is.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use containerd_client::services::v1::{InfoRequest, ListContentRequest};
use prost::Message;
use serde::Deserialize;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use super::{Config, ConfigError, Containerd, Inner, StoreError, version};
use crate::oci::Digest;
use crate::readiness::Readiness;

/// containerd answers in milliseconds. Four questions are asked side by side.
const LIMIT: Duration = Duration::from_secs(3);

/// Blobs that are looked for on the disk. One may be gone by then; not all of them.
const SAMPLE: usize = 20;

const STATUS: &str = "/runtime.v1.RuntimeService/Status";

/// containerd's answers.
#[derive(Clone, Debug)]
pub struct Told {
    /// As its build spells it: `1.6.20~ds1`, `v2.1.9`.
    pub version: Result<String, StoreError>,
    pub cri: Result<Cri, StoreError>,
    /// Where its content is, as it names the directory itself.
    pub root: Result<PathBuf, StoreError>,
    /// Some of the blobs that it holds.
    pub blobs: Result<Vec<Digest>, StoreError>,
}

/// What the CRI plugin tells of its configuration. None: it does not say (2.x).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cri {
    /// `config_path` of the registries: directories, parted by colons.
    pub config_path: Option<String>,
    pub discard_unpacked_layers: Option<bool>,
}

/// Asks the containerd of `config`. Takes no longer than a containerd that hangs is waited for, three seconds.
pub async fn ask(config: &Config) -> Result<Told, ConfigError> {
    let Containerd(inner) = Containerd::new(config.clone(), Readiness::new())?;
    let (version, cri, root, blobs) = tokio::join!(
        version(&config.socket),
        in_time(STATUS, inner.cri()),
        in_time("introspection.Plugins", inner.learn_root()),
        in_time("content.List", inner.some_blobs()),
    );
    Ok(Told {
        version,
        cri,
        root,
        blobs,
    })
}

async fn in_time<T>(
    what: &str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(LIMIT, call).await.unwrap_or_else(|_| {
        let said = format!("{what}: no answer within {LIMIT:?}");
        Err(StoreError::Unreachable(said))
    })
}

impl Containerd {
    /// Whether containerd has pulled this blob from a registry, by the label that it gives to whatever it pulls. What was
    /// imported has none. None where that cannot be told now.
    pub async fn was_pulled(&self, digest: &Digest) -> Option<bool> {
        const SOURCE: &str = "containerd.io/distribution.source.";
        let request = self.0.namespaced(InfoRequest {
            digest: digest.to_string(),
        });
        let mut content = self.0.content();
        let answer = tokio::time::timeout(LIMIT, content.info(request)).await;
        let info = answer.ok()?.ok()?.into_inner().info?;
        Some(info.labels.keys().any(|label| label.starts_with(SOURCE)))
    }
}

impl Inner {
    async fn cri(&self) -> Result<Cri, StoreError> {
        let mut client = Grpc::new(self.channel());
        let failed = |status| self.error(STATUS, &status);
        let ready = client.ready().await;
        ready.map_err(|e| StoreError::Unreachable(format!("{STATUS}: {e}")))?;
        let answer = client
            .unary(
                tonic::Request::new(StatusRequest { verbose: true }),
                PathAndQuery::from_static(STATUS),
                ProstCodec::<StatusRequest, StatusResponse>::default(),
            )
            .await
            .map_err(failed)?;
        Ok(Cri::by(&answer.into_inner().info))
    }

    async fn some_blobs(&self) -> Result<Vec<Digest>, StoreError> {
        let failed = |status| self.error("content.List", &status);
        let request = self.namespaced(ListContentRequest::default());
        let answer = self.content().list(request).await.map_err(failed)?;
        let mut messages = answer.into_inner();
        let mut blobs = Vec::new();
        while blobs.len() < SAMPLE
            && let Some(message) = messages.message().await.map_err(failed)?
        {
            let some = message
                .info
                .iter()
                .filter_map(|info| info.digest.parse().ok());
            blobs.extend(some.take(SAMPLE - blobs.len()));
        }
        Ok(blobs)
    }
}

impl Cri {
    /// What is not understood is not told.
    fn by(info: &HashMap<String, String>) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Settings {
            registry: Option<Registry>,
            containerd: Option<Runtime>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Registry {
            config_path: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Runtime {
            discard_unpacked_layers: Option<bool>,
        }
        let config = info.get("config").map_or("{}", String::as_str);
        let settings: Settings = serde_json::from_str(config).unwrap_or_default();
        Self {
            config_path: settings.registry.and_then(|it| it.config_path),
            discard_unpacked_layers: settings
                .containerd
                .and_then(|it| it.discard_unpacked_layers),
        }
    }
}

// runtime/v1/api.proto of k8s.io/cri-api: as much of two messages as is used here.

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(bool, tag = "1")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    /// Of free form; the keys are the runtime's.
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_1_x_tells_is_read_and_what_2_x_leaves_out_is_not_made_up() {
        let cri = |config_path: Option<&str>, discard_unpacked_layers| Cri {
            config_path: config_path.map(str::to_string),
            discard_unpacked_layers,
        };
        for (config, expected) in [
            (
                r#"{"containerd":{"snapshotter":"overlayfs","discardUnpackedLayers":true},"registry":{"configPath":"/a:/b","mirrors":null},"maxConcurrentDownloads":3}"#,
                cri(Some("/a:/b"), Some(true)),
            ),
            (
                r#"{"containerd":{"discardUnpackedLayers":false},"registry":{"configPath":""}}"#,
                cri(Some(""), Some(false)),
            ),
            (
                r#"{"containerd":{"defaultRuntimeName":"runc"},"cni":{}}"#,
                cri(None, None),
            ),
            ("[", cri(None, None)),
        ] {
            let info = HashMap::from([("config".to_string(), config.to_string())]);

            assert_eq!(Cri::by(&info), expected, "{config}");
        }
        assert_eq!(Cri::by(&HashMap::new()), Cri::default());
    }
}
