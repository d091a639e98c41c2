//! What is found when one thing is wrong, over facts that are made up.

mod containerd;
mod docs;
mod hosts;
mod others;

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
