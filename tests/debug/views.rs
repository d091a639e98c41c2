//! What was pulled, by whom and from whom; and what is heard as it happens.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_view_says_what_happened() {
    let cluster = cluster().await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    assert_eq!(told(two, "overview").await["verdict"]["state"], "idle");
    let image = seeded(&cluster).await;

    let (requests, bytes) = pull(two, &image).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    two.get(&path(&image, "blobs", &absent))
        .await
        .unwrap()
        .expect(404)
        .unwrap();

    // What a body was is told when its connection is done with it.
    eventually("the last request", AT_ALL, async || {
        let count = told(two, "overview").await["under_way"].as_u64();
        Ok((count == Some(0)).then_some(()))
    })
    .await
    .unwrap();
    let overview = told(two, "overview").await;
    let totals = &overview["totals"];
    assert_eq!(
        totals["requests"],
        json!({"local": 0, "peer": requests, "miss": 1, "failed": 0})
    );
    assert_eq!(
        (&totals["saved"], &totals["bytes"]["peer"]),
        (&json!(bytes), &json!(bytes))
    );
    let hour = overview["last_hour"].as_array().unwrap();
    assert_eq!(hour.len(), 60);
    let sum: u64 = hour
        .iter()
        .map(|m| m["bytes"]["peer"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, bytes);
    assert_eq!(overview["verdict"]["state"], "mirroring");
    let headline = overview["verdict"]["headline"].as_str().unwrap();
    assert!(
        headline.starts_with("Mirroring: 6 requests, 83 % from peers, 3.1 MiB kept"),
        "{headline}"
    );
    assert_eq!(overview["peers"]["known"], 2);

    let peers = told(two, "peers").await;
    let rows = peers["peers"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{peers}");
    // The one with the most bytes first.
    assert_eq!(rows[0]["addresses"], json!([one.registry()]));
    assert_eq!(rows[0]["bytes_from"], bytes);
    assert_eq!(rows[1]["addresses"], json!([three.registry()]));
    assert_eq!(
        (&rows[0]["speaks"], &rows[0]["failures"]),
        (&json!("peili"), &json!(0))
    );
    assert!(rows[0]["first_byte_ms"].as_f64().unwrap() > 0.0, "{peers}");
    let gave = told(one, "pulls").await;
    let given: u64 = gave["given"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(given, bytes);

    let content = told(one, "content?q=APP").await;
    let row = &content["images"][0];
    assert_eq!(row["image"], format!("{REGISTRY}/test/app"));
    assert_eq!(
        (&row["tag"], &row["digest"]),
        (&json!("v1"), &json!(image.top().digest))
    );
    assert_eq!(row["advertised"], true);
    assert!(row["bytes"].as_u64().unwrap() >= 3 << 20, "{row}");
    assert!(
        row["platforms"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["whole"] == true),
        "{row}"
    );
    assert_eq!(told(one, "content?q=nothing-of-the-kind").await["found"], 0);
    assert_eq!(told(two, "content").await["found"], 0);

    let pulls = told(two, "pulls").await;
    let pull = &pulls["pulls"][0];
    assert_eq!(pull["image"], format!("{REGISTRY}/test/app"));
    assert_eq!(
        (&pull["missed"], &pull["from_peers"]),
        (&json!(1), &json!(bytes))
    );
    let all = pull["requests"].as_array().unwrap();
    assert_eq!(all.len() as u64, requests + 1);
    let layer = all
        .iter()
        .find(|r| r["reference"] == image.layers[0].digest.as_str())
        .unwrap();
    assert_eq!(layer["from"][0]["at"], json!(one.registry()));
    assert_eq!(layer["from"][0]["bytes"], layer["bytes"]);
    assert_eq!(layer["outcome"], format!("From {}.", one.ip()));
    let missed = all.iter().find(|r| r["source"] == "miss").unwrap();
    assert_eq!(
        missed["outcome"],
        "No other node holds this layer. containerd went to the registry."
    );
    assert_eq!(
        told(two, "flights").await,
        json!({"flights": [], "getting": [], "giving": []})
    );

    let overview = page(two, "").await;
    assert!(overview.contains(headline), "{overview}");
    assert!(
        page(two, "pulls")
            .await
            .contains("No other node holds this layer.")
    );
    assert!(
        page(two, "cluster")
            .await
            .contains(&one.registry().to_string())
    );
    assert!(page(one, "content").await.contains(&image.top().digest));
    let listed = peili(&["peers", "--metrics-addr", &two.metrics().to_string()]);
    let listed = text(&listed.stdout);
    assert!(
        listed.contains("ROUND TRIP") && listed.contains(&one.registry().to_string()),
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_heard_as_it_happens_and_a_listener_keeps_nobody_from_ending() {
    let cluster = cluster().await;
    let two = &cluster.nodes()[1];
    let mut stream = TcpStream::connect(two.metrics()).await.unwrap();
    let head = format!(
        "GET /debug/api/events HTTP/1.1\r\nHost: {}\r\n\r\n",
        two.metrics()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = String::new();
    let mut hear = async |until: &str| {
        let read = async {
            let mut bytes = [0; 4096];
            while !heard.contains(until) {
                let read = stream.read(&mut bytes).await.unwrap();
                assert!(read > 0, "it ended: {heard}");
                heard.push_str(&text(&bytes[..read]));
            }
        };
        tokio::time::timeout(AT_ALL, read).await.expect(until);
    };
    hear("text/event-stream").await;

    let absent = format!("sha256:{}", "0".repeat(64));
    two.get(&format!("/v2/a/blobs/{absent}?ns={REGISTRY}"))
        .await
        .unwrap();

    hear("event: request").await;
    hear(&absent).await;
    let begun = std::time::Instant::now();
    assert!(two.stop().await.unwrap().unwrap().success());
    // Its grace period is 30 s, and who only listens is no reason to wait.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
}
