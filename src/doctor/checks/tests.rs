use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Facts;
use super::all;
use crate::content::containerd::told::Cri;
use crate::doctor::Report;
use crate::doctor::facts::{Containerd, Content, Hosts, Name, Port, Sample, Served};
use crate::doctor::live::{Delivery, Live, Observed, Peers, Silence, Strangers};
use crate::doctor::mounts::Mount;
use crate::doctor::profile::PLAIN;
use crate::finding::{State, verdict};
use crate::hosts::{Fit, Found, Mirror, Whose};

const TOKEN: &str = "0123";
const URL: &str = "http://192.0.2.7:30020";

fn ours(headers: &[(&str, &str)], fit: Fit) -> Found {
    let headers: BTreeMap<_, _> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    Found {
        registry: "_default".into(),
        path: "/etc/containerd/certs.d/_default/hosts.toml".into(),
        whose: Whose::Ours {
            mirrors: vec![Mirror {
                url: URL.into(),
                is_own: true,
                headers,
            }],
            fit: Some(fit),
        },
    }
}

fn theirs(whose: Whose) -> Found {
    Found {
        registry: "ghcr.io".into(),
        path: "/etc/containerd/certs.d/ghcr.io/hosts.toml".into(),
        whose,
    }
}

fn live() -> Live {
    Live {
        awaited: Vec::new(),
        peers: Peers {
            known: 4,
            connected: 3,
        },
        strangers: Strangers::default(),
        observed: Observed {
            requests: 12,
            pulls: 1,
            images: 20,
            ..Observed::default()
        },
        delivery: Some(Delivery::Delivered {
            digest: "sha256:00".into(),
            peer: "192.0.2.8:5000".into(),
            ms: 3,
        }),
    }
}

/// containerd 1.7, which tells what it reads; a token; five nodes.
fn healthy() -> Facts {
    Facts {
        profile: &PLAIN,
        containerd: Some(Containerd {
            socket: "/run/containerd/containerd.sock".into(),
            version: Ok("1.7.24".into()),
            socket_mount: None,
            cri: Ok(Cri {
                config_path: Some("/etc/containerd/certs.d:/etc/docker/certs.d".into()),
                discard_unpacked_layers: Some(false),
            }),
            content: Content {
                root: Ok(PathBuf::from(
                    "/var/lib/containerd/io.containerd.content.v1.content",
                )),
                is_absent: false,
                blobs: Ok(()),
                ingest: Ok(()),
                sample: Ok(Sample {
                    named: 20,
                    found: 20,
                }),
            },
        }),
        hosts: Hosts {
            directory: "/etc/containerd/certs.d".into(),
            files: Ok(vec![ours(&[("x-peili-token", TOKEN)], Fit::Suits)]),
            version: Some("1.7.24".parse().unwrap()),
            wanted: Vec::new(),
            token: Ok(Some(TOKEN.into())),
            requires_token: false,
            basic_auth: Ok(None),
        },
        ports: vec![Port {
            url: URL.into(),
            answer: Ok(Served::Ready),
        }],
        members: Some(Ok(1)),
        bootstrap: vec![Name {
            name: "peili-bootstrap.peili.svc.cluster.local.".into(),
            leads_to: Ok(5),
        }],
        live: Ok(live()),
    }
}

/// containerd 2.1, which tells nothing.
fn healthy_2() -> Facts {
    let mut facts = healthy();
    facts.hosts.version = Some("v2.1.9".parse().unwrap());
    let containerd = facts.containerd.as_mut().unwrap();
    containerd.version = Ok("v2.1.9".into());
    containerd.cri = Ok(Cri::default());
    facts
}

#[test]
fn a_healthy_node_has_nothing_but_good_findings_one_of_each() {
    for facts in [healthy(), healthy_2()] {
        let findings = all(&facts);

        for finding in &findings {
            assert_eq!(finding.state, State::Ok, "{finding:?}");
            assert_eq!(finding.cure, None);
        }
        let mut names: Vec<_> = findings.iter().map(|finding| finding.check).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), findings.len());
        assert_eq!(verdict(&findings).exit_code(), 0);
    }
}

/// What is found when one thing is wrong: its check, how bad, what is said, and what the cure names.
struct Case {
    facts: Facts,
    check: &'static str,
    state: State,
    seen: &'static str,
    cure: &'static str,
}

fn case(
    mut facts: Facts,
    (check, state): (&'static str, State),
    (seen, cure): (&'static str, &'static str),
    change: impl FnOnce(&mut Facts),
) -> Case {
    change(&mut facts);
    Case {
        facts,
        check,
        state,
        seen,
        cure,
    }
}

fn run(cases: Vec<Case>) {
    for Case {
        facts,
        check,
        state,
        seen,
        cure,
    } in cases
    {
        let findings = all(&facts);
        let found = findings.iter().find(|finding| finding.check == check);
        let found = found.unwrap_or_else(|| panic!("no {check}"));
        assert_eq!(found.state, state, "{found:?}");
        assert!(found.seen.contains(seen), "{seen:?} in {found:?}");
        let told = found.cure.clone().unwrap_or_default();
        assert!(told.contains(cure), "{cure:?} in {found:?}");
        assert_eq!(found.cure.is_some(), state > State::Ok, "{found:?}");
    }
}

fn containerd(facts: &mut Facts) -> &mut Containerd {
    facts.containerd.as_mut().unwrap()
}

fn observed(facts: &mut Facts) -> &mut Observed {
    &mut facts.live.as_mut().unwrap().observed
}

fn strangers(facts: &mut Facts) -> &mut Strangers {
    &mut facts.live.as_mut().unwrap().strangers
}

fn cri(config_path: &str, discards: bool) -> Result<Cri, String> {
    Ok(Cri {
        config_path: Some(config_path.into()),
        discard_unpacked_layers: Some(discards),
    })
}

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
fn what_containerd_reads() {
    use State::{Broken, Ok as Good, Skipped, Warning};
    run(vec![
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("does not know of the mirror", "Restart this pod"),
            |f| {
                f.hosts.files = Ok(Vec::new());
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("those of others (ghcr.io)", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![theirs(Whose::Others)]);
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("cannot be read: denied", "containerdRegistryConfigPath"),
            |f| {
                f.hosts.files = Err("denied".into());
                observed(f).requests = 0;
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Good),
            ("past it go ghcr.io", ""),
            |f| {
                f.hosts.files.as_mut().unwrap().push(theirs(Whose::Others));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            (
                "ghcr.io in /etc/containerd/certs.d was edited",
                "remove its directory",
            ),
            |f| {
                f.hosts.files.as_mut().unwrap().push(theirs(Whose::Edited));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            ("cannot be read", "permissions"),
            |f| {
                f.hosts
                    .files
                    .as_mut()
                    .unwrap()
                    .push(theirs(Whose::Unreadable("denied".into())));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            ("and not for docker.io", "left alone"),
            |f| {
                f.hosts.wanted = vec!["_default".into(), "docker.io".into()];
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("sends no token", "--data-dir"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::Suits)]);
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("another token", "--data-dir"),
            |f| {
                f.hosts.token = Ok(Some("4567".into()));
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("for some registries", "Restart"),
            |f| {
                f.hosts.files.as_mut().unwrap().push(ours(&[], Fit::Suits));
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("and there is none", "--data-dir"),
            |f| {
                f.hosts.token = Ok(None);
                f.hosts.requires_token = true;
            },
        ),
        case(
            healthy(),
            ("token", Warning),
            ("knows of none", "peili registry"),
            |f| f.hosts.token = Ok(None),
        ),
        case(healthy(), ("token", Good), ("whoever reaches", ""), |f| {
            f.hosts.token = Ok(None);
            f.hosts.files = Ok(vec![ours(&[], Fit::Suits)]);
        }),
        case(healthy(), ("token", Skipped), ("no hosts.toml", ""), |f| {
            f.hosts.files = Ok(Vec::new())
        }),
        case(
            healthy(),
            ("basic_auth", Broken),
            ("does not send the user name", "Restart"),
            |f| {
                f.hosts.basic_auth = Ok(Some("Basic AAAA".into()));
            },
        ),
        case(
            healthy(),
            ("basic_auth", Good),
            ("sends the user name", ""),
            |f| {
                f.hosts.basic_auth = Ok(Some("Basic AAAA".into()));
                f.hosts.files = Ok(vec![ours(&[("authorization", "Basic AAAA")], Fit::Suits)]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Warning),
            ("not repeated", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::TooFew(URL.into()))]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Warning),
            ("helps nobody", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::TooMany(URL.into()))]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Skipped),
            ("not known", ""),
            |f| f.hosts.version = None,
        ),
    ]);
}

#[test]
fn the_port_and_the_others() {
    use State::{Broken, Ok as Good, Skipped, Warning};
    let port = |answer: Result<Served, String>| {
        vec![Port {
            url: URL.into(),
            answer,
        }]
    };
    let names = |all: &[Result<usize, &str>]| -> Vec<Name> {
        let name = |leads_to: &Result<usize, &str>| Name {
            name: "peers.test.".into(),
            leads_to: leads_to.map_err(str::to_string),
        };
        all.iter().map(name).collect()
    };
    let alone = |f: &mut Facts| f.live.as_mut().unwrap().peers = Peers::default();
    run(vec![
        case(
            healthy(),
            ("port", Broken),
            (
                "nobody answers at http://192.0.2.7:30020: refused",
                "nodePort",
            ),
            |f| {
                f.ports = port(Err("refused".into()));
                observed(f).requests = 0;
            },
        ),
        case(
            healthy(),
            ("port", Good),
            ("but containerd reaches it", ""),
            |f| f.ports = port(Err("refused".into())),
        ),
        case(
            healthy(),
            ("port", Warning),
            ("not ready: awaiting content", "quick 404"),
            |f| {
                f.ports = port(Ok(Served::NotReady("awaiting content".into())));
            },
        ),
        case(
            healthy(),
            ("port", Broken),
            ("no Peili", "Another program"),
            |f| {
                f.ports = port(Ok(Served::Other("SSH".into())));
            },
        ),
        case(healthy(), ("port", Broken), ("user name", "Restart"), |f| {
            f.ports = port(Ok(Served::Unauthorized))
        }),
        case(healthy(), ("port", Skipped), ("no address", ""), |f| {
            f.ports.clear()
        }),
        case(
            healthy(),
            ("bootstrap", Warning),
            ("leads nowhere: no such name", "endpointslices"),
            |f| {
                f.bootstrap = names(&[Err("no such name")]);
            },
        ),
        case(
            healthy(),
            ("bootstrap", Broken),
            ("leads nowhere", "endpointslices"),
            |f| {
                f.bootstrap = names(&[Err("no such name")]);
                alone(f);
            },
        ),
        case(
            healthy(),
            ("bootstrap", Broken),
            ("leads to nobody", "endpointslices"),
            |f| {
                f.bootstrap = names(&[Ok(0)]);
                alone(f);
            },
        ),
        case(
            healthy(),
            ("bootstrap", Warning),
            (
                "leads to 3 addresses; peers.test. leads to nobody",
                "headless",
            ),
            |f| {
                f.bootstrap = names(&[Ok(3), Ok(0)]);
            },
        ),
        case(
            healthy(),
            ("peers", Broken),
            ("though 5 addresses are named", "NetworkPolicy"),
            alone,
        ),
        case(healthy(), ("members", Good), ("closed, by one", ""), |_| {}),
        case(healthy(), ("members", Good), ("closed, by 2", ""), |f| {
            f.members = Some(Ok(2))
        }),
        case(healthy(), ("members", Good), ("is open", ""), |f| {
            f.members = None;
            // Whoever calls into an open swarm and fails is no stranger to it.
            strangers(f).called = Some("/ip4/192.0.2.8 (no_secret)".into());
        }),
        case(
            healthy(),
            ("members", Broken),
            ("line 1, has a secret of 3 bytes", "--cluster-secret-file"),
            |f| f.members = Some(Err("line 1, has a secret of 3 bytes".into())),
        ),
        case(
            healthy(),
            ("members", Broken),
            (
                "whom this node calls has no secret in common",
                "the same --cluster-secret-file",
            ),
            |f| {
                alone(f);
                strangers(f).met = Some("/ip4/192.0.2.8 (other_secret)".into());
            },
        ),
        case(
            healthy(),
            ("members", Broken),
            ("is open (no --cluster-secret-file), and whom", "or none"),
            |f| {
                alone(f);
                f.members = None;
                strangers(f).met = Some("/ip4/192.0.2.8 (no_secret)".into());
            },
        ),
        case(
            healthy(),
            ("members", Warning),
            (
                "/ip4/192.0.2.8 (other_secret)",
                "While a secret is replaced",
            ),
            |f| strangers(f).met = Some("/ip4/192.0.2.8 (other_secret)".into()),
        ),
        case(
            healthy(),
            ("members", Warning),
            ("somebody who has called was refused", "rightly refused"),
            |f| strangers(f).called = Some("/ip4/192.0.2.8 (no_secret)".into()),
        ),
        case(healthy(), ("peers", Good), ("alone", ""), |f| {
            f.bootstrap = names(&[Ok(1)]);
            alone(f);
        }),
        case(
            healthy(),
            ("daemon", Broken),
            ("not running: refused", "--metrics-addr"),
            |f| {
                f.live = Err(Silence::NotRunning("refused".into()));
            },
        ),
        case(healthy(), ("daemon", Skipped), ("page is off", ""), |f| {
            f.live = Err(Silence::Off)
        }),
        case(
            healthy(),
            ("daemon", Warning),
            ("awaits content: x", "quick 404"),
            |f| {
                f.live.as_mut().unwrap().awaited = vec!["content: x".into()];
            },
        ),
        case(
            healthy(),
            ("delivery", Broken),
            ("does not deliver it: refused", "5000"),
            |f| {
                f.live.as_mut().unwrap().delivery = Some(Delivery::Failed {
                    digest: "sha256:00".into(),
                    peer: "192.0.2.8:5000".into(),
                    why: "refused".into(),
                });
            },
        ),
        case(
            healthy(),
            ("delivery", Skipped),
            ("any of 7 manifests", ""),
            |f| {
                f.live.as_mut().unwrap().delivery = Some(Delivery::NothingShared { asked: 7 });
            },
        ),
        case(healthy(), ("delivery", Skipped), ("page is off", ""), |f| {
            f.live = Err(Silence::Off)
        }),
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

/// The two examples of docs/operating.md.
#[test]
fn the_examples_in_the_docs_are_what_the_doctor_says() {
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md");
    let told = |facts: &Facts| {
        let report = Report {
            distribution: facts.profile.name,
            findings: all(facts),
        };
        let mut out = Vec::new();
        report.text(&mut out).unwrap();
        let said = String::from_utf8(out).unwrap();
        format!(
            "```\n$ peili doctor\n{said}$ echo $?\n{}\n```\n",
            report.verdict().exit_code()
        )
    };
    let well = healthy_2();
    let mut ill = healthy_2();
    *observed(&mut ill) = Observed {
        pulls: 3,
        pulls_past_us: 3,
        past_us: Some("docker.io/library/nginx:1.29".into()),
        images: 24,
        without_layers: 24,
        without: Some("docker.io/library/nginx:1.29".into()),
        ..Observed::default()
    };
    ill.profile = crate::doctor::profile::detect(&crate::doctor::profile::Signs {
        kernel: "Linux version 6.1.134-152.225.amzn2023.x86_64".into(),
        ..Default::default()
    });
    ill.bootstrap[0].name = "peili-bootstrap.peili.svc.cluster.local.".into();
    let (begin, middle, end) = (
        "On a healthy node of a cluster of five:\n\n",
        "\nOn one whose containerd 2.x reads no directory and discards its layers:\n\n",
        "\nWhat each line is about:\n",
    );
    let examples = format!("{begin}{}{middle}{}{end}", told(&well), told(&ill));
    let mut page = std::fs::read_to_string(PAGE).unwrap();
    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        let (before, rest) = page.split_once(begin).expect("where it begins");
        let (_, after) = rest.split_once(end).expect("where it ends");
        page = format!("{before}{examples}{after}");
        std::fs::write(PAGE, &page).unwrap();
    }

    assert!(
        page.contains(&examples),
        "docs/operating.md: run make docs\n{examples}"
    );
}
