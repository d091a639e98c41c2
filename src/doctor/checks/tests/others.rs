//! This node's port and daemon, and the other nodes.

use super::*;

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
            ("delivery", Warning),
            ("is said to have sha256:00, and does not", "removed"),
            |f| {
                f.live.as_mut().unwrap().delivery = Some(Delivery::Outdated {
                    digest: "sha256:00".into(),
                    peer: "192.0.2.8:5000".into(),
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
