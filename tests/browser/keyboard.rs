//! Without a mouse.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_is_enough() {
    let Some(chromium) = Chromium::or_skip().await else {
        return;
    };
    let (cluster, image) = cluster(SMALL).await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    pull(two, &image).await;
    let tab = chromium.tab().await.unwrap();
    tab.look(Scheme::Light, 1280).await.unwrap();

    tab.open(&url(two, "overview")).await.unwrap();
    tab.press("Tab").await.unwrap();
    let skip = "document.activeElement.className === 'skip' && \
                document.activeElement.getBoundingClientRect().left >= 0";
    tab.until("the skip link, in sight", skip).await.unwrap();
    tab.press("Enter").await.unwrap();
    tab.until("the content", "document.activeElement.id === 'main'")
        .await
        .unwrap();

    for view in VIEWS {
        let node = if view == "content" { one } else { two };
        tab.open(&url(node, view)).await.unwrap();
        if view == "overview" {
            tab.until_told("#findings", "found nothing wrong")
                .await
                .unwrap();
        }
        // Every control has a number, and those that had the focus are ticked off.
        let controls = "window.left = new Set([...document.querySelectorAll(
                'a[href], button, input, summary, .scroll')].filter((one) => one.checkVisibility()));
            addEventListener('focusin', (event) => {
                if (getComputedStyle(event.target).outlineStyle === 'none') throw new Error('a focus nobody sees');
                left.delete(event.target);
            });
            left.size";
        let count = tab.says(controls).await.unwrap().as_u64().unwrap();
        assert!(count >= 9, "{view}: {count}");
        for _ in 0..count {
            tab.press("Tab").await.unwrap();
        }
        let left = tab.says("[...left].filter((one) => one.isConnected).map((one) => one.outerHTML.slice(0, 200))").await;
        assert_eq!(left.unwrap(), json!([]), "{view}");
    }

    assert_clean(&tab, cluster.nodes());
    chromium.stop().await.unwrap();
}
