//! Where distributions have their containerd, and what an operator writes where.
//!
//! Told from what can be seen from a pod: the paths that it was given, what is mounted there, the node's kernel, its
//! os-release if it is mounted. The paths, and where they are from, are tested in tests/distributions.

use super::mounts::Mount;

/// One distribution.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    pub name: &'static str,
    /// A file of charts/peili/presets.
    pub preset: Option<&'static str>,
    pub socket: &'static str,
    /// What its containerd has as config_path, or is best given.
    pub certs_d: &'static str,
    pub content: &'static str,
    registries: Registries,
    keeping: Place,
}

/// How its containerd comes to read [`Profile::certs_d`].
#[derive(Debug, PartialEq, Eq)]
enum Registries {
    /// It always does.
    Always,
    /// Where this is written.
    Written(Place),
    Told(&'static str),
}

/// Where a part of containerd's configuration is written.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Before what is written.
    at: &'static str,
    /// Around it, where it is a part of something else.
    frame: Option<Frame>,
    /// After it.
    then: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    head: &'static str,
    indent: &'static str,
}

/// containerd's plugins have other names in 2.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    One,
    Two,
    /// containerd has not said.
    Unknown,
}

impl Generation {
    pub fn of(version: Option<&str>) -> Self {
        let number = version.map(|text| text.strip_prefix('v').unwrap_or(text));
        let major = number.and_then(|text| text.split('.').next()?.parse::<u32>().ok());
        match major {
            Some(2..) => Generation::Two,
            Some(_) => Generation::One,
            None => Generation::Unknown,
        }
    }
}

const CONFIG_TOML: Place = Place {
    at: "In /etc/containerd/config.toml:",
    frame: None,
    then: "then: systemctl restart containerd",
};

pub const PLAIN: Profile = Profile {
    name: "plain containerd",
    preset: None,
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/containerd/certs.d",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Written(CONFIG_TOML),
    keeping: CONFIG_TOML,
};

const K3S: Profile = Profile {
    name: "k3s",
    preset: Some("k3s"),
    socket: "/run/k3s/containerd/containerd.sock",
    certs_d: "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
    content: "/var/lib/rancher/k3s/agent/containerd/io.containerd.content.v1.content",
    registries: Registries::Always,
    keeping: Place {
        at: "In /var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl (containerd 1.x: config.toml.tmpl), \
             after a first line {{ template \"base\" . }}:",
        frame: None,
        then: "then: systemctl restart k3s (k3s-agent on agents)",
    },
};

const RKE2: Profile = Profile {
    name: "RKE2",
    preset: Some("rke2"),
    socket: "/run/k3s/containerd/containerd.sock",
    certs_d: "/var/lib/rancher/rke2/agent/etc/containerd/certs.d",
    content: "/var/lib/rancher/rke2/agent/containerd/io.containerd.content.v1.content",
    registries: Registries::Always,
    keeping: Place {
        at: "In /var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.tmpl (containerd 1.x: config.toml.tmpl), \
             after a first line {{ template \"base\" . }}:",
        frame: None,
        then: "then: systemctl restart rke2-server (rke2-agent on agents)",
    },
};

const K0S_PLACE: Place = Place {
    at: "In /etc/k0s/containerd.d/peili.toml (with version = 3, containerd 1.x: version = 2, before it):",
    frame: None,
    then: "then: systemctl restart k0sworker (k0scontroller where it runs pods)",
};

const K0S: Profile = Profile {
    name: "k0s",
    preset: Some("k0s"),
    socket: "/run/k0s/containerd.sock",
    certs_d: "/etc/containerd/certs.d",
    content: "/var/lib/k0s/containerd/io.containerd.content.v1.content",
    registries: Registries::Written(K0S_PLACE),
    keeping: K0S_PLACE,
};

const TALOS: Profile = Profile {
    name: "Talos",
    preset: Some("talos"),
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/cri/conf.d/hosts",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Always,
    keeping: Place {
        at: "In the machine configuration:",
        frame: Some(Frame {
            head: "machine:\n  files:\n    - path: /etc/cri/conf.d/20-customization.part\n      op: create\n      content: |",
            indent: "        ",
        }),
        then: "then: talosctl apply-config, and a reboot",
    },
};

const NODEADM: Place = Place {
    at: "In the node's user data:",
    frame: Some(Frame {
        head: "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  containerd:\n    config: |",
        indent: "      ",
    }),
    then: "then: new nodes",
};

const EKS: Profile = Profile {
    name: "EKS on Amazon Linux 2023",
    preset: Some("eks-al2023"),
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/containerd/certs.d",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Written(NODEADM),
    keeping: NODEADM,
};

const BOTTLEROCKET: Profile = Profile {
    name: "Bottlerocket",
    preset: Some("bottlerocket"),
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/containerd/certs.d",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Told(
        "Bottlerocket's containerd reads /etc/containerd/certs.d by itself from release 1.56 on (February 2026), and nothing \
         that an operator can set makes an older one read a directory: update the node. From 1.56 on, \
         settings.container-registry.mirrors become hosts.toml files in the same directory, and containerd asks those \
         mirrors and not this one for their registries: remove such settings, or set \
         peili.prependExisting=true to stand before them.",
    ),
    keeping: Place {
        at: "Bottlerocket keeps layers by itself and has no setting for it. Where they are gone nevertheless, another \
             snapshotter (settings.container-runtime.snapshotter) does not fetch them whole; what containerd would need is:",
        frame: None,
        then: "",
    },
};

const KIND_PLACE: Place = Place {
    at: "In the cluster's configuration:",
    frame: Some(Frame {
        head: "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\ncontainerdConfigPatches:\n  - |-",
        indent: "    ",
    }),
    then: "then: kind delete cluster, kind create cluster --config FILE",
};

const KIND: Profile = Profile {
    name: "Kind",
    preset: Some("kind"),
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/containerd/certs.d",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Written(KIND_PLACE),
    keeping: KIND_PLACE,
};

const GKE: Profile = Profile {
    name: "GKE",
    preset: None,
    socket: "/run/containerd/containerd.sock",
    certs_d: "/etc/containerd/hosts.d",
    content: "/var/lib/containerd/io.containerd.content.v1.content",
    registries: Registries::Told(
        "GKE's containerd has registry.mirrors, with which containerd reads no directory, until the node pool has a \
         runtime configuration with at least one entry in registryHosts: then it reads /etc/containerd/hosts.d. Give it \
         one (gcloud container node-pools update POOL --containerd-config-from-file=FILE).",
    ),
    keeping: Place {
        at: "GKE's containerd has discard_unpacked_layers = true from 1.27 on, and the node pool's runtime configuration has \
             no entry for it. On Standard clusters a privileged DaemonSet of your own can change it on each node; on \
             Autopilot, and with image streaming, which does not fetch layers whole, nodes share only what they are getting at \
             the same time. In /etc/containerd/config.toml:",
        frame: None,
        then: "then, as the DaemonSet: systemctl restart containerd on the node",
    },
};

/// What tells distributions apart.
#[derive(Clone, Debug, Default)]
pub struct Signs {
    /// Paths that Peili was given: the socket, certs.d, the content directory.
    pub paths: Vec<String>,
    pub mounts: Vec<Mount>,
    /// The node's, not the image's.
    pub os_release: Option<String>,
    /// /proc/version: kernels are the node's in every container.
    pub kernel: String,
    /// This process's SELinux context.
    pub selinux: String,
}

/// The distribution that the signs are of; [`PLAIN`] if they are of none.
pub fn detect(signs: &Signs) -> &'static Profile {
    let roots = signs.mounts.iter().map(|mount| mount.root.as_str());
    let points = signs.mounts.iter().filter_map(|mount| mount.point.to_str());
    let paths = signs.paths.iter().map(String::as_str);
    let all: Vec<&str> = paths.chain(roots).chain(points).collect();
    let has_path = |part: &str| all.iter().any(|path| path.contains(part));
    let id = signs.os_release.as_deref().and_then(|text| {
        let id = text.lines().find_map(|line| line.strip_prefix("ID="))?;
        Some(id.trim_matches(['"', '\'']))
    });
    let kernel = signs.kernel.as_str();
    // Whoever has paths of his own is known by them, on whatever system he was installed.
    if has_path("/rancher/rke2/") {
        &RKE2
    } else if has_path("/rancher/k3s/") || has_path("/run/k3s/") {
        &K3S
    } else if has_path("/run/k0s") || has_path("/var/lib/k0s") || has_path("/etc/k0s") {
        &K0S
    } else if id == Some("talos") || has_path("/etc/cri/conf.d") || kernel.contains("-talos") {
        &TALOS
    // The user super_t runs as, which nobody else has.
    } else if id == Some("bottlerocket") || signs.selinux.contains(":super_t:") {
        &BOTTLEROCKET
    // A node is a container whose /var is a volume of Docker's or Podman's.
    } else if has_path("/_data/lib/containerd/") {
        &KIND
    } else if id == Some("cos") || kernel.contains("(Chromium OS") {
        &GKE
    } else if (id == Some("amzn") || id.is_none()) && kernel.contains(".amzn2023.") {
        &EKS
    } else {
        &PLAIN
    }
}

impl Profile {
    /// What makes containerd read `directory`, or us write where it reads.
    pub fn config_path(&self, directory: &str, generation: Generation) -> String {
        let one = "plugins.\"io.containerd.grpc.v1.cri\".registry";
        let two = "plugins.\"io.containerd.cri.v1.images\".registry";
        let here = format!(
            "Or write where containerd reads: peili.containerdRegistryConfigPath={} \
             (--containerd-registry-config-path)",
            self.certs_d
        );
        let here = if directory == self.certs_d {
            String::new()
        } else {
            format!("\n{here}")
        };
        match &self.registries {
            Registries::Always if directory == self.certs_d => format!(
                "{} has config_path = {:?} by itself: look for a configuration of your own that replaces it.",
                self.name, self.certs_d
            ),
            Registries::Always => format!(
                "{}'s containerd reads {}: set peili.containerdRegistryConfigPath to it \
                 (--containerd-registry-config-path; {}).",
                self.name,
                self.certs_d,
                self.preset_file()
            ),
            Registries::Written(place) => {
                let setting = format!("config_path = {directory:?}");
                place.write(one, two, &setting, generation) + &here
            }
            Registries::Told(words) => format!("{words}{here}"),
        }
    }

    /// What keeps layers.
    pub fn keep_layers(&self, generation: Generation) -> String {
        let one = "plugins.\"io.containerd.grpc.v1.cri\".containerd";
        let two = "plugins.\"io.containerd.cri.v1.images\"";
        let setting = "discard_unpacked_layers = false";
        let place = self.keeping.write(one, two, setting, generation);
        format!("{place}\nWhat was pulled before has no layers to share until it is pulled again.")
    }

    /// Where the chart's values for this distribution are.
    pub fn preset_file(&self) -> String {
        match self.preset {
            Some(preset) => format!("the chart's presets/{preset}.yaml has it"),
            None => "the chart's defaults have it".to_string(),
        }
    }
}

impl Place {
    fn write(&self, one: &str, two: &str, setting: &str, generation: Generation) -> String {
        let (table, other) = match generation {
            Generation::One => (one, None),
            Generation::Two => (two, None),
            Generation::Unknown => (two, Some(one)),
        };
        let mut text = self.at.to_string();
        let indent = self.frame.as_ref().map_or("  ", |frame| frame.indent);
        if let Some(frame) = &self.frame {
            text = format!("{text}\n{}", frame.head);
        }
        text += &format!("\n{indent}[{table}]\n{indent}  {setting}");
        if let Some(other) = other {
            text += &format!("\n(containerd 1.x: [{other}])");
        }
        if !self.then.is_empty() {
            text += &format!("\n{}", self.then);
        }
        text
    }
}

#[cfg(test)]
mod tests;
