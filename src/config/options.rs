//! What can be typed: every option with its variable, its default, and what it does and costs.
//!
//! clap only splits the words. The values are read in [`super`], all mistakes at once.

use clap::builder::styling::Styles;
use clap::{Args, Parser, Subcommand};

use super::help::{
    self, ACCESS, ADDRESSES, CONTAINERD, CONTENT, FILES, PEERS, PROCESS, SHARING, TARGETS,
};

/// A stateless image mirror for Kubernetes nodes: containerd's own images, served from node to node.
///
/// Every option can be given as an environment variable, too; the option counts more. Lists take several values after
/// one option, or one variable with commas.
#[derive(Debug, Parser)]
#[command(name = "peili", version, styles = Styles::plain(), max_term_width = 100)]
pub(super) struct RawCommandLine {
    /// How much is logged (JSON on stderr): error, warn, info or debug, or a filter such as
    /// info,peili::mirror=debug. Debug writes several lines per request.
    #[arg(long, env = "LOG_LEVEL", default_value = "info",
        value_name = "LEVEL|FILTER", global = true, help_heading = PROCESS)]
    pub(super) log_level: String,

    #[command(subcommand)]
    pub(super) command: RawCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum RawCommand {
    /// Runs the mirror on this node, until SIGTERM.
    #[command(after_long_help = help::REGISTRY)]
    Registry(Box<RawRegistry>),
    /// Makes this node's containerd ask the mirror first, by a hosts.toml for each registry.
    ///
    /// Needs no restart of containerd, which must have its registries' config_path set. What was there before is kept in _backup. What
    /// somebody adds or edits later is his, and is left alone; to undo that, remove its directory and run this again.
    #[command(after_long_help = help::CONFIGURATION)]
    Configuration(RawConfiguration),
    /// Checks this node as an operator would, and says what to change.
    ///
    /// A mirror that is not asked, or that nobody answers, hides itself: pulls go to the registry as they did without it.
    /// So each thing that it rests on is looked at: containerd and its settings, hosts.toml, the port, the name of the
    /// first peers, the peers, and a blob that one of them is to give. Nothing is changed. Takes the options and variables
    /// of `registry`, so that in the pod it checks what runs there, and asks the running daemon at --metrics-addr.
    ///
    /// Exit code 0: all is well; 1: there are warnings; 2: something is broken; 64: the options cannot be used.
    #[command(after_long_help = help::DOCTOR)]
    Doctor(Box<RawDoctor>),
    /// Puts back what containerd was configured to before `configuration`, byte for byte.
    ///
    /// What somebody has added or edited since stays beside it.
    #[command(after_long_help = help::CLEANUP)]
    Cleanup(RawCleanup),
    /// Waits until `cleanup --addr` has been done on every node: until /readyz is answered at every address of a name.
    ///
    /// Exit code 0: done; 69: not within --timeout, and which addresses are missing is said; 143: SIGTERM came first.
    #[command(after_long_help = help::CLEANUP_WAIT)]
    CleanupWait(RawCleanupWait),
    /// Pulls an image through this node's mirror as containerd would, stores nothing, and says what came from where.
    ///
    /// Every digest is checked. What no node of the cluster holds is a failure here: containerd would go to the registry.
    /// Exit code 0: all of it came; 1: not all did.
    #[command(after_long_help = help::PULL)]
    Pull(RawPull),
    /// Says which other nodes this node's mirror knows, how far they are, and what went from whom to whom.
    #[command(after_long_help = help::PEERS_COMMAND)]
    Peers(RawPeers),
    /// Asks the cluster now who holds an image or a digest, and each of them whether it delivers it.
    ///
    /// Exit code 0: somebody does, or this node; 1: nobody, or nobody who delivers it.
    #[command(after_long_help = help::FIND)]
    Find(RawFind),
    /// Says which release this is.
    #[command(after_long_help = help::VERSION)]
    Version(RawVersion),
}

#[derive(Debug, Args)]
pub(super) struct RawRegistry {
    /// How the first peers are found. dns: the addresses of a headless service; http: whom a URL names; static: a fixed
    /// list. Required.
    #[arg(
        long,
        env = "BOOTSTRAP_KIND",
        default_value = "",
        hide_default_value = true,
        value_name = "dns|http|static",
        help_heading = PEERS
    )]
    pub(super) bootstrap_kind: String,

    /// Names whose A and AAAA records are the peers' addresses; all are asked, and one that cannot be resolved does not
    /// harm the others. NAME:PORT where routers listen at another port than this node's. Several join clusters to one, such
    /// as ours and Spegel's while a cluster is moved. Required with --bootstrap-kind=dns.
    #[arg(
        long, env = "DNS_BOOTSTRAP_DOMAIN", value_delimiter = ',', num_args = 0.., value_name = "NAME",
        help_heading = PEERS
    )]
    pub(super) dns_bootstrap_domain: Vec<String>,

    /// Where peers are asked for: a URL that answers [{"ID":"","Addrs":["/ip4/192.0.2.7/tcp/5001"]}], such as /id at the
    /// --http-bootstrap-addr of the other nodes. Required with --bootstrap-kind=http.
    #[arg(
        long,
        env = "HTTP_BOOTSTRAP_URL",
        default_value = "",
        hide_default_value = true,
        value_name = "URL",
        help_heading = PEERS
    )]
    pub(super) http_bootstrap_url: String,

    /// Where /id is served, which names this node and some of its peers to those that know nobody. Default: nowhere.
    #[arg(
        long,
        env = "HTTP_BOOTSTRAP_ADDR",
        default_value = "",
        hide_default_value = true,
        value_name = "[IP]:PORT",
        help_heading = PEERS
    )]
    pub(super) http_bootstrap_addr: String,

    /// A directory with ca.crt, tls.crt and tls.key, read anew for each connection. With it /id is served to nobody without
    /// a certificate of that authority, and the server at the URL must have one, too. Without it /id is plain HTTP, and
    /// an https URL is of an authority that this machine trusts.
    #[arg(
        long,
        env = "HTTP_BOOTSTRAP_CERT_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "DIR",
        help_heading = PEERS
    )]
    pub(super) http_bootstrap_cert_dir: String,

    /// Peers to begin with, as multiaddrs such as /ip4/192.0.2.7/tcp/5001. Two that are up suffice: the rest is learnt
    /// from them. Required with --bootstrap-kind=static.
    #[arg(
        long, env = "STATIC_BOOTSTRAP_PEERS", value_delimiter = ',', num_args = 0.., value_name = "MULTIADDR",
        help_heading = PEERS
    )]
    pub(super) static_bootstrap_peers: Vec<String>,

    /// Where /metrics is served. `:9090` is port 9090 of every address, IPv6 and IPv4.
    #[arg(
        long,
        env = "METRICS_ADDR",
        default_value = ":9090",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) metrics_addr: String,

    /// Whether /debug is served beside /metrics: a page that shows whether the mirror works, and the same as JSON. Whoever
    /// reaches the port can see which images are here. false: /debug is 404, and `peili peers` and `peili find` say so.
    #[arg(
        long, env = "DEBUG_WEB_ENABLED", default_value = "true", default_missing_value = "true",
        num_args = 0..=1, require_equals = true, value_name = "true|false",
        help_heading = ADDRESSES
    )]
    pub(super) debug_web_enabled: String,

    /// Where this node's content is. containerd: what its containerd holds. oci-layout: a directory of images, such as
    /// the seed of an air-gapped cluster; no containerd is needed, and the options for it are not used.
    #[arg(
        long,
        env = "STORE",
        default_value = "containerd",
        value_name = "containerd|oci-layout",
        help_heading = CONTENT
    )]
    pub(super) store: String,

    /// An OCI image layout (a directory with oci-layout, index.json and blobs), read and followed, never written. Images
    /// are found by names that index.json gives in full, registry/repository:tag. Required with --store=oci-layout.
    #[arg(
        long,
        env = "OCI_LAYOUT_PATH",
        default_value = "",
        hide_default_value = true,
        value_name = "DIR",
        help_heading = CONTENT
    )]
    pub(super) oci_layout_path: String,

    /// containerd's socket. Mount the directory that it is in: a mounted socket file is dead once containerd
    /// restarts. Who may connect here is root on the node.
    #[arg(
        long,
        env = "CONTAINERD_SOCK",
        default_value = "/run/containerd/containerd.sock",
        value_name = "PATH",
        help_heading = CONTENT
    )]
    pub(super) containerd_sock: String,

    /// The containerd namespace whose images are shared; Kubernetes uses k8s.io.
    #[arg(
        long,
        env = "CONTAINERD_NAMESPACE",
        default_value = "k8s.io",
        value_name = "NAME",
        help_heading = CONTENT
    )]
    pub(super) containerd_namespace: String,

    /// Where containerd keeps its content, as this process sees it. Default: containerd is asked. Needed where the
    /// directory is mounted under another path than it has on the node.
    #[arg(
        long,
        env = "CONTAINERD_CONTENT_PATH",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH",
        help_heading = CONTENT
    )]
    pub(super) containerd_content_path: String,

    /// Where this node's identity, token and known peers are kept. Default: nowhere; with each start the node is a new
    /// peer, what was told of the old one leads nowhere for up to 19 minutes, and without a name server nobody is found.
    #[arg(
        long,
        env = "DATA_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) data_dir: String,

    /// Serves nobody but peers and the containerd that sends the token which `configuration --data-dir` has made. Without
    /// this, whoever lacks the token still gets what the node holds, and nothing is fetched for him.
    #[arg(
        long, env = "REQUIRE_NODE_TOKEN", default_value = "false", default_missing_value = "true",
        num_args = 0..=1, require_equals = true, value_name = "true|false",
        help_heading = ACCESS
    )]
    pub(super) require_node_token: String,

    /// Where the user name and the password are that everybody must send who asks for anything, in two files called
    /// username and password, as a Secret mounts them. They are sent to peers, too, so all nodes must have the same, and
    /// containerd has them from `configuration`. Neither file there: nothing is asked for. A changed Secret is read again
    /// without a restart, and the pair before it is good until one. Probes and metrics stay open.
    #[arg(
        long,
        env = "BASIC_AUTH_DIR",
        default_value = "/etc/secrets/basic-auth",
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) basic_auth_dir: String,

    /// A file with the secret that makes a node a member of its cluster: at least 16 bytes in a line of text, such as
    /// `openssl rand -hex 32` prints. Then only nodes with it find each other, get content from each other, and are
    /// believed about tags; the registry port is open to them and to the containerd that sends the node's token, as with
    /// --require-node-token. All nodes need it, and Spegel's have none. Several lines: the first proves, all open; so a
    /// secret is replaced without an outage. A changed file is read again within a second. Default: whoever reaches the
    /// router's port takes part.
    #[arg(
        long,
        env = "CLUSTER_SECRET_FILE",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) cluster_secret_file: String,

    /// Where other peers reach this node to find content. Every node must be able to reach every other here.
    #[arg(
        long,
        env = "ROUTER_ADDR",
        default_value = ":5001",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) router_addr: String,

    /// Where this node's containerd and other peers get content. The port must be the same on all nodes.
    #[arg(
        long,
        env = "REGISTRY_ADDR",
        default_value = ":5000",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) registry_addr: String,

    /// Registries that are mirrored, such as https://docker.io. What belongs to others is answered with 404, and other
    /// nodes are not told of it. Default: every registry.
    #[arg(
        long, env = "MIRRORED_REGISTRIES", value_delimiter = ',', num_args = 0.., value_name = "URL",
        help_heading = CONTENT
    )]
    pub(super) mirrored_registries: Vec<String>,

    /// Regular expressions for what is left out: a reference in which one of them matches anywhere is answered with 404,
    /// and other nodes are not told of it. References are registry/repository:tag and, for manifests and blobs,
    /// registry/repository@sha256:…, each judged by itself: ^ghcr\.io/team/ leaves out whole repositories, :latest$ tags
    /// and not what they stand for. Content that another image has, too, is shared as that one's. No access control.
    /// Commas part several in the variable. Default: nothing is left out.
    #[arg(long, env = "REGISTRY_FILTERS", num_args = 0.., value_name = "REGEX", help_heading = CONTENT)]
    pub(super) registry_filters: Vec<String>,

    /// How long one peer may take to answer a lookup. Longer finds more in a slow network; a pull of what nobody has
    /// waits for it before it goes upstream.
    #[arg(
        long,
        env = "MIRROR_RESOLVE_TIMEOUT",
        default_value = "20ms",
        value_name = "DURATION",
        help_heading = SHARING
    )]
    pub(super) mirror_resolve_timeout: String,

    /// How many peers may fail to deliver before a request goes upstream. Peers that refuse, or do not have it any
    /// more, answer at once and are not counted. No request waits for its first byte longer than 2 s.
    #[arg(
        long,
        env = "MIRROR_RESOLVE_RETRIES",
        default_value = "3",
        value_name = "NUMBER",
        help_heading = SHARING
    )]
    pub(super) mirror_resolve_retries: String,

    /// Layers that are sent to other nodes at the same time, in fair parts. Who comes beyond that is sent to other
    /// holders, or goes upstream; this node's own containerd never is. Each takes up to about 2 MiB of memory.
    #[arg(long, env = "MAX_UPLOADS", default_value = "64", value_name = "NUMBER", help_heading = SHARING)]
    pub(super) max_uploads: String,

    /// Whether nodes that pull the same image at once share what one of them is getting from the registry, so that it is
    /// asked once and not by each. auto: unless that is slower than the registry itself. always: even then, which saves
    /// the most bytes, for metered or rate-limited registries. off: each asks for what nobody has yet.
    #[arg(
        long,
        env = "IN_FLIGHT_SHARING",
        default_value = "auto",
        value_name = "auto|always|off",
        help_heading = SHARING
    )]
    pub(super) in_flight_sharing: String,

    /// Where this node stands, such as a data centre's name; peers in the same zone are preferred. Default: unknown,
    /// and round trips decide.
    #[arg(
        long,
        env = "ZONE",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        help_heading = SHARING
    )]
    pub(super) zone: String,

    /// Addresses under which peers reach this node. Default: those of the variable POD_IPS, else that of the
    /// default route. Loopback is announced only when it is named here.
    #[arg(
        long, env = "ADVERTISE_ADDR", value_delimiter = ',', num_args = 0.., value_name = "IP",
        help_heading = ADDRESSES
    )]
    pub(super) advertise_addr: Vec<String>,

    /// What the kubelet allows between SIGTERM and SIGKILL: the pod's terminationGracePeriodSeconds. Transfers under
    /// way go on until 5 s before its end; an update of the DaemonSet waits for them on busy nodes.
    #[arg(
        long,
        env = "SHUTDOWN_GRACE_PERIOD",
        default_value = "30s",
        value_name = "DURATION",
        help_heading = PROCESS
    )]
    pub(super) shutdown_grace_period: String,

    #[command(flatten)]
    pub(super) directory: RawDirectory,
}

#[derive(Debug, Args)]
pub(super) struct RawConfiguration {
    #[command(flatten)]
    pub(super) directory: RawDirectory,

    #[command(flatten)]
    pub(super) release: RawRelease,

    /// Registries whose images are mirrored, such as https://docker.io or http://registry.example:5000. Default, like
    /// *: every registry.
    #[arg(
        long, env = "MIRRORED_REGISTRIES", value_delimiter = ',', num_args = 0.., value_name = "URL",
        help_heading = TARGETS
    )]
    pub(super) mirrored_registries: Vec<String>,

    /// URLs at which containerd asks the mirror, such as http://192.0.2.7:30020, in this order. Required. An address
    /// that drops packets instead of refusing costs every request 30 s on containerd 1.6 and 1.7. One with a path is a
    /// mirror that is not Peili, and the path is whole: https://harbor.example/v2/proxy. It gets no token.
    #[arg(
        long, env = "MIRROR_TARGETS", value_delimiter = ',', num_args = 0.., value_name = "URL",
        help_heading = TARGETS
    )]
    pub(super) mirror_targets: Vec<String>,

    /// Who says what a tag stands for. cluster-first: any node that has an image of that name, so a tag that has moved
    /// stays what it was as long as any node has the old one. upstream-first: the registry, with the pod's own
    /// credentials, and the cluster while the registry does not answer, or refuses; for registries that
    /// --mirrored-registries names. One that drops packets costs each tag 5 s, and 30 s on containerd 1.6 and 1.7.
    /// Where a registry is reached with what certs.d says of it, add --prepend-existing.
    /// upstream-only: the registry, which must be up. Content comes from the cluster in any case. Default:
    /// cluster-first.
    #[arg(
        long,
        env = "TAG_RESOLUTION",
        default_value = "",
        hide_default_value = true,
        value_name = "cluster-first|upstream-first|upstream-only",
        help_heading = TARGETS
    )]
    pub(super) tag_resolution: String,

    /// Spegel's word for the same: false is --tag-resolution=upstream-only, and true is one of the others. Default:
    /// what --tag-resolution says.
    #[arg(
        long, env = "RESOLVE_TAGS", default_value = "", hide_default_value = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, value_name = "true|false",
        help_heading = TARGETS
    )]
    pub(super) resolve_tags: String,

    /// Whether mirrors, certificates and headers that certs.d names already go on to count, behind ours. With false they
    /// are moved to its _backup and count for nothing until cleanup: a registry that is only reached with a certificate
    /// or through a proxy named there can then be pulled from other nodes alone.
    #[arg(
        long, env = "PREPEND_EXISTING", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_name = "true|false",
        help_heading = FILES
    )]
    pub(super) prepend_existing: String,

    /// Where the node's token is kept: made here once, sent by containerd to the mirror, and required by `registry` with
    /// the same directory before it fetches anything for anybody. Files with it are readable by root alone. Default:
    /// there is none, and whoever reaches the mirror can use it.
    #[arg(
        long,
        env = "DATA_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) data_dir: String,

    /// Where the user name and the password for the mirror are, in two files called username and password, as a Secret
    /// mounts them. containerd sends them with every request to a target without a path; files with them are readable
    /// by root alone. Neither file there: nothing is sent.
    #[arg(
        long,
        env = "BASIC_AUTH_DIR",
        default_value = "/etc/secrets/basic-auth",
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) basic_auth_dir: String,

    /// Which containerd reads the files, such as 1.7 or 2.1.9; auto: it is asked at its socket. 2.x is given each target
    /// that is this node's own (loopback, an address of this machine, or one in the variable NODE_IP) four times, so that
    /// it can be told to ask again, and other layers come first, while another node is still fetching. Where the version
    /// is unknown the files are as for 1.x, and every pull works; but 2.x nodes that pull the same image at once take
    /// parts of it from the registry more than once. After an upgrade of containerd to 2.x, run this again.
    #[arg(
        long,
        env = "CONTAINERD_VERSION",
        default_value = "auto",
        value_name = "VERSION|auto",
        help_heading = CONTAINERD
    )]
    pub(super) containerd_version: String,

    /// containerd's socket, for --containerd-version=auto. Not there, or silent for 2 s: a warning, and the files are
    /// written as for 1.x.
    #[arg(
        long,
        env = "CONTAINERD_SOCK",
        default_value = "/run/containerd/containerd.sock",
        value_name = "PATH",
        help_heading = CONTAINERD
    )]
    pub(super) containerd_sock: String,
}

#[derive(Debug, Args)]
pub(super) struct RawCleanup {
    #[command(flatten)]
    pub(super) directory: RawDirectory,

    #[command(flatten)]
    pub(super) release: RawRelease,

    /// Where /readyz is answered, until SIGTERM, once everything is restored. Default: nowhere; the process ends then.
    #[arg(
        long,
        env = "ADDR",
        default_value = "",
        hide_default_value = true,
        value_name = "[IP]:PORT",
        help_heading = PROCESS
    )]
    pub(super) addr: String,
}

#[derive(Debug, Args)]
pub(super) struct RawCleanupWait {
    /// The headless service of the nodes that are cleaned up, with its port. All its addresses of both families must
    /// answer; it should publish those that are not ready. Required.
    #[arg(
        long,
        env = "PROBE_ENDPOINT",
        default_value = "",
        hide_default_value = true,
        value_name = "HOST:PORT",
        help_heading = PROCESS
    )]
    pub(super) probe_endpoint: String,

    /// How often in a row every address must answer. Nodes that are known later than that are not waited for.
    #[arg(
        long,
        env = "THRESHOLD",
        default_value = "3",
        value_name = "NUMBER",
        help_heading = PROCESS
    )]
    pub(super) threshold: String,

    /// From one look to the next.
    #[arg(
        long,
        env = "PERIOD",
        default_value = "2s",
        value_name = "DURATION",
        help_heading = PROCESS
    )]
    pub(super) period: String,

    /// When to give up. Helm waits for a hook for 5 minutes, and does not say what was missing.
    #[arg(
        long,
        env = "TIMEOUT",
        default_value = "4m",
        value_name = "DURATION",
        help_heading = PROCESS
    )]
    pub(super) timeout: String,
}

#[derive(Debug, Args)]
pub(super) struct RawDoctor {
    #[command(flatten)]
    pub(super) registry: RawRegistry,

    /// text: a line for each check, with its cure below it. json: the same for programs.
    #[arg(long, default_value = "text", value_name = "text|json", help_heading = PROCESS)]
    pub(super) format: String,
}

#[derive(Debug, Args)]
pub(super) struct RawDirectory {
    /// The directory that containerd has as its registries' config_path.
    #[arg(
        long,
        env = "CONTAINERD_REGISTRY_CONFIG_PATH",
        default_value = "/etc/containerd/certs.d",
        value_name = "PATH",
        help_heading = FILES
    )]
    pub(super) containerd_registry_config_path: String,
}

#[derive(Debug, Args)]
pub(super) struct RawRelease {
    /// Which installation this is. On a node there can be one: another one's `configuration` is refused, and its
    /// `cleanup` changes nothing. What was written under one name must be cleaned up under it.
    #[arg(
        long,
        env = "RELEASE_NAME",
        default_value = "peili",
        value_name = "NAME",
        help_heading = FILES
    )]
    pub(super) release_name: String,
}

#[derive(Debug, Args)]
pub(super) struct RawPull {
    /// The image, written out in full: docker.io/library/nginx:1.27, or with a digest.
    #[arg(value_name = "IMAGE", help_heading = CONTENT)]
    pub(super) image: String,

    /// Which image of an index, such as linux/arm64. Default: this machine's.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "OS/ARCH", help_heading = CONTENT)]
    pub(super) platform: String,

    /// Where this node's mirror serves. `:5000` is asked at loopback.
    #[arg(
        long,
        env = "REGISTRY_ADDR",
        default_value = ":5000",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) registry_addr: String,

    /// The directory that `configuration --data-dir` was given: with the token in it the mirror takes this for this
    /// node's containerd. Default: there is none.
    #[arg(
        long,
        env = "DATA_DIR",
        default_value = "",
        hide_default_value = true,
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) data_dir: String,

    /// Where the user name and the password for the mirror are, in two files called username and password. Neither file
    /// there: nothing is sent.
    #[arg(
        long,
        env = "BASIC_AUTH_DIR",
        default_value = "/etc/secrets/basic-auth",
        value_name = "PATH",
        help_heading = ACCESS
    )]
    pub(super) basic_auth_dir: String,

    /// text: bars on a terminal, lines elsewhere. json: one line for each event.
    #[arg(long, default_value = "text", value_name = "text|json", help_heading = PROCESS)]
    pub(super) format: String,
}

#[derive(Debug, Args)]
pub(super) struct RawPeers {
    /// Where this node's mirror tells its metrics. `:9090` is asked at loopback.
    #[arg(
        long,
        env = "METRICS_ADDR",
        default_value = ":9090",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) metrics_addr: String,

    /// text or json.
    #[arg(long, default_value = "text", value_name = "text|json", help_heading = PROCESS)]
    pub(super) format: String,
}

#[derive(Debug, Args)]
pub(super) struct RawFind {
    /// An image written out in full, docker.io/library/nginx:1.27, or a digest: sha256:…
    #[arg(value_name = "REFERENCE", help_heading = CONTENT)]
    pub(super) reference: String,

    /// Where this node's mirror tells its metrics. `:9090` is asked at loopback.
    #[arg(
        long,
        env = "METRICS_ADDR",
        default_value = ":9090",
        value_name = "[IP]:PORT",
        help_heading = ADDRESSES
    )]
    pub(super) metrics_addr: String,

    /// text or json.
    #[arg(long, default_value = "text", value_name = "text|json", help_heading = PROCESS)]
    pub(super) format: String,
}

#[derive(Debug, Args)]
pub(super) struct RawVersion {
    /// text or json.
    #[arg(long, default_value = "text", value_name = "text|json", help_heading = PROCESS)]
    pub(super) format: String,
}
