//! The command line and the environment.
//!
//! Names and defaults are those of Spegel, so that its users' values files go on working. clap only splits the words:
//! every value is read here, because clap stops at the first mistake and a chart is tried out one roll-out at a time.

mod help;
mod options;
#[cfg(test)]
mod page;
mod reader;
mod value;
mod words;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use libp2p::Multiaddr;

pub use value::ListenAddr;

use options::{
    RawCleanup, RawCleanupWait, RawCommand, RawConfiguration, RawDoctor, RawFind, RawPeers,
    RawPull, RawRegistry,
};
use reader::{Reader, absolute, domain, duration, list, listen_addr, refuse, zone};

use crate::content::{containerd, layout};
use crate::mirror::InFlightSharing;
use crate::oci::ImageName;
use crate::oci::filter::Pattern;
use crate::routing::bootstrap::{http, parse_address};
use crate::try_pull::{Platform, PlatformError};
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
    Doctor(Box<Doctor>),
    Configuration(Configuration),
    Cleanup(Cleanup),
    CleanupWait(CleanupWait),
    Pull(Pull),
    Peers(Peers),
    Find(Find),
    Version(Format),
}

/// The daemon.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    pub bootstrap: Bootstrap,
    /// Where `/id` is served; None: nowhere.
    pub http_bootstrap_addr: Option<ListenAddr>,
    /// With what; None: plain HTTP.
    pub http_bootstrap_cert_dir: Option<PathBuf>,
    pub metrics_addr: ListenAddr,
    /// Whether `/debug` is served there, too.
    pub debug_web_enabled: bool,
    pub store: Store,
    /// None: a new identity at each start.
    pub data_dir: Option<PathBuf>,
    /// Whether nobody is served without the node's token, peers excepted.
    pub require_node_token: bool,
    /// Where what everybody is asked for may be.
    pub basic_auth_dir: PathBuf,
    /// None: whoever reaches the router's port takes part.
    pub cluster_secret_file: Option<PathBuf>,
    pub router_addr: ListenAddr,
    pub registry_addr: ListenAddr,
    pub mirror_resolve_timeout: Duration,
    pub mirror_resolve_retries: u32,
    /// Bodies under way to peers at once.
    pub max_uploads: usize,
    pub in_flight_sharing: InFlightSharing,
    /// None: unknown.
    pub zone: Option<String>,
    pub mirrored_registries: Vec<hosts::Registry>,
    /// References that are left out.
    pub registry_filters: Vec<Pattern>,
    /// Empty: [`default_route_addrs`] are announced.
    pub advertise_addrs: Vec<IpAddr>,
    pub shutdown_grace_period: Duration,
    /// Where `configuration` writes.
    pub containerd_registry_config_path: PathBuf,
    /// Addresses of the node, which a pod in a network of its own learns in no other way.
    pub node_ips: Vec<IpAddr>,
}

/// What is looked at, and how it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Doctor {
    pub registry: Registry,
    pub format: Format,
}

/// What containerd is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// As it stands on the command line: without headers, and without containerd's version.
    pub hosts: hosts::Config,
    /// Where the node's token is kept; None: there is none.
    pub data_dir: Option<PathBuf>,
    /// Where what containerd is asked for may be.
    pub basic_auth_dir: PathBuf,
    pub containerd: ContainerdVersion,
}

/// How it is known which containerd reads the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerdVersion {
    Said(hosts::Version),
    /// It is asked there.
    Asked {
        socket: PathBuf,
    },
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
    /// The port is that of this node's router where none is said.
    Dns {
        domains: Vec<(String, Option<u16>)>,
    },
    Http(http::Config),
    Static {
        peers: Vec<Multiaddr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleanup {
    pub containerd_registry_config_path: PathBuf,
    pub release: hosts::Release,
    /// Where `/readyz` is answered once everything is restored; None: the process ends then.
    pub addr: Option<ListenAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanupWait {
    pub host: String,
    pub port: u16,
    pub threshold: u32,
    pub period: Duration,
    pub timeout: Duration,
}

/// An image that is to be tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Pull {
    pub image: ImageName,
    pub platform: Platform,
    pub registry_addr: ListenAddr,
    /// None: there is no token.
    pub data_dir: Option<PathBuf>,
    pub basic_auth_dir: PathBuf,
    pub format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    pub metrics_addr: ListenAddr,
    pub format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    /// As it was typed: the daemon reads it.
    pub reference: String,
    pub metrics_addr: ListenAddr,
    pub format: Format,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
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
    let mut reader = Reader::default();
    let raw = words::split(args.into_iter().map(Into::into).collect(), &mut reader)?;
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
        RawCommand::Doctor(raw) => doctor(&mut reader, &raw).map(|d| Command::Doctor(Box::new(d))),
        RawCommand::Configuration(raw) => {
            configuration(&mut reader, &raw).map(Command::Configuration)
        }
        RawCommand::Cleanup(raw) => cleanup(&mut reader, &raw).map(Command::Cleanup),
        RawCommand::CleanupWait(raw) => cleanup_wait(&mut reader, &raw).map(Command::CleanupWait),
        RawCommand::Pull(raw) => pull(&mut reader, &raw).map(Command::Pull),
        RawCommand::Peers(raw) => peers(&mut reader, &raw).map(Command::Peers),
        RawCommand::Find(raw) => find(&mut reader, &raw).map(Command::Find),
        RawCommand::Version(raw) => format(&mut reader, &raw.format).map(Command::Version),
    };
    match (log, command) {
        (Some(log), Some(command)) if reader.mistakes.is_empty() => {
            Ok(CommandLine { log, command })
        }
        _ => Err(reader.refusal()),
    }
}

fn registry(reader: &mut Reader, raw: &RawRegistry) -> Option<Registry> {
    let http_bootstrap_cert_dir = reader.optional(
        "http-bootstrap-cert-dir",
        &raw.http_bootstrap_cert_dir,
        absolute,
    );
    let bootstrap = bootstrap(reader, raw, http_bootstrap_cert_dir.clone().flatten());
    let http_bootstrap_addr =
        reader.optional("http-bootstrap-addr", &raw.http_bootstrap_addr, listen_addr);
    let metrics_addr = reader.listen("metrics-addr", &raw.metrics_addr);
    let debug_web_enabled = reader.boolean("debug-web-enabled", &raw.debug_web_enabled);
    let store = store(reader, raw);
    let data_dir = reader.optional("data-dir", &raw.data_dir, absolute);
    let require_node_token = reader.boolean("require-node-token", &raw.require_node_token);
    let basic_auth_dir = reader.read("basic-auth-dir", &raw.basic_auth_dir, absolute);
    let cluster_secret_file =
        reader.optional("cluster-secret-file", &raw.cluster_secret_file, absolute);
    if let (Some(None), Some(Some(_))) = (&data_dir, &cluster_secret_file) {
        reader.mistake(
            "data-dir",
            "",
            "is missing, and --cluster-secret-file is set: without a token this node's containerd is a stranger to it",
            "name the directory that `peili configuration --data-dir` was given",
        );
    }
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
    let registry_filters = reader.patterns("registry-filters", &raw.registry_filters);
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
    let in_flight_sharing =
        reader.read(
            "in-flight-sharing",
            &raw.in_flight_sharing,
            |text| match text {
                "auto" => Ok(InFlightSharing::Auto),
                "always" => Ok(InFlightSharing::Always),
                "off" => Ok(InFlightSharing::Off),
                _ => refuse("is no way of sharing", "write auto, always or off"),
            },
        );
    let zone = reader.optional("zone", &raw.zone, zone);
    let advertise_addrs = advertise_addrs(reader, raw);
    let shutdown_grace_period = reader.read(
        "shutdown-grace-period",
        &raw.shutdown_grace_period,
        duration,
    );
    let directory = reader.directory(&raw.directory);
    let node_ips = node_ips(reader);

    let listeners = [
        ("registry-addr", registry_addr),
        ("router-addr", router_addr),
        ("metrics-addr", metrics_addr),
        ("http-bootstrap-addr", http_bootstrap_addr.flatten()),
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
        http_bootstrap_addr: http_bootstrap_addr?,
        http_bootstrap_cert_dir: http_bootstrap_cert_dir?,
        metrics_addr: metrics_addr?,
        debug_web_enabled: debug_web_enabled?,
        store: store?,
        data_dir: data_dir?,
        require_node_token: require_node_token?,
        basic_auth_dir: basic_auth_dir?,
        cluster_secret_file: cluster_secret_file?,
        router_addr: router_addr?,
        registry_addr: registry_addr?,
        mirror_resolve_timeout: mirror_resolve_timeout?,
        mirror_resolve_retries: mirror_resolve_retries?,
        max_uploads: max_uploads?,
        in_flight_sharing: in_flight_sharing?,
        zone: zone?,
        mirrored_registries: mirrored_registries?,
        registry_filters: registry_filters?,
        advertise_addrs,
        shutdown_grace_period: shutdown_grace_period?,
        containerd_registry_config_path: directory?,
        node_ips,
    })
}

fn doctor(reader: &mut Reader, raw: &RawDoctor) -> Option<Doctor> {
    let format = format(reader, &raw.format);
    Some(Doctor {
        registry: registry(reader, &raw.registry)?,
        format: format?,
    })
}

fn format(reader: &mut Reader, text: &str) -> Option<Format> {
    reader.read("format", text, |text| match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => refuse("is no format", "write text or json"),
    })
}

fn store(reader: &mut Reader, raw: &RawRegistry) -> Option<Store> {
    let socket = reader.socket(&raw.containerd_sock);
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

fn bootstrap(
    reader: &mut Reader,
    raw: &RawRegistry,
    cert_dir: Option<PathBuf>,
) -> Option<Bootstrap> {
    let mut peers = Vec::new();
    for text in list(&raw.static_bootstrap_peers) {
        peers.extend(reader.read("static-bootstrap-peers", text, |text| {
            parse_address(text)
                .or_else(|e| refuse(e.to_string(), "write it as /ip4/192.0.2.7/tcp/5001"))
        }));
    }
    let all_peers_read = peers.len() == list(&raw.static_bootstrap_peers).count();
    let mut domains = Vec::new();
    for text in list(&raw.dns_bootstrap_domain) {
        domains.extend(reader.read("dns-bootstrap-domain", text, domain));
    }
    let all_domains_read = domains.len() == list(&raw.dns_bootstrap_domain).count();
    let url = reader.optional("http-bootstrap-url", &raw.http_bootstrap_url, |text| {
        let cure = "write it as http://192.0.2.7:5002/id or https://peers.example/id";
        match text.parse::<http::Url>() {
            Err(e) => refuse(e.to_string(), cure),
            Ok(url) if cert_dir.is_some() && !url.is_https() => refuse(
                "is not https, and --http-bootstrap-cert-dir is set",
                "write https://, or leave the directory out",
            ),
            Ok(url) => Ok(url),
        }
    });
    match raw.bootstrap_kind.trim() {
        "dns" if !domains.is_empty() => return Some(Bootstrap::Dns { domains }),
        "dns" if all_domains_read => reader.mistake(
            "dns-bootstrap-domain",
            "",
            "is missing, and --bootstrap-kind is dns",
            "write the name of the headless service, \
             such as peili-bootstrap.peili.svc.cluster.local.",
        ),
        "dns" => {}
        "http" => match url? {
            Some(url) => return Some(Bootstrap::Http(http::Config { url, cert_dir })),
            None => reader.mistake(
                "http-bootstrap-url",
                "",
                "is missing, and --bootstrap-kind is http",
                "write the URL at which peers are named, such as http://peili-bootstrap.peili:5002/id",
            ),
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
            "write dns, http or static",
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
    let mut pod_ips = reader.variable("POD_IPS", "take it from the pod's status.podIPs");
    pod_ips.retain(|ip| can_be_reached(*ip));
    pod_ips
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
    let release = reader.release(&raw.release);
    let registries = reader.registries(&raw.mirrored_registries);
    let targets: Vec<_> = list(&raw.mirror_targets).collect();
    let targets = reader.hosts("mirror-targets", hosts::Targets::list(&targets));
    let tags = reader.tag_resolution(raw, registries.as_deref());
    let prepend_existing = reader.boolean("prepend-existing", &raw.prepend_existing);
    let data_dir = reader.optional("data-dir", &raw.data_dir, absolute);
    let basic_auth_dir = reader.read("basic-auth-dir", &raw.basic_auth_dir, absolute);
    let socket = reader.socket(&raw.containerd_sock);
    let said = match raw.containerd_version.trim() {
        "auto" => Some(None),
        text => {
            let said = text.parse().map_err(|mistake| vec![mistake]);
            reader.hosts("containerd-version", said).map(Some)
        }
    };
    let node_ips = node_ips(reader);
    Some(Configuration {
        hosts: hosts::Config {
            directory: directory?,
            release: release?,
            registries: registries?,
            targets: targets?,
            tags: tags?,
            prepend_existing: prepend_existing?,
            headers: Vec::new(),
            containerd: None,
            node_ips,
        },
        data_dir: data_dir?,
        basic_auth_dir: basic_auth_dir?,
        containerd: match said? {
            Some(version) => ContainerdVersion::Said(version),
            None => ContainerdVersion::Asked { socket: socket? },
        },
    })
}

/// The node's addresses, which a pod in a network of its own learns in no other way.
fn node_ips(reader: &mut Reader) -> Vec<IpAddr> {
    reader.variable("NODE_IP", "take it from the pod's status.hostIP")
}

fn cleanup(reader: &mut Reader, raw: &RawCleanup) -> Option<Cleanup> {
    let directory = reader.directory(&raw.directory);
    let release = reader.release(&raw.release);
    let addr = reader.optional("addr", &raw.addr, listen_addr);
    Some(Cleanup {
        containerd_registry_config_path: directory?,
        release: release?,
        addr: addr?,
    })
}

fn pull(reader: &mut Reader, raw: &RawPull) -> Option<Pull> {
    let image = raw.image.trim().parse::<ImageName>();
    if let Err(e) = &image {
        let cure = "write it in full, such as docker.io/library/nginx:1.27";
        reader.word(
            &raw.image,
            &format!("is no image that can be asked for ({e})"),
            cure,
        );
    }
    let platform = match raw.platform.trim() {
        "" => Some(Platform::here()),
        text => reader.read("platform", text, |text| {
            text.parse()
                .or_else(|e: PlatformError| refuse(e.to_string(), "write it as linux/amd64"))
        }),
    };
    let registry_addr = reader.listen("registry-addr", &raw.registry_addr);
    let data_dir = reader.optional("data-dir", &raw.data_dir, absolute);
    let basic_auth_dir = reader.read("basic-auth-dir", &raw.basic_auth_dir, absolute);
    let format = format(reader, &raw.format);
    Some(Pull {
        image: image.ok()?,
        platform: platform?,
        registry_addr: registry_addr?,
        data_dir: data_dir?,
        basic_auth_dir: basic_auth_dir?,
        format: format?,
    })
}

fn peers(reader: &mut Reader, raw: &RawPeers) -> Option<Peers> {
    let metrics_addr = reader.listen("metrics-addr", &raw.metrics_addr);
    let format = format(reader, &raw.format);
    Some(Peers {
        metrics_addr: metrics_addr?,
        format: format?,
    })
}

fn find(reader: &mut Reader, raw: &RawFind) -> Option<Find> {
    let metrics_addr = reader.listen("metrics-addr", &raw.metrics_addr);
    let format = format(reader, &raw.format);
    Some(Find {
        reference: raw.reference.trim().to_string(),
        metrics_addr: metrics_addr?,
        format: format?,
    })
}

fn cleanup_wait(reader: &mut Reader, raw: &RawCleanupWait) -> Option<CleanupWait> {
    let cure = "write the headless service's name and port, such as peili-cleanup.peili.svc.cluster.local.:8080";
    let endpoint = reader.read("probe-endpoint", &raw.probe_endpoint, |text| match text {
        "" => refuse("is missing", cure),
        text => match domain(text) {
            Ok((host, Some(port))) => Ok((host, port)),
            Ok((_, None)) => refuse("has no port", cure),
            Err((reason, _)) => refuse(reason, cure),
        },
    });
    let threshold = reader.read("threshold", &raw.threshold, |text| match text.parse() {
        Ok(0) => refuse("asks nobody", "write 1 or more; 3 is usual"),
        Ok(threshold) => Ok(threshold),
        Err(_) => refuse("is not a number", "write 3"),
    });
    let mut some_time = |flag, text| {
        reader.read(flag, text, |text| match duration(text)? {
            Duration::ZERO => refuse("leaves no time", "write it as 2s or 4m"),
            some => Ok(some),
        })
    };
    let (period, timeout) = (
        some_time("period", &raw.period),
        some_time("timeout", &raw.timeout),
    );
    let (host, port) = endpoint?;
    Some(CleanupWait {
        host,
        port,
        threshold: threshold?,
        period: period?,
        timeout: timeout?,
    })
}

#[cfg(test)]
mod tests;
