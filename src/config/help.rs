//! The frame of `--help`: the headings that options stand below, and each command's examples.
//!
//! `docs/configuration.md` has the same (`make docs`). A test runs the examples through the parser.

/// How nodes find each other.
pub(super) const PEERS: &str = "Peers";
/// What is shared, and of whom.
pub(super) const CONTENT: &str = "Content";
pub(super) const ADDRESSES: &str = "Addresses";
/// Who is served.
pub(super) const ACCESS: &str = "Access";
/// How content goes from node to node.
pub(super) const SHARING: &str = "Sharing";
/// Whom containerd asks, and for what.
pub(super) const TARGETS: &str = "Registries and mirrors";
pub(super) const FILES: &str = "Files";
pub(super) const CONTAINERD: &str = "containerd";
pub(super) const PROCESS: &str = "Process";

pub(super) const REGISTRY: &str = "\
Variables without an option:
  POD_IPS  addresses of the pod (status.podIPs), parted by commas: announced
           where --advertise-addr is not given
  NODE_IP  addresses of the node (status.hostIP), parted by commas: what
           hosts.toml names at them is this node's own

Examples:
  # Find the other nodes behind the name of a headless service.
  peili registry --data-dir /var/lib/peili --bootstrap-kind dns \\
    --dns-bootstrap-domain peili-bootstrap.peili.svc.cluster.local.

  # Or by the addresses of two of them, and mirror Docker Hub alone.
  peili registry --data-dir /var/lib/peili --bootstrap-kind static \\
    --static-bootstrap-peers /ip4/192.0.2.7/tcp/5001 /ip4/192.0.2.8/tcp/5001 \\
    --mirrored-registries https://docker.io

  # Share a directory of images; no containerd is needed.
  peili registry --store oci-layout --oci-layout-path /srv/images \\
    --bootstrap-kind static --static-bootstrap-peers /ip4/192.0.2.7/tcp/5001";

pub(super) const CONFIGURATION: &str = "\
Variables without an option:
  NODE_IP  addresses of the node (status.hostIP), parted by commas: targets at
           them are this node's own (see --containerd-version)

Examples:
  # Mirror every registry; only this node's containerd can use the mirror.
  peili configuration --mirror-targets http://127.0.0.1:30020 \\
    --data-dir /var/lib/peili

  # Two registries; what certs.d has for them stays behind the mirror.
  peili configuration --mirror-targets http://127.0.0.1:30020 \\
    --mirrored-registries https://docker.io https://ghcr.io --prepend-existing

  # Tags from the registry while it is up, and from the cluster when it is not.
  peili configuration --mirror-targets http://127.0.0.1:30020 \\
    --mirrored-registries https://docker.io --tag-resolution upstream-first

  # Behind the mirror, a cache that is not Peili.
  peili configuration --mirror-targets http://127.0.0.1:30020 \\
    https://harbor.example/v2/proxy";

pub(super) const DOCTOR: &str = "\
Variables without an option:
  NODE_IP  addresses of the node (status.hostIP), parted by commas: what
           hosts.toml names at them is this node's own

Examples:
  # In the pod of a node, where all options are in the environment:
  #   kubectl -n peili exec POD -- /peili doctor
  peili doctor --bootstrap-kind dns \\
    --dns-bootstrap-domain peili-bootstrap.peili.svc.cluster.local.

  # For a script: 0 is well, 1 has warnings, 2 is broken.
  peili doctor --format json --bootstrap-kind static \\
    --static-bootstrap-peers /ip4/192.0.2.7/tcp/5001";

pub(super) const CLEANUP: &str = "\
Examples:
  peili cleanup

  # As an uninstalling hook does: stay, and say on port 8080 that it is done.
  peili cleanup --addr :8080";

pub(super) const CLEANUP_WAIT: &str = "\
Examples:
  # As an uninstalling hook does: until all nodes of the service are cleaned up.
  peili cleanup-wait \\
    --probe-endpoint peili-cleanup.peili.svc.cluster.local.:8080";

pub(super) const PULL: &str = "\
Examples:
  # Does a pull come from other nodes? In a pod the variables are set already.
  kubectl exec -n peili ds/peili -- \\
    /peili pull docker.io/library/nginx:1.27

  # The same on a node, where the mirror serves at another port.
  peili pull docker.io/library/nginx:1.27 --registry-addr :30020 \\
    --data-dir /var/lib/peili

  # For a script.
  peili pull ghcr.io/team/app:v1 --platform linux/arm64 --format json";

pub(super) const PEERS_COMMAND: &str = "\
Examples:
  peili peers

  # In a pod, and for a script.
  kubectl exec -n peili ds/peili -- /peili peers --format json
  peili peers --metrics-addr 127.0.0.1:9090 --format json";

pub(super) const FIND: &str = "\
Examples:
  # Who has this image, by its tag?
  peili find docker.io/library/nginx:1.27

  # And one of its layers?
  peili find --format json \\
    sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

pub(super) const VERSION: &str = "\
Examples:
  peili version --format json";
