//! How every view looks, and that what is wrong with one is seen.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_view_is_legible_and_fits_wide_and_narrow_light_and_dark() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let axe = axe();
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    pull(two, &image).await;
    missed(two, '0').await;
    let tab = chromium.tab().await.unwrap();
    let mut backgrounds = Vec::new();

    for (scheme, width) in LOOKS {
        for view in VIEWS {
            // Who has an image shows what it holds; who pulled, all the rest.
            let node = if view == "content" { one } else { two };
            tab.look(scheme, width).await.unwrap();
            tab.open(&url(node, view)).await.unwrap();
            let name = format!("{view}-{scheme:?}-{width}").to_lowercase();
            let (place, words) = match view {
                "overview" => ("#findings", "found nothing wrong"),
                "cluster" => ("#peers-table", "12 MiB"),
                "content" => ("#images-table", "registry.test:5000/test/app"),
                "flights" => ("#growing", "writing nothing now"),
                "pulls" => ("#pulls", "No other node holds this layer."),
                _ => ("main", "Nothing is stored"),
            };
            tab.until_told(place, words).await.unwrap();
            assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]), "{name}");
            if let Some(axe) = &axe {
                assert_eq!(violations(&tab, axe).await, json!([]), "{name}");
            }
            tab.picture(&name).await.unwrap();
        }
        let background = "getComputedStyle(document.body).backgroundColor";
        backgrounds.push(tab.says(background).await.unwrap());
    }
    assert_eq!(backgrounds[0], backgrounds[1]);
    assert_ne!(backgrounds[1], backgrounds[2], "dark is not light");

    // A node is gone that others are to find their way by: doctor says so first, and what to do.
    one.stop().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(three, "overview")).await.unwrap();
    tab.until_told("#verdict h1", "containerd has not asked yet")
        .await
        .unwrap();
    let warned = "#findings > .findings:first-child > li";
    tab.until_told(warned, "leads nowhere").await.unwrap();
    tab.until_told(&format!("{warned} .warn"), "warning")
        .await
        .unwrap();
    tab.until_told(&format!("{warned} pre"), "headless Service")
        .await
        .unwrap();
    assert_eq!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe {
        assert_eq!(violations(&tab, axe).await, json!([]));
    }
    tab.picture("overview-warned-light-360").await.unwrap();
    tab.click("#examine").await.unwrap();
    tab.until_told("#findings summary", "could not be made here")
        .await
        .unwrap();

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}

/// Or the others would find nothing because they do not look.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_page_is_seen() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, _) = cluster(SMALL).await;
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 360).await.unwrap();
    tab.open(&url(&cluster.nodes()[0], "overview"))
        .await
        .unwrap();
    let spoil = "const image = document.createElement('img');
        image.src = 'http://192.0.2.1/x.png';
        const wide = document.createElement('div');
        wide.style.width = '500px';
        document.querySelector('main').append(image, wide);
        setTimeout(() => { throw new Error('thrown'); });";
    tab.says(spoil).await.unwrap();

    for words in ["CSP: img-src forbids http://192.0.2.1", "thrown"] {
        eventually(words, AT_ALL, async || {
            Ok(tab
                .wrong()
                .iter()
                .any(|wrong| wrong.contains(words))
                .then_some(()))
        })
        .await
        .unwrap_or_else(|late| panic!("{late}: {:?}", tab.wrong()));
    }
    assert_ne!(tab.says(TOO_WIDE).await.unwrap(), json!([]));
    if let Some(axe) = &axe() {
        let said = violations(&tab, axe).await.to_string();
        assert!(said.contains("image-alt"), "{said}");
    }
    chromium.stop().await.unwrap();
}
