//! containerd, its socket, what it reads and keeps, and its directory.

use super::*;

#[test]
fn what_containerd_is_and_does() {
    use State::{Broken, Ok as Good, Skipped, Warning};
    let silent = |f: &mut Facts| f.live = Err(Silence::NotRunning("refused".into()));
    let mount = |root: &str| {
        Some(Mount {
            root: root.into(),
            point: "/run/containerd/containerd.sock".into(),
        })
    };
    run(vec![
        case(
            healthy(),
            ("socket", Broken),
            ("no such file", "peili.containerdSock"),
            |f| {
                containerd(f).version = Err("no such file".into());
            },
        ),
        case(
            healthy(),
            ("socket", Broken),
            ("refused", "socket_mount"),
            |f| {
                containerd(f).version = Err("refused".into());
                containerd(f).socket_mount = mount("/c.sock//deleted");
            },
        ),
        case(
            healthy(),
            ("socket_mount", Warning),
            (
                "dead once containerd restarts",
                "Mount /run/containerd instead",
            ),
            |f| {
                containerd(f).socket_mount = mount("/c.sock");
            },
        ),
        case(
            healthy(),
            ("socket_mount", Broken),
            ("is gone", "Mount /run/containerd instead"),
            |f| {
                containerd(f).socket_mount = mount("/c.sock//deleted");
            },
        ),
        // By containerd's own word.
        case(
            healthy(),
            ("config_path", Broken),
            (
                "reads no directory",
                "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"/etc/containerd/certs.d\"",
            ),
            |f| {
                containerd(f).cri = cri("", false);
            },
        ),
        case(
            healthy(),
            ("config_path", Broken),
            ("reads /elsewhere,", "/etc/containerd/config.toml"),
            |f| {
                containerd(f).cri = cri("/elsewhere", false);
            },
        ),
        case(
            healthy(),
            ("layers", Broken),
            ("by its own word", "discard_unpacked_layers = false"),
            |f| {
                containerd(f).cri = cri("/etc/containerd/certs.d", true);
            },
        ),
        case(
            healthy(),
            ("layers", Warning),
            ("2 of 20 images", "Pull them again"),
            |f| {
                observed(f).without_layers = 2;
            },
        ),
        case(healthy(), ("layers", Good), ("own word", ""), silent),
        // By what is seen.
        case(
            healthy_2(),
            ("config_path", Skipped),
            ("pulled nothing", ""),
            |f| {
                *observed(f) = Observed::default();
            },
        ),
        case(
            healthy_2(),
            ("config_path", Broken),
            (
                "pulled a.test/app:v1",
                "[plugins.\"io.containerd.cri.v1.images\".registry]",
            ),
            |f| {
                *observed(f) = Observed {
                    pulls: 2,
                    pulls_past_us: 2,
                    past_us: Some("a.test/app:v1".into()),
                    ..Observed::default()
                };
            },
        ),
        case(
            healthy_2(),
            ("config_path", Warning),
            ("last 2 pulls", "ctr"),
            |f| {
                observed(f).pulls_past_us = 2;
            },
        ),
        case(
            healthy_2(),
            ("config_path", Skipped),
            ("not running", ""),
            silent,
        ),
        case(
            healthy_2(),
            ("layers", Broken),
            (
                "20 of 20 images are here without their layers, such as a.test/app:v1",
                "[plugins.\"io.containerd.cri.v1.images\"]\n    discard_unpacked_layers = false",
            ),
            |f| {
                observed(f).without_layers = 20;
                observed(f).without = Some("a.test/app:v1".into());
            },
        ),
        case(
            healthy_2(),
            ("layers", Warning),
            ("1 of 20 images", "discard_unpacked_layers"),
            |f| {
                observed(f).without_layers = 1;
            },
        ),
        case(
            healthy_2(),
            ("layers", Skipped),
            ("no image here", ""),
            |f| {
                *observed(f) = Observed::default();
            },
        ),
        case(
            healthy_2(),
            ("layers", Skipped),
            ("not running", ""),
            silent,
        ),
        // What is on the disk.
        case(
            healthy(),
            ("content", Warning),
            ("through containerd's socket", "read-only"),
            |f| {
                containerd(f).content.blobs = Err("Permission denied".into());
            },
        ),
        case(
            healthy(),
            ("content", Warning),
            ("still writing cannot", "containerdContentPath"),
            |f| {
                containerd(f).content.ingest = Err("Permission denied".into());
            },
        ),
        case(
            healthy(),
            ("content", Broken),
            ("another content store's", "/var/lib/containerd/"),
            |f| {
                containerd(f).content.sample = Ok(Sample {
                    named: 20,
                    found: 0,
                });
            },
        ),
        case(healthy(), ("content", Good), ("can be read", ""), |f| {
            containerd(f).content.sample = Ok(Sample::default());
        }),
        case(healthy(), ("content", Skipped), ("not known", ""), |f| {
            containerd(f).content.root = Err("silent".into());
        }),
        // No containerd is needed, and what it would read is nobody's fault.
        case(healthy(), ("socket", Skipped), ("oci-layout", ""), |f| {
            f.containerd = None
        }),
        case(
            healthy(),
            ("hosts_toml", Skipped),
            ("no hosts.toml", ""),
            |f| {
                f.containerd = None;
                f.hosts.files = Ok(Vec::new());
            },
        ),
    ]);
}

#[test]
fn a_new_node_has_no_content_and_that_is_no_fault() {
    let mut facts = healthy();
    let content = &mut containerd(&mut facts).content;
    content.is_absent = true;
    content.blobs = Err("no such directory".into());
    content.ingest = Err("no such directory".into());
    content.sample = Ok(Sample::default());
    run(vec![case(
        facts,
        ("content", State::Skipped),
        ("not there yet", ""),
        |_| {},
    )]);
}
