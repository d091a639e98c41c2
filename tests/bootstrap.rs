//! The first peers, found by a real name server: dnsmasq, real resolv.conf files, real Peilis in namespaces.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lab::dns::PEERS;
use lab::net::RESOLV_CONF;
use lab::process::{eventually, find, output};
use lab::workspace::Tmpfs;
use lab::{Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};
use peili::routing::bootstrap::{Bootstrap, Bootstrapper, Domain};

/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
/// What a dial to a machine that drops packets takes; who waits for one is slower than that.
const DIAL: Duration = Duration::from_secs(5);

/// resolv.conf belongs to a whole process, so whoever asks is a process of its own: this test, run again with a name.
#[test]
fn child_that_asks_the_name_server() {
    let Ok(name) = std::env::var("PEILI_TEST_NAME") else {
        return;
    };
    let rounds: usize = std::env::var("PEILI_TEST_ROUNDS").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let domain = Domain { name, port: 5001 };
        let bootstrapper = Bootstrapper::new(Bootstrap::Dns(vec![domain])).unwrap();
        for _ in 0..rounds {
            match bootstrapper.find(&[]).await {
                Ok(found) if found.candidates.is_empty() => {
                    println!("said: nobody, {}", found.authoritative);
                }
                Ok(found) => {
                    for candidate in found.candidates {
                        println!("said: {candidate}");
                    }
                }
                Err(error) => println!("said: {error}"),
            }
        }
    });
}

/// What a process with this resolv.conf is told, without repetitions.
async fn told(lab: &Lab, resolv_conf: &str, name: &str, rounds: usize) -> BTreeSet<String> {
    let file = lab.folder("asker").unwrap().join("resolv.conf");
    std::fs::write(&file, resolv_conf).unwrap();
    let this = std::env::current_exe().unwrap();
    let mut command = lab
        .registry
        .netns
        .command_over(&[(&file, RESOLV_CONF)], &this);
    command
        .args(["child_that_asks_the_name_server", "--exact", "--nocapture"])
        .env("PEILI_TEST_NAME", name)
        .env("PEILI_TEST_ROUNDS", rounds.to_string());
    let said = output(command).await.unwrap();
    let lines = said.lines().filter_map(|line| line.strip_prefix("said: "));
    lines.map(str::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_resolved_as_resolv_conf_says() {
    let lab = lab_or_skip!();
    let both: [IpAddr; 2] = ["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
    lab.dns().set_both("a.lab.test", &both).await.unwrap();
    let server = format!("nameserver {}\n", lab.dns().ip());
    let with_search = format!("{server}search nowhere.test lab.test\noptions ndots:5\n");
    let addresses = ["/ip4/10.1.2.3/tcp/5001", "/ip6/fd00::3/tcp/5001"];
    let nobody = ["nobody, true"];
    for (resolv_conf, name, expected) in [
        (&with_search, "a", &addresses[..]),
        (&with_search, "a.lab.test", &addresses),
        (&with_search, "a.lab.test.", &addresses),
        (&server, "a.lab.test", &addresses),
        // NXDOMAIN: the Service is empty, or is not there yet.
        (&with_search, "b.lab.test.", &nobody),
        (&with_search, "a.", &["error"]),
        (&server, "a", &["error"]),
    ] {
        let said = told(&lab, resolv_conf, name, 2).await;
        if expected == ["error"] {
            // It is asked for what it knows nothing of, and says so: nobody is taken to be alone for that.
            let said = said.first().unwrap();
            assert!(
                said.starts_with(&format!("cannot resolve {name}: ")),
                "{said}"
            );
        } else {
            assert_eq!(
                said.iter().collect::<Vec<_>>(),
                expected,
                "{name} {resolv_conf}"
            );
        }
    }
    // The name server that is listed first is dead, as one of a cluster's two may be.
    let [a, b, c, _] = lab.dns().ip().octets();
    let second = format!("nameserver {a}.{b}.{c}.250\n{with_search}");
    let said = told(&lab, &second, "a", 1).await;
    assert_eq!(said.iter().collect::<Vec<_>>(), addresses);

    // More than fit a datagram, so they come over TCP. Each round shows three.
    let many: Vec<Ipv4Addr> = (1..=250).map(|n| Ipv4Addr::new(10, 9, 9, n)).collect();
    lab.dns().set("many.lab.test", &many).await.unwrap();
    let said = told(&lab, &server, "many.lab.test.", 80).await;
    // 512 bytes have place for 28, 1,232 for 75. 240 draws of 250 show 154 of them (standard deviation 5).
    assert!(said.len() > 100, "{}", said.len());
    assert!(
        said.iter().all(|at| at.starts_with("/ip4/10.9.9.")),
        "{said:?}"
    );
}

async fn node(lab: &Lab, unlisted: bool) -> Node {
    let options = NodeOptions {
        unlisted,
        ..NodeOptions::default()
    };
    lab.node(options).await.unwrap()
}

fn named(domains: &str) -> PeiliOptions {
    PeiliOptions::default()
        .unconfigured()
        .arg("--dns-bootstrap-domain", domains)
}

async fn peers(node: &Node) -> u64 {
    node.metric("peili_peers", &[("state", "known")])
        .await
        .unwrap() as u64
}

async fn knows(node: &Node, count: u64) {
    eventually("the others are known", AT_ALL, async || {
        Ok((peers(node).await == count).then_some(()))
    })
    .await
    .unwrap();
}

/// From its start until it knows somebody.
async fn joins(node: &Node, options: &PeiliOptions) -> Duration {
    let begun = Instant::now();
    node.start_peili_with(options).await.unwrap();
    eventually("a peer", AT_ALL, async || {
        Ok((peers(node).await > 0).then_some(()))
    })
    .await
    .unwrap();
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_drop_packets_cost_nothing_beside_one_that_answers() {
    let lab = lab_or_skip!();
    let (first, second) = (node(&lab, true).await, node(&lab, true).await);
    let options = named("stale.lab.test.");
    first.start_peili_with(&options).await.unwrap();
    let octets = first.ip().octets();
    let dead = |n: u8| Ipv4Addr::new(octets[0], octets[1], octets[2], n);
    lab.dns()
        .set("stale.lab.test", &[first.ip()])
        .await
        .unwrap();
    let alone = joins(&second, &options).await;

    let mut all: Vec<Ipv4Addr> = (200..206).map(dead).collect();
    for ip in &all {
        second.netns().lose(*ip).unwrap();
    }
    all.push(first.ip());
    lab.dns().set("stale.lab.test", &all).await.unwrap();
    // Three of the seven are called at first, so in four of seven starts those are dead, all of them.
    let mut times = Vec::new();
    for _ in 0..6 {
        // Its known peers are not to help it.
        second.stop_peili().await.unwrap();
        std::fs::remove_file(second.dir().join("peili-data/known-peers")).unwrap();
        times.push(joins(&second, &options).await);
    }

    eprintln!(
        "joined after {alone:?} with one address, after {times:?} with six dead ones beside it"
    );
    assert!(times.iter().all(|time| *time < DIAL), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restarts_while_the_name_server_hangs_and_hears_of_it_when_it_is_back() {
    let lab = lab_or_skip!();
    let (first, second) = (node(&lab, false).await, node(&lab, false).await);
    let options = PeiliOptions::default().unconfigured();
    first.start_peili_with(&options).await.unwrap();
    joins(&second, &options).await;
    let ended = second.stop_peili().await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    let file = second.dir().join("peili-data/known-peers");
    let kept = std::fs::read_to_string(&file).unwrap();
    let at = format!("/ip4/{}/tcp/5001", first.ip());
    assert_eq!(kept.lines().skip(1).collect::<Vec<_>>(), [&at], "{kept}");

    lab.dns().hang().unwrap();
    let took = joins(&second, &options).await;

    eprintln!("joined after {took:?} while the name server hung");
    // The name server alone is waited for 10 s.
    assert!(took < DIAL, "{took:?}");

    // With a file that is of no use it waits, says for what, and goes on when it is told. Nobody is to call it meanwhile, as the
    // first one would, which knows it from before.
    first.stop_peili().await.unwrap();
    second.stop_peili().await.unwrap();
    std::fs::write(&file, "# Peili's known peers, 1.\nnonsense\n").unwrap();
    second.spawn_peili(&options).await.unwrap();
    let log = || std::fs::read_to_string(second.peili().log()).unwrap();
    eventually("the reason", AT_ALL, async || {
        let said = log();
        let trouble = said.contains("the way to the first peers does not work");
        Ok((trouble && said.contains("known peers are not read")).then_some(()))
    })
    .await
    .unwrap();
    let answer = second.http_get("/readyz").await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(
        answer.text().contains(&format!("cannot resolve {PEERS}")),
        "{}",
        answer.text()
    );
    first.spawn_peili(&options).await.unwrap();
    lab.dns().go_on().unwrap();
    knows(&second, 1).await;
    eventually("the end of the trouble", AT_ALL, async || {
        Ok(log()
            .contains("the way to the first peers works again")
            .then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_are_one_for_who_knows_both_names_and_ipv6_is_as_good() {
    let lab = lab_or_skip!();
    let (one, two, both) = (
        node(&lab, true).await,
        node(&lab, true).await,
        node(&lab, true).await,
    );
    lab.dns().set("one.lab.test", &[one.ip()]).await.unwrap();
    for (node, ip) in [(&two, "fd00:5::2"), (&both, "fd00:5::3")] {
        let mut command = node.netns().command(find("ip").unwrap());
        command.args(["addr", "add", &format!("{ip}/64"), "dev", "eth0", "nodad"]);
        output(command).await.unwrap();
    }
    let v6 = ["fd00:5::2".parse().unwrap()];
    lab.dns().set_both("two.lab.test", &v6).await.unwrap();
    one.start_peili_with(&named("one.lab.test.")).await.unwrap();
    let options = named("two.lab.test.").arg("--advertise-addr", "fd00:5::2");
    two.start_peili_with(&options).await.unwrap();
    assert_eq!((peers(&one).await, peers(&two).await), (0, 0));

    // A third name that nobody can resolve is said, and does not harm.
    let options = named("one.lab.test.,elsewhere.example.net.,two.lab.test.:5001");
    let options = options.arg("--advertise-addr", &both.ip().to_string());
    both.start_peili_with(&options).await.unwrap();

    knows(&both, 2).await;
    let log = std::fs::read_to_string(both.peili().log()).unwrap();
    assert!(
        log.contains("cannot resolve elsewhere.example.net.: "),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_costs_a_warning_and_nothing_else() {
    let lab = lab_or_skip!();
    let (first, second) = (node(&lab, false).await, node(&lab, false).await);
    let options = PeiliOptions::default().unconfigured();
    first.start_peili_with(&options).await.unwrap();
    let data = second.dir().join("peili-data");
    let _small = Tmpfs::mount(data.clone(), 64 << 10).unwrap();
    joins(&second, &options).await;
    // To the last byte.
    let mut file = std::fs::File::create(data.join("ballast")).unwrap();
    while file.write(&[7; 512]).is_ok_and(|written| written > 0) {}

    let ended = second.stop_peili().await.unwrap().unwrap();

    assert!(ended.success(), "{ended}");
    let names = std::fs::read_dir(&data).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ballast", "private.key"], "nothing half is left");
    let log = std::fs::read_to_string(second.peili().log()).unwrap();
    assert!(log.contains("known peers are not kept"), "{log}");
    joins(&second, &options).await;
}
