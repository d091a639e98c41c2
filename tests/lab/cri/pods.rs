//! Pods and their containers: what a kubelet says to the CRI about a pod on the node's own network.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use prost::Message;

use super::{Empty, ImageReference, TIMEOUT, call};

const RUN: &str = "/runtime.v1.RuntimeService/RunPodSandbox";
const STOP: &str = "/runtime.v1.RuntimeService/StopPodSandbox";
const REMOVE: &str = "/runtime.v1.RuntimeService/RemovePodSandbox";
const CREATE: &str = "/runtime.v1.RuntimeService/CreateContainer";
const START: &str = "/runtime.v1.RuntimeService/StartContainer";
const STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";

/// runc is started for each.
const SLOW: Duration = Duration::from_secs(60);

/// NamespaceMode of the CRI: the node's own.
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub struct PodConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodMetadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPod>,
}

#[derive(Clone, PartialEq, Message)]
struct PodMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPod {
    #[prost(message, optional, tag = "2")]
    security_context: Option<PodSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
    #[prost(message, optional, tag = "9")]
    seccomp: Option<RuntimeDefault>,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

/// SecurityProfile, whose zero is the runtime's default.
#[derive(Clone, PartialEq, Message)]
struct RuntimeDefault {
    #[prost(int32, tag = "1")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct RunPod {
    #[prost(message, optional, tag = "1")]
    config: Option<PodConfig>,
}

/// A pod's or a container's, alone in a message.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    pod_config: Option<PodConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageReference>,
    #[prost(string, repeated, tag = "4")]
    args: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    env: Vec<Variable>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Variable {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub read_only: bool,
    /// 1: what the host mounts later is seen in the container, too.
    #[prost(int32, tag = "5")]
    pub propagation: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security_context: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "1")]
    capabilities: Option<Capabilities>,
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
    #[prost(bool, tag = "7")]
    read_only_root: bool,
    #[prost(bool, tag = "11")]
    no_new_privileges: bool,
    #[prost(message, optional, tag = "15")]
    seccomp: Option<RuntimeDefault>,
}

#[derive(Clone, PartialEq, Message)]
struct Capabilities {
    #[prost(string, repeated, tag = "2")]
    drop: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<ContainerStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerStatus {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    exit_code: i32,
}

/// A container with nothing that could be taken away: no capability, no new privilege, a read-only root, the runtime's own
/// seccomp profile.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
}

/// A pod that runs, on the network of the containerd that runs it.
pub struct Pod<'a> {
    socket: &'a Path,
    id: String,
    config: PodConfig,
}

impl<'a> Pod<'a> {
    /// Logs of its containers go to `logs`, as `name.log`.
    pub async fn run(socket: &'a Path, name: &str, logs: &Path) -> Result<Self> {
        let config = PodConfig {
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "lab".to_owned(),
            }),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPod {
                security_context: Some(PodSecurity {
                    namespaces: Some(Namespaces { network: NODE }),
                    seccomp: Some(RuntimeDefault { kind: 0 }),
                }),
            }),
        };
        let question = RunPod {
            config: Some(config.clone()),
        };
        let Id { id } = call(socket, RUN, question, SLOW).await?;
        Ok(Self { socket, id, config })
    }

    /// The container's id.
    pub async fn start(&self, spec: &ContainerSpec) -> Result<String> {
        let variable = |(name, value): &(String, String)| Variable {
            name: name.clone(),
            value: value.clone(),
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: spec.name.clone(),
            }),
            image: Some(ImageReference {
                image: spec.image.clone(),
            }),
            args: spec.args.clone(),
            env: spec.env.iter().map(variable).collect(),
            mounts: spec.mounts.clone(),
            log_path: format!("{}.log", spec.name),
            linux: Some(LinuxContainer {
                security_context: Some(ContainerSecurity {
                    capabilities: Some(Capabilities {
                        drop: vec!["ALL".to_owned()],
                    }),
                    namespaces: Some(Namespaces { network: NODE }),
                    read_only_root: true,
                    no_new_privileges: true,
                    seccomp: Some(RuntimeDefault { kind: 0 }),
                }),
            }),
        };
        let create = CreateContainer {
            pod: self.id.clone(),
            config: Some(config),
            pod_config: Some(self.config.clone()),
        };
        let made: Id = call(self.socket, CREATE, create, SLOW).await?;
        let Empty {} = call(self.socket, START, made.clone(), SLOW).await?;
        Ok(made.id)
    }

    /// None while it runs.
    pub async fn exit_code(&self, container: &str) -> Result<Option<i32>> {
        /// ContainerState of the CRI.
        const EXITED: i32 = 2;
        let id = container.to_owned();
        let answer: StatusResponse = call(self.socket, STATUS, Id { id }, TIMEOUT).await?;
        let status = answer.status.unwrap_or_default();
        Ok((status.state == EXITED).then_some(status.exit_code))
    }

    pub async fn remove(self) -> Result<()> {
        for method in [STOP, REMOVE] {
            let id = self.id.clone();
            let Empty {} = call(self.socket, method, Id { id }, SLOW).await?;
        }
        Ok(())
    }
}
