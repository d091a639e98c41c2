//! What changes while one looks, without a reload; and a pull that is tried.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_seen_without_a_reload() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(LARGE).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 1280).await.unwrap();

    tab.open(&url(two, "overview")).await.unwrap();
    tab.says(STAY).await.unwrap();
    tab.until_told("#verdict h1", "containerd has not asked yet")
        .await
        .unwrap();
    pull(two, &image).await;
    tab.until_told(
        "#verdict h1",
        "Mirroring: 6 requests, 100 % from peers, 67 MiB",
    )
    .await
    .unwrap();
    missed(two, '0').await;
    tab.until_told("#stat-miss", "1").await.unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);
    tab.click("#stat-miss a").await.unwrap();
    tab.until_told(
        "#pulls .said",
        "No other node holds this layer. containerd went to the registry.",
    )
    .await
    .unwrap();
    tab.until_told("#pulls .said", &format!("From {}.", one.ip()))
        .await
        .unwrap();

    tab.open(&url(two, "pulls")).await.unwrap();
    tab.says(STAY).await.unwrap();
    missed(two, 'a').await;
    tab.until_told("#pulls tbody th", "sha256:aaaaaaaaaaaa")
        .await
        .unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);

    tab.open(&url(two, "cluster")).await.unwrap();
    tab.until_told(
        "#peers-table tbody tr:first-child",
        &one.registry().to_string(),
    )
    .await
    .unwrap();
    tab.until_told("#map text", "gave 67 MiB").await.unwrap();

    // A body that is read slowly stands in flight at both ends.
    let giving = chromium.tab().await.unwrap();
    giving.look(Scheme::Dark, 1280).await.unwrap();
    giving.open(&url(one, "flights")).await.unwrap();
    tab.open(&url(two, "flights")).await.unwrap();
    tab.says(STAY).await.unwrap();
    let mut slow = TcpStream::connect(two.registry()).await.unwrap();
    let path = path("blobs", &image.layers[0].digest);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", two.registry());
    slow.write_all(head.as_bytes()).await.unwrap();
    tab.until(
        "what containerd gets",
        "document.querySelector('#getting progress')?.value > 0",
    )
    .await
    .unwrap();
    tab.until_told("#getting td", &one.ip().to_string())
        .await
        .unwrap();
    giving
        .until(
            "what a peer gets",
            "document.querySelector('#giving progress')?.value > 0",
        )
        .await
        .unwrap();
    giving
        .until_told("#giving th", &image.layers[0].digest[..19])
        .await
        .unwrap();
    let far = "document.querySelector('#getting progress').value";
    let before = tab.says(far).await.unwrap().as_f64().unwrap();
    assert!(before < LARGE as f64, "{before}");
    tab.picture("flights-getting-light-1280").await.unwrap();
    giving.picture("flights-giving-dark-1280").await.unwrap();
    slow.read_exact(&mut vec![0; 12 << 20]).await.unwrap();
    let grown = format!("document.querySelector('#getting progress')?.value > {before}");
    tab.until("a bar that has grown", &grown).await.unwrap();
    drop(slow);
    tab.until_told("#getting", "Nothing is on its way.")
        .await
        .unwrap();
    assert_eq!(tab.says(STAYED).await.unwrap(), true);

    tab.open(&url(one, "content")).await.unwrap();
    tab.click("[data-find]").await.unwrap();
    tab.until_told("#found", "this node holds it")
        .await
        .unwrap();
    tab.open(&url(two, "content")).await.unwrap();
    tab.type_into("#reference", &image.reference())
        .await
        .unwrap();
    tab.press("Enter").await.unwrap();
    tab.until_told("#holders li", &one.registry().to_string())
        .await
        .unwrap();
    tab.until_told("#found h2", "1 other node holds it")
        .await
        .unwrap();
    tab.picture("content-found-light-1280").await.unwrap();

    assert_clean(&tab, cluster.nodes());
    assert_clean(&giving, cluster.nodes());
    chromium.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_tried_with_a_bar_for_each_layer() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(two, "try")).await.unwrap();

    tab.type_into("#image", &image.reference()).await.unwrap();
    tab.press("Enter").await.unwrap();

    tab.until(
        "its end",
        "document.querySelector('#try-status[data-ended=ok]')",
    )
    .await
    .unwrap();
    tab.until_told("#try-status", "Every digest is right; nothing was stored.")
        .await
        .unwrap();
    for blob in image.layers.iter().chain([&image.config]) {
        let layer = format!("#try-layers li.verified[data-digest={:?}]", blob.digest);
        tab.until_told(&layer, "digest verified").await.unwrap();
        tab.until_told(&layer, &format!("from {}", one.registry()))
            .await
            .unwrap();
        let bar = format!(
            "document.querySelector({:?}).position",
            format!("{layer} progress")
        );
        assert_eq!(tab.says(&bar).await.unwrap(), 1, "{layer}");
    }
    let bars = "document.querySelectorAll('#try-layers progress').length";
    assert_eq!(tab.says(bars).await.unwrap(), 4);
    assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe() {
        assert_eq!(violations(&tab, axe).await, json!([]));
    }
    tab.picture("try-pulled-light-360").await.unwrap();

    let absent = format!("{REGISTRY}/test/nobody-has-it:v1");
    tab.type_into("#image", &absent).await.unwrap();
    tab.click("#try button").await.unwrap();
    tab.until(
        "its end",
        "document.querySelector('#try-status[data-ended=failed]')",
    )
    .await
    .unwrap();
    tab.until_told("#try-layers .error", "no peer holds")
        .await
        .unwrap();
    tab.until_told("#try-layers .error", "What to do: ")
        .await
        .unwrap();
    tab.picture("try-failed-light-360").await.unwrap();

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}
