//! hosts.toml, the port that it leads to, and what else is out of reach.

use super::lab::{NodeOptions, lab_or_skip};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_hosts_toml_and_the_port_is_told() {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let options = cluster.start(&node).await;
    let well = doctor(&node, &options).await;
    assert_eq!(well.code, 0, "{:#}", well.report);

    let certs_d = node.containerd().certs_d();
    let data = node.peili().data();
    let with_token = ["--data-dir", data.to_str().unwrap()];

    // For a containerd of the other generation.
    let (other, meant) = match is_1(&node) {
        true => ("2.1", "is for containerd 2.x"),
        false => ("1.7", "is for containerd 1.x"),
    };
    let more = [&with_token[..], &["--containerd-version", other]].concat();
    cluster.configure(&node, &certs_d, None, &more).await;
    let said = doctor(&node, &options).await;
    said.must_say("hosts_version", "warning", meant, "peili configuration");
    assert_eq!(said.code, 1, "{:#}", said.report);

    // Without the token.
    cluster.configure(&node, &certs_d, None, &[]).await;
    let said = doctor(&node, &options).await;
    said.must_say("token", "broken", "sends no token", "--data-dir");

    // Of a mirror where nobody is.
    let nobody = "http://127.0.0.1:9";
    cluster
        .configure(&node, &certs_d, Some(nobody), &with_token)
        .await;
    let said = doctor(&node, &options).await;
    said.must_say(
        "port",
        "broken",
        "nobody answers at http://127.0.0.1:9",
        "nodePort",
    );

    // Not at all.
    let args = [
        "cleanup",
        "--containerd-registry-config-path",
        certs_d.to_str().unwrap(),
    ];
    node.peili().run(node.netns(), &args).await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say(
        "hosts_toml",
        "broken",
        "does not know of the mirror",
        "Restart this pod",
    );

    // And all is well again.
    cluster.configure(&node, &certs_d, None, &with_token).await;
    let said = doctor(&node, &options).await;
    assert_eq!(said.code, 0, "{:#}", said.report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_nowhere_a_content_directory_out_of_reach_and_a_daemon_that_has_ended_are_told()
 {
    let cluster = Cluster {
        lab: lab_or_skip!(),
    };
    let node = cluster.lab.node(NodeOptions::default()).await.unwrap();
    let image = image(&cluster.lab).await;
    let options = cluster.start(&node).await;
    node.cri_pull(&image.reference()).await.unwrap();

    let lost = options
        .clone()
        .arg("--dns-bootstrap-domain", "nobody.lab.test.");
    let said = doctor(&node, &lost).await;
    said.must_say("bootstrap", "broken", "nobody.lab.test.", "endpointslices");

    let empty = cluster.lab.folder("empty").unwrap();
    let elsewhere = |path: &Path| {
        let path = path.display().to_string();
        options.clone().arg("--containerd-content-path", &path)
    };
    let said = doctor(&node, &elsewhere(&empty)).await;
    said.must_say(
        "content",
        "broken",
        "another content store's",
        "containerdContentPath",
    );
    let said = doctor(&node, &elsewhere(&empty.join("not-mounted"))).await;
    said.must_say(
        "content",
        "warning",
        "through containerd's socket",
        "read-only",
    );

    node.stop_peili().await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say("daemon", "broken", "not running", "peili registry");
    said.must_say("port", "broken", "nobody answers", "");
    assert_eq!(said.state("delivery"), "skipped");

    node.stop().await.unwrap();
    let said = doctor(&node, &options).await;
    said.must_say(
        "socket",
        "broken",
        "does not answer",
        "peili.containerdSock",
    );
    assert_eq!(said.code, 2);
}
