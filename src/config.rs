//! The command line and the environment.
//!
//! Names and defaults are those of Spegel, so that its users' values files go on working. clap only splits the words:
//! every value is read here, because clap stops at the first mistake and a chart is tried out one roll-out at a time.

mod value;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::styling::Styles;
use clap::{Args, Parser, Subcommand};
use libp2p::Multiaddr;

pub use value::ListenAddr;

use crate::content::{containerd, layout};
use crate::routing::bootstrap::parse_address;
use crate::{hosts, telemetry};

/// EX_USAGE of sysexits.h: the same command line will never do.
const USAGE: u8 = 64;

/// What the process is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandLine {
    pub log: telemetry::Filter,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Registry(Box<Registry>),
    Configuration(Configuration),
    Cleanup(Cleanup),
    Version(VersionFormat),
}

/// The daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    pub bootstrap: Bootstrap,
    pub metrics_addr: ListenAddr,
    pub store: Store,
    /// None: a new identity at each start.
    pub data_dir: Option<PathBuf>,
    /// Whether nobody is served without the node's token, peers excepted.
    pub require_node_token: bool,
    pub router_addr: ListenAddr,
    pub registry_addr: ListenAddr,
    pub mirror_resolve_timeout: Duration,
    pub mirror_resolve_retries: u32,
    /// Bodies under way to peers at once.
    pub max_uploads: usize,
    pub mirrored_registries: Vec<hosts::Registry>,
    /// Empty: [`default_route_addrs`] are announced.
    pub advertise_addrs: Vec<IpAddr>,
    pub shutdown_grace_period: Duration,
}

/// What containerd is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// As it stands on the command line: without the node's token.
    pub hosts: hosts::Config,
    /// Where the node's token is kept; None: there is none.
    pub data_dir: Option<PathBuf>,
}

/// Where this node's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    Containerd(containerd::Config),
    OciLayout(layout::Config),
}

/// How the first peers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    Dns { domain: String },
    Static { peers: Vec<Multiaddr> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleanup {
    pub containerd_registry_config_path: PathBuf,
    /// Where `/readyz` is answered once everything is restored; None: the process ends then.
    pub addr: Option<ListenAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionFormat {
    Text,
    Json,
}

/// Why there is nothing to do: help was asked for, or the command line cannot be used.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub text: String,
    /// 0 for help, else [`USAGE`].
    pub code: u8,
}

impl Refusal {
    /// Says so where it belongs: what was asked for on stdout, what went wrong on stderr.
    pub fn print(&self) -> ExitCode {
        if self.code == 0 {
            print!("{}", self.text);
        } else {
            eprint!("{}", self.text);
        }
        ExitCode::from(self.code)
    }
}

/// Reads the words of the command line, the program's name first, and the environment.
pub fn parse<I, T>(args: I) -> Result<CommandLine, Refusal>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let raw = RawCommandLine::try_parse_from(args).map_err(|e| Refusal {
        text: e.to_string(),
        code: if e.use_stderr() { USAGE } else { 0 },
    })?;
    let mut reader = Reader::default();
    let log = reader.read("log-level", &raw.log_level, |text| {
        text.parse().map_err(|e: telemetry::FilterError| {
            (
                e.to_string(),
                "write error, warn, info or debug".to_string(),
            )
        })
    });
    let command = match raw.command {
        RawCommand::Registry(raw) => {
            registry(&mut reader, &raw).map(|r| Command::Registry(Box::new(r)))
        }
        RawCommand::Configuration(raw) => {
            configuration(&mut reader, &raw).map(Command::Configuration)
        }
        RawCommand::Cleanup(raw) => cleanup(&mut reader, &raw).map(Command::Cleanup),
        RawCommand::Version(raw) => reader
            .read("format", &raw.format, |text| match text {
                "text" => Ok(VersionFormat::Text),
                "json" => Ok(VersionFormat::Json),
                _ => refuse("is no format", "write text or json"),
            })
            .map(Command::Version),
    };
    match (log, command) {
        (Some(log), Some(command)) if reader.mistakes.is_empty() => {
            Ok(CommandLine { log, command })
        }
        _ => Err(reader.refusal()),
    }
}

/// A stateless image mirror for Kubernetes nodes: containerd's own images, served from node to node.
///
/// Every option can be given as an environment variable, too; the option counts more. Lists take several values after
/// one option, or one variable with commas.
#[derive(Debug, Parser)]
#[command(name = "peili", version, styles = Styles::plain(), max_term_width = 100)]
struct RawCommandLine {
    /// How much is logged (JSON on stderr): error, warn, info or debug, or a filter such as
    /// info,peili::mirror=debug. Debug writes several lines per request.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true)]
    log_level: String,

    #[command(subcommand)]
    command: RawCommand,
}

#[derive(Debug, Subcommand)]
enum RawCommand {
    /// Runs the mirror on this node, until SIGTERM.
    Registry(Box<RawRegistry>),
    /// Makes this node's containerd ask the mirror first. Needs no restart of containerd, which must have its
    /// registries' config_path set.
    Configuration(RawConfiguration),
    /// Puts back what containerd was configured to before `configuration`, byte for byte.
    Cleanup(RawCleanup),
    /// Says which release this is.
    Version(RawVersion),
}

#[derive(Debug, Args)]
struct RawRegistry {
    /// How the first peers are found. dns: the addresses of a headless service; static: a fixed list. Required.
    #[arg(
        long,
        env = "BOOTSTRAP_KIND",
        default_value = "",
        hide_default_value = true,
        value_name = "dns|static"
    )]
    bootstrap_kind: String,

    /// Name whose A and AAAA records are the peers' addresses. Required with --bootstrap-kind=dns.
    #[arg(
        long,
        env = "DNS_BOOTSTRAP_DOMAIN",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME"
    )]
    dns_bootstrap_domain: String,

    /// Peers to begin with, as multiaddrs such as /ip4/192.0.2.7/tcp/5001. Two that are up suffice: the rest is learnt
    /// from them. Required with --bootstrap-kind=static.
    #[arg(long, env = "STATIC_BOOTSTRAP_PEERS", value_delimiter = ',', num_args = 0.., value_name = "MULTIADDR")]
    static_bootstrap_peers: Vec<String>,

    /// Where /metrics is served. `:9090` is port 9090 of every address, IPv6 and IPv4.
    #[arg(
        long,
        env = "METRICS_ADDR",
        default_value = ":9090",
        value_name = "[IP]:PORT"
    )]
    metrics_addr: String,

    /// Where this node's content is. containerd: what its containerd holds. oci-layout: a directory of images, such as
    /// the seed of an air-gapped cluster; no containerd is needed, and the options for it are not used.
    #[arg(
        long,
        env = "STORE",
        default_value = "containerd",
        value_name = "containerd|oci-layout"
    )]
    store: String,

    /// An OCI image layout (a directory with oci-layout, index.json and blobs), read and followed, never written. Images
    /// are found by names that index.json gives in full, registry/repository:tag. Required with --store=oci-layout.
    #[arg(
        long,
        env = "OCI_LAYOUT_PATH",
        default_value = "",
        hide_default_value = true,
        value_name = "DIR"
    )]
    oci_layout_path: String,

    /// containerd's socket. Mount the directory that it is in: a mounted socket file is dead once containerd
    /// restarts. Who may connect here is root on the node.
    #[arg(
        long,
        env = "CONTAINERD_SOCK",
        default_value = "/run/containerd/containerd.sock",
        value_name = "PATH"
    )]
    containerd_sock: String,

    /// The containerd namespace whose images are shared; Kubernetes uses k8s.io.
    #[arg(
        long,
        env = "CONTAINERD_NAMESPACE",
        default_value = "k8s.io",
        value_name = "NAME"
    )]
    containerd_namespace: String,

    /// Where containerd keeps its content, as this process sees it. Default: containerd is asked. Needed where the
    /// directory is mounted under another path than it has on the node.
    #[arg(
        long,
        env = "CONTAINERD_CONTENT_PATH",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH"
    )]
    containerd_content_path: String,

    /// Where this node's identity and token are kept. Default: nowhere; with each start the node is a new peer, and
    /// what was told of the old one leads nowhere for up to 19 minutes.
    #[arg(
        long,
        env = "DATA_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH"
    )]
    data_dir: String,

    /// Serves nobody but peers and the containerd that sends the token which `configuration --data-dir` has made. Without
    /// this, whoever lacks the token still gets what the node holds, and nothing is fetched for him.
    #[arg(
        long, env = "REQUIRE_NODE_TOKEN", default_value = "false", default_missing_value = "true",
        num_args = 0..=1, require_equals = true, value_name = "true|false"
    )]
    require_node_token: String,

    /// Where other peers reach this node to find content. Every node must be able to reach every other here.
    #[arg(
        long,
        env = "ROUTER_ADDR",
        default_value = ":5001",
        value_name = "[IP]:PORT"
    )]
    router_addr: String,

    /// Where this node's containerd and other peers get content. The port must be the same on all nodes.
    #[arg(
        long,
        env = "REGISTRY_ADDR",
        default_value = ":5000",
        value_name = "[IP]:PORT"
    )]
    registry_addr: String,

    /// Registries that are mirrored, such as https://docker.io; others are answered with 404. Default: every
    /// registry.
    #[arg(long, env = "MIRRORED_REGISTRIES", value_delimiter = ',', num_args = 0.., value_name = "URL")]
    mirrored_registries: Vec<String>,

    /// How long one peer may take to answer a lookup. Longer finds more in a slow network; a pull of what nobody has
    /// waits for it before it goes upstream.
    #[arg(
        long,
        env = "MIRROR_RESOLVE_TIMEOUT",
        default_value = "20ms",
        value_name = "DURATION"
    )]
    mirror_resolve_timeout: String,

    /// How many peers may fail to deliver before a request goes upstream. Peers that refuse, or do not have it any
    /// more, answer at once and are not counted. No request waits for its first byte longer than 2 s.
    #[arg(
        long,
        env = "MIRROR_RESOLVE_RETRIES",
        default_value = "3",
        value_name = "NUMBER"
    )]
    mirror_resolve_retries: String,

    /// Layers that are sent to other nodes at the same time, in fair parts. Who comes beyond that is sent to other
    /// holders, or goes upstream; this node's own containerd never is. Each takes up to about 1 MiB of memory.
    #[arg(long, env = "MAX_UPLOADS", default_value = "64", value_name = "NUMBER")]
    max_uploads: String,

    /// Addresses under which peers reach this node. Default: those of the variable POD_IPS, else that of the
    /// default route. Loopback is announced only when it is named here.
    #[arg(long, env = "ADVERTISE_ADDR", value_delimiter = ',', num_args = 0.., value_name = "IP")]
    advertise_addr: Vec<String>,

    /// What the kubelet allows between SIGTERM and SIGKILL: the pod's terminationGracePeriodSeconds. Transfers under
    /// way go on until 5 s before its end; an update of the DaemonSet waits for them on busy nodes.
    #[arg(
        long,
        env = "SHUTDOWN_GRACE_PERIOD",
        default_value = "30s",
        value_name = "DURATION"
    )]
    shutdown_grace_period: String,
}

#[derive(Debug, Args)]
struct RawConfiguration {
    #[command(flatten)]
    directory: RawDirectory,

    /// Registries whose images are mirrored, such as https://docker.io or http://registry.example:5000. Default, like
    /// *: every registry.
    #[arg(long, env = "MIRRORED_REGISTRIES", value_delimiter = ',', num_args = 0.., value_name = "URL")]
    mirrored_registries: Vec<String>,

    /// URLs at which containerd asks the mirror, such as http://192.0.2.7:30020, in this order. Required. An address
    /// that drops packets instead of refusing costs every request 30 s on containerd 1.6 and 1.7.
    #[arg(long, env = "MIRROR_TARGETS", value_delimiter = ',', num_args = 0.., value_name = "URL")]
    mirror_targets: Vec<String>,

    /// Whether tags, too, are looked up in the cluster. A tag that has moved then stays what it was as long as any
    /// node has the old image; with false the registry is asked for every tag, and must be up.
    #[arg(
        long, env = "RESOLVE_TAGS", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_name = "true|false"
    )]
    resolve_tags: String,

    /// Where the node's token is kept: made here once, sent by containerd to the mirror, and required by `registry` with
    /// the same directory before it fetches anything for anybody. Files with it are readable by root alone. Default:
    /// there is none, and whoever reaches the mirror can use it.
    #[arg(
        long,
        env = "DATA_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH"
    )]
    data_dir: String,
}

#[derive(Debug, Args)]
struct RawCleanup {
    #[command(flatten)]
    directory: RawDirectory,

    /// Where /readyz is answered, until SIGTERM, once everything is restored. Default: nowhere; the process ends then.
    #[arg(
        long,
        env = "ADDR",
        default_value = "",
        hide_default_value = true,
        value_name = "[IP]:PORT"
    )]
    addr: String,
}

#[derive(Debug, Args)]
struct RawDirectory {
    /// The directory that containerd has as its registries' config_path.
    #[arg(
        long,
        env = "CONTAINERD_REGISTRY_CONFIG_PATH",
        default_value = "/etc/containerd/certs.d",
        value_name = "PATH"
    )]
    containerd_registry_config_path: String,
}

#[derive(Debug, Args)]
struct RawVersion {
    /// text or json.
    #[arg(long, default_value = "text", value_name = "text|json")]
    format: String,
}

fn registry(reader: &mut Reader, raw: &RawRegistry) -> Option<Registry> {
    let bootstrap = bootstrap(reader, raw);
    let metrics_addr = reader.listen("metrics-addr", &raw.metrics_addr);
    let store = store(reader, raw);
    let data_dir = reader.optional("data-dir", &raw.data_dir, absolute);
    let require_node_token = reader.boolean("require-node-token", &raw.require_node_token);
    if let (Some(None), Some(true)) = (&data_dir, require_node_token) {
        reader.mistake(
            "data-dir",
            "",
            "is missing, and --require-node-token is set",
            "name the directory that `peili configuration --data-dir` was given",
        );
    }
    let router_addr = reader.listen("router-addr", &raw.router_addr);
    let registry_addr = reader.listen("registry-addr", &raw.registry_addr);
    let mirrored_registries = reader.registries(&raw.mirrored_registries);
    let mirror_resolve_timeout = reader.read(
        "mirror-resolve-timeout",
        &raw.mirror_resolve_timeout,
        |text| match duration(text)? {
            Duration::ZERO => refuse("leaves no time", "write 20ms"),
            some => Ok(some),
        },
    );
    let mirror_resolve_retries = reader.read(
        "mirror-resolve-retries",
        &raw.mirror_resolve_retries,
        |text| match text.parse() {
            Ok(0) => refuse("mirrors nothing", "write 1 or more; 3 is usual"),
            Ok(retries) => Ok(retries),
            Err(_) => refuse("is not a number", "write 3"),
        },
    );
    let max_uploads = reader.read("max-uploads", &raw.max_uploads, |text| match text.parse() {
        Ok(0) => refuse("gives nothing to anybody", "write 1 or more; 64 is usual"),
        Ok(uploads) => Ok(uploads),
        Err(_) => refuse("is not a number", "write 64"),
    });
    let advertise_addrs = advertise_addrs(reader, raw);
    let shutdown_grace_period = reader.read(
        "shutdown-grace-period",
        &raw.shutdown_grace_period,
        duration,
    );

    let listeners = [
        ("registry-addr", registry_addr),
        ("router-addr", router_addr),
        ("metrics-addr", metrics_addr),
    ];
    for (i, (flag, addr)) in listeners.iter().enumerate() {
        for (taken_by, other) in &listeners[..i] {
            let (Some(addr), Some(other)) = (addr, other) else {
                continue;
            };
            if addr.overlaps(*other) {
                reader.mistake(
                    flag,
                    &addr.to_string(),
                    format!("is taken by --{taken_by}"),
                    "give each its own port",
                );
            }
        }
    }
    Some(Registry {
        bootstrap: bootstrap?,
        metrics_addr: metrics_addr?,
        store: store?,
        data_dir: data_dir?,
        require_node_token: require_node_token?,
        router_addr: router_addr?,
        registry_addr: registry_addr?,
        mirror_resolve_timeout: mirror_resolve_timeout?,
        mirror_resolve_retries: mirror_resolve_retries?,
        max_uploads: max_uploads?,
        mirrored_registries: mirrored_registries?,
        advertise_addrs,
        shutdown_grace_period: shutdown_grace_period?,
    })
}

fn store(reader: &mut Reader, raw: &RawRegistry) -> Option<Store> {
    let socket = reader.read("containerd-sock", &raw.containerd_sock, |text| {
        absolute(text.strip_prefix("unix://").unwrap_or(text))
    });
    let namespace = reader.read(
        "containerd-namespace",
        &raw.containerd_namespace,
        |text| match text {
            "" => refuse("is empty", "write k8s.io, which Kubernetes uses"),
            name => Ok(name.to_string()),
        },
    );
    let content_path = reader.optional(
        "containerd-content-path",
        &raw.containerd_content_path,
        absolute,
    );
    let path = reader.optional("oci-layout-path", &raw.oci_layout_path, absolute);
    match (raw.store.trim(), path?) {
        ("containerd", None) => {
            return Some(Store::Containerd(containerd::Config {
                socket: socket?,
                namespace: namespace?,
                content_path: content_path?,
            }));
        }
        ("oci-layout", Some(path)) => return Some(Store::OciLayout(layout::Config { path })),
        ("containerd", Some(_)) => reader.mistake(
            "oci-layout-path",
            &raw.oci_layout_path,
            "would not be served, because --store is containerd",
            "add --store=oci-layout, or leave the path out",
        ),
        ("oci-layout", None) => reader.mistake(
            "oci-layout-path",
            "",
            "is missing, and --store is oci-layout",
            "write the directory that has oci-layout, index.json and blobs in it",
        ),
        (kind, _) => reader.mistake(
            "store",
            kind,
            "is no store that this release knows",
            "write containerd or oci-layout",
        ),
    }
    None
}

fn bootstrap(reader: &mut Reader, raw: &RawRegistry) -> Option<Bootstrap> {
    let mut peers = Vec::new();
    for text in list(&raw.static_bootstrap_peers) {
        peers.extend(reader.read("static-bootstrap-peers", text, |text| {
            parse_address(text)
                .or_else(|e| refuse(e.to_string(), "write it as /ip4/192.0.2.7/tcp/5001"))
        }));
    }
    let all_peers_read = peers.len() == list(&raw.static_bootstrap_peers).count();
    match raw.bootstrap_kind.trim() {
        "dns" => match raw.dns_bootstrap_domain.trim() {
            "" => reader.mistake(
                "dns-bootstrap-domain",
                "",
                "is missing, and --bootstrap-kind is dns",
                "write the name of the headless service, \
                 such as peili-bootstrap.peili.svc.cluster.local.",
            ),
            domain => {
                return Some(Bootstrap::Dns {
                    domain: domain.to_string(),
                });
            }
        },
        "static" if !peers.is_empty() => return Some(Bootstrap::Static { peers }),
        "static" if all_peers_read => reader.mistake(
            "static-bootstrap-peers",
            "",
            "is missing, and --bootstrap-kind is static",
            "write at least one peer, such as /ip4/192.0.2.7/tcp/5001",
        ),
        "static" => {}
        kind => reader.mistake(
            "bootstrap-kind",
            kind,
            if kind.is_empty() {
                "is missing"
            } else {
                "is not a way to find peers that this release knows"
            },
            "write dns or static",
        ),
    }
    None
}

fn advertise_addrs(reader: &mut Reader, raw: &RawRegistry) -> Vec<IpAddr> {
    let cure = "write addresses of this node that its peers can reach, such as 192.0.2.7";
    let mut named = Vec::new();
    for text in list(&raw.advertise_addr) {
        named.extend(reader.read(
            "advertise-addr",
            text,
            |text| match text.parse::<IpAddr>() {
                Err(_) => refuse("is not an IP address", cure),
                Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                    refuse("is no single node's address", cure)
                }
                Ok(ip) => Ok(ip),
            },
        ));
    }
    if list(&raw.advertise_addr).next().is_some() {
        return named;
    }
    let pod_ips = std::env::var("POD_IPS").unwrap_or_default();
    let pod_ips = pod_ips.split(',').map(str::trim);
    for text in pod_ips.filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(ip) if can_be_reached(ip) => named.push(ip),
            Ok(_) => {}
            Err(_) => reader.mistakes.push(Mistake {
                name: "POD_IPS".to_string(),
                value: text.to_string(),
                reason: "is not an IP address".to_string(),
                cure: "take it from the pod's status.podIPs".to_string(),
            }),
        }
    }
    named
}

/// This node's addresses on its default routes, one of each family at most.
pub fn default_route_addrs() -> Vec<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): no route but the default one leads there. To connect a UDP
    // socket sends nothing; it only makes the kernel choose the source address.
    let elsewhere: [(IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    let source = |(here, there): (IpAddr, IpAddr)| {
        /// RFC 863, discard: whatever the number, nothing is sent.
        const PORT: u16 = 9;
        let socket = UdpSocket::bind(SocketAddr::new(here, 0)).ok()?;
        socket.connect(SocketAddr::new(there, PORT)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        can_be_reached(ip).then_some(ip)
    };
    elsewhere.into_iter().filter_map(source).collect()
}

fn can_be_reached(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

fn configuration(reader: &mut Reader, raw: &RawConfiguration) -> Option<Configuration> {
    let directory = reader.directory(&raw.directory);
    let registries = reader.registries(&raw.mirrored_registries);
    let targets: Vec<_> = list(&raw.mirror_targets).collect();
    let targets = reader.hosts("mirror-targets", hosts::Targets::list(&targets));
    let resolve_tags = reader.boolean("resolve-tags", &raw.resolve_tags);
    let data_dir = reader.optional("data-dir", &raw.data_dir, absolute);
    Some(Configuration {
        hosts: hosts::Config {
            directory: directory?,
            registries: registries?,
            targets: targets?,
            resolve_tags: resolve_tags?,
            token: None,
        },
        data_dir: data_dir?,
    })
}

fn cleanup(reader: &mut Reader, raw: &RawCleanup) -> Option<Cleanup> {
    let directory = reader.directory(&raw.directory);
    let addr = reader.optional("addr", &raw.addr, listen_addr);
    Some(Cleanup {
        containerd_registry_config_path: directory?,
        addr: addr?,
    })
}

/// Why a value cannot be used, and what to write instead.
type Refused = (String, String);

fn refuse<T>(reason: impl Into<String>, cure: &str) -> Result<T, Refused> {
    Err((reason.into(), cure.to_string()))
}

fn listen_addr(text: &str) -> Result<ListenAddr, Refused> {
    text.parse().or_else(|e: value::ListenAddrError| {
        refuse(
            e.to_string(),
            "write it as :5000, 192.0.2.7:5000 or [2001:db8::7]:5000",
        )
    })
}

fn duration(text: &str) -> Result<Duration, Refused> {
    value::duration(text).or_else(|reason| refuse(reason, "write it as 20ms, 1.5s or 2m"))
}

fn absolute(text: &str) -> Result<PathBuf, Refused> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        refuse("is not an absolute path", "begin it with /")
    }
}

/// The values of a list. An empty variable is a list of one empty value for clap and of none for us.
fn list(raw: &[String]) -> impl Iterator<Item = &str> {
    raw.iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
}

#[derive(Debug)]
struct Mistake {
    name: String,
    value: String,
    reason: String,
    cure: String,
}

/// Reads values and goes on after a mistake, so that all are found.
#[derive(Default)]
struct Reader {
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn mistake(&mut self, flag: &str, value: &str, reason: impl Into<String>, cure: &str) {
        // Every option's variable is its name in capitals, but for `version`, which is asked by people.
        let variable = flag.to_uppercase().replace('-', "_");
        self.mistakes.push(Mistake {
            name: match flag {
                "format" => format!("--{flag}"),
                _ => format!("--{flag} [{variable}]"),
            },
            value: value.to_string(),
            reason: reason.into(),
            cure: cure.to_string(),
        });
    }

    fn read<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, Refused>,
    ) -> Option<T> {
        match read(text.trim()) {
            Ok(value) => Some(value),
            Err((reason, cure)) => {
                self.mistake(flag, text, reason, &cure);
                None
            }
        }
    }

    /// An empty text is no value. The outer None is a mistake.
    fn optional<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, Refused>,
    ) -> Option<Option<T>> {
        if text.trim().is_empty() {
            return Some(None);
        }
        self.read(flag, text, read).map(Some)
    }

    fn boolean(&mut self, flag: &str, text: &str) -> Option<bool> {
        self.read(flag, text, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => refuse("is neither true nor false", "write true or false"),
        })
    }

    fn listen(&mut self, flag: &str, text: &str) -> Option<ListenAddr> {
        self.read(flag, text, listen_addr)
    }

    fn directory(&mut self, raw: &RawDirectory) -> Option<PathBuf> {
        let flag = "containerd-registry-config-path";
        self.read(flag, &raw.containerd_registry_config_path, absolute)
    }

    fn registries(&mut self, raw: &[String]) -> Option<Vec<hosts::Registry>> {
        let texts: Vec<_> = list(raw).collect();
        self.hosts("mirrored-registries", hosts::Registry::list(&texts))
    }

    fn hosts<T>(&mut self, flag: &str, read: Result<T, Vec<hosts::Mistake>>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(mistakes) => {
                for hosts::Mistake {
                    value,
                    reason,
                    cure,
                } in mistakes
                {
                    self.mistake(flag, &value, reason, &cure);
                }
                None
            }
        }
    }

    fn refusal(self) -> Refusal {
        let mut text = match self.mistakes.len() {
            1 => "peili: one value cannot be used\n".to_string(),
            n => format!("peili: {n} values cannot be used\n"),
        };
        for Mistake {
            name,
            value,
            reason,
            cure,
        } in self.mistakes
        {
            let value = match value.as_str() {
                "" => String::new(),
                value => format!(" {value:?}"),
            };
            text += &format!("  {name}{value} {reason}: {cure}\n");
        }
        text += "See peili <command> --help.\n";
        Refusal { text, code: USAGE }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use super::*;

    fn parsed(words: &str) -> Result<CommandLine, Refusal> {
        parse(std::iter::once("peili").chain(words.split_whitespace()))
    }

    fn command(words: &str) -> Command {
        parsed(words)
            .unwrap_or_else(|refusal| panic!("{words}: {}", refusal.text))
            .command
    }

    fn refused(words: &str) -> String {
        let refusal = parsed(words).expect_err(words);
        assert_eq!(refusal.code, 64, "{words}");
        refusal.text
    }

    fn daemon(words: &str) -> Registry {
        let words = format!("registry --bootstrap-kind dns --dns-bootstrap-domain d {words}");
        match command(&words) {
            Command::Registry(registry) => *registry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_daemons_defaults_are_spegels() {
        let registry = daemon("");

        assert_eq!(
            registry,
            Registry {
                bootstrap: Bootstrap::Dns {
                    domain: "d".to_string()
                },
                metrics_addr: ListenAddr::every(9090),
                store: Store::Containerd(containerd::Config {
                    socket: "/run/containerd/containerd.sock".into(),
                    namespace: "k8s.io".to_string(),
                    content_path: None,
                }),
                data_dir: None,
                require_node_token: false,
                router_addr: ListenAddr::every(5001),
                registry_addr: ListenAddr::every(5000),
                mirror_resolve_timeout: Duration::from_millis(20),
                mirror_resolve_retries: 3,
                max_uploads: 64,
                mirrored_registries: vec![hosts::Registry::Every],
                advertise_addrs: Vec::new(),
                shutdown_grace_period: Duration::from_secs(30),
            }
        );
    }

    #[test]
    fn a_list_takes_several_values_after_one_flag() {
        let Command::Configuration(config) = command(
            "configuration --mirrored-registries https://docker.io https://ghcr.io \
             --mirror-targets http://192.0.2.7:30020 http://192.0.2.8:30020 --resolve-tags=false",
        ) else {
            panic!("another command");
        };

        let hosts: Vec<_> = config.hosts.registries.iter().map(|r| r.host()).collect();
        assert_eq!(hosts, [Some("docker.io"), Some("ghcr.io")]);
        assert_eq!(
            config.hosts.targets.urls().collect::<Vec<_>>(),
            ["http://192.0.2.7:30020", "http://192.0.2.8:30020"]
        );
        assert!(!config.hosts.resolve_tags);
        assert_eq!(
            config.hosts.directory,
            PathBuf::from("/etc/containerd/certs.d")
        );
    }

    #[test]
    fn resolve_tags_is_true_bare_and_by_default() {
        for words in ["", "--resolve-tags", "--resolve-tags=true"] {
            let words = format!("configuration {words} --mirror-targets http://a");
            let Command::Configuration(config) = command(&words) else {
                panic!("{words}");
            };
            assert!(config.hosts.resolve_tags, "{words}");
        }
    }

    #[test]
    fn empty_values_count_as_unset_where_there_is_no_default() {
        let words = "cleanup --containerd-registry-config-path /x --addr=";
        assert_eq!(
            command(words),
            Command::Cleanup(Cleanup {
                containerd_registry_config_path: "/x".into(),
                addr: None
            })
        );
        let registry = daemon("--data-dir= --containerd-content-path= --mirrored-registries=");
        assert_eq!(registry, daemon(""));
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_flag_variable_value_reason_and_cure() {
        let text = refused(
            "registry --log-level loud --bootstrap-kind dns --router-addr 5001 --metrics-addr :5000 \
             --mirror-resolve-timeout 20 --mirror-resolve-retries 0 --data-dir data \
             --mirrored-registries docker.io https://ghcr.io/x --advertise-addr 0.0.0.0 node \
             --static-bootstrap-peers 192.0.2.7:5001",
        );

        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "peili: 12 values cannot be used", "{text}");
        for line in [
            "  --log-level [LOG_LEVEL] \"loud\" is neither a level nor a filter: \
             write error, warn, info or debug",
            "  --router-addr [ROUTER_ADDR] \"5001\" has no port: \
             write it as :5000, 192.0.2.7:5000 or [2001:db8::7]:5000",
            "  --metrics-addr [METRICS_ADDR] \":5000\" is taken by --registry-addr: \
             give each its own port",
            "  --mirror-resolve-timeout [MIRROR_RESOLVE_TIMEOUT] \"20\" has no unit: \
             write it as 20ms, 1.5s or 2m",
            "  --mirrored-registries [MIRRORED_REGISTRIES] \"docker.io\" has no scheme: \
             write https://docker.io",
            "  --dns-bootstrap-domain [DNS_BOOTSTRAP_DOMAIN] is missing, and --bootstrap-kind is dns: \
             write the name of the headless service, such as \
             peili-bootstrap.peili.svc.cluster.local.",
        ] {
            assert!(lines.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_a_bootstrap_kind_needs_is_asked_for() {
        for (words, missing) in [
            ("registry", "--bootstrap-kind [BOOTSTRAP_KIND] is missing"),
            (
                "registry --bootstrap-kind http",
                "--bootstrap-kind [BOOTSTRAP_KIND] \"http\" is not a way",
            ),
            (
                "registry --bootstrap-kind static",
                "--static-bootstrap-peers [STATIC_BOOTSTRAP_PEERS] is missing",
            ),
            (
                "configuration",
                "--mirror-targets [MIRROR_TARGETS] is missing",
            ),
            ("version --format xml", "--format \"xml\" is no format"),
        ] {
            let text = refused(words);
            assert!(text.contains(missing), "{text}");
            assert!(text.starts_with("peili: one value"), "{text}");
        }
    }

    #[test]
    fn a_layout_is_served_when_both_the_store_and_its_path_say_so() {
        assert_eq!(
            daemon("--store oci-layout --oci-layout-path /images").store,
            Store::OciLayout(layout::Config {
                path: "/images".into()
            })
        );
        for (words, said) in [
            (
                "--store oci-layout",
                "--oci-layout-path [OCI_LAYOUT_PATH] is missing, and --store is oci-layout: write",
            ),
            (
                "--oci-layout-path /images",
                "--oci-layout-path [OCI_LAYOUT_PATH] \"/images\" would not be served, because \
                 --store is containerd: add --store=oci-layout",
            ),
            (
                "--store oci-layout --oci-layout-path images",
                "\"images\" is not an absolute path",
            ),
            (
                "--store docker",
                "--store [STORE] \"docker\" is no store that this release knows: \
                 write containerd or oci-layout",
            ),
        ] {
            let text = refused(&format!(
                "registry --bootstrap-kind dns --dns-bootstrap-domain d {words}"
            ));
            assert!(text.contains(said), "{text}");
            assert!(text.starts_with("peili: one value"), "{text}");
        }
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        for words in [
            "",
            "serve",
            "registry --no-such-flag",
            "configuration --mirror-targets http://a --resolve-tags false",
            "cleanup extra",
        ] {
            refused(words);
        }
    }

    #[test]
    fn help_is_no_mistake_and_names_every_variable() {
        for words in ["--help", "--version"] {
            assert_eq!(parsed(words).expect_err(words).code, 0);
        }
        let help = parsed("registry --help").expect_err("help").text;
        // The lines are folded.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for variable in ["LOG_LEVEL", "BOOTSTRAP_KIND", "ADVERTISE_ADDR", "STORE"] {
            assert!(help.contains(&format!("[env: {variable}=")), "{help}");
        }
    }

    #[test]
    fn the_default_route_never_yields_loopback() {
        assert!(default_route_addrs().into_iter().all(can_be_reached));
    }

    /// The environment belongs to a whole process, so each case is a process of its own: this test, run again with
    /// `WORDS` to read.
    #[test]
    fn child_of_the_tests_of_the_environment() {
        if let Ok(words) = std::env::var("WORDS") {
            match parsed(&words) {
                Ok(line) => println!("{line:?}"),
                Err(refusal) => println!("{}", refusal.text),
            }
        }
    }

    fn with_env(variables: &[(&str, &str)], words: &str) -> String {
        let output = Process::new(std::env::current_exe().expect("this program"))
            .args([
                "config::tests::child_of_the_tests_of_the_environment",
                "--exact",
                "--nocapture",
            ])
            .envs(variables.iter().copied())
            .env("WORDS", words)
            .output()
            .expect("runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[test]
    fn variables_are_read_and_the_flag_counts_more() {
        let said = with_env(
            &[
                ("MIRRORED_REGISTRIES", "https://docker.io,https://ghcr.io"),
                ("MIRROR_TARGETS", "http://2001:db8::7:30020"),
                ("RESOLVE_TAGS", "false"),
                ("LOG_LEVEL", "DEBUG"),
            ],
            "configuration --containerd-registry-config-path /x --log-level WARN",
        );

        let same = command(
            "configuration --containerd-registry-config-path /x --resolve-tags=false \
             --mirror-targets http://[2001:db8::7]:30020 \
             --mirrored-registries https://docker.io https://ghcr.io",
        );
        assert!(said.contains(&format!("{same:?}")), "{said}");
        assert!(said.contains("Filter(\"WARN\")"), "{said}");
    }

    #[test]
    fn the_pods_addresses_are_announced_unless_others_are_named() {
        let words = "registry --bootstrap-kind dns --dns-bootstrap-domain d";
        for (variables, addresses) in [
            (
                &[("POD_IPS", "192.0.2.7,2001:db8::7,127.0.0.1")][..],
                "[192.0.2.7, 2001:db8::7]",
            ),
            (
                &[("POD_IPS", "192.0.2.7"), ("ADVERTISE_ADDR", "127.0.0.1")],
                "[127.0.0.1]",
            ),
            (&[("POD_IPS", ""), ("ADVERTISE_ADDR", "")], "[]"),
        ] {
            let said = with_env(variables, words);
            assert!(
                said.contains(&format!("advertise_addrs: {addresses},")),
                "{said}"
            );
        }
    }
}
