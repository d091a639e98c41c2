//! Layers that grow, on real containerds: a leader that gets them from a slow registry, and a follower.

use super::lab::{Direction, Node, NodeOptions, lab_or_skip};
use super::*;

const MIB: u64 = 1 << 20;

async fn told(node: &Node, path: &str) -> anyhow::Result<String> {
    let answer = node.http(node.peili().metrics(), Method::GET, path, &[]);
    Ok(answer.await?.expect(200)?.text())
}

async fn flights(node: &Node) -> anyhow::Result<Vec<Value>> {
    let told: Value = serde_json::from_str(&told(node, "/debug/api/flights").await?)?;
    Ok(told["flights"].as_array().expect("flights").clone())
}

fn of<'a>(flights: &'a [Value], digest: &Value) -> Option<&'a Value> {
    flights.iter().find(|flight| flight["digest"] == *digest)
}

/// How `node` calls the other.
async fn peer_id(node: &Node, other: &Node) -> String {
    let peers: Value =
        serde_json::from_str(&told(node, "/debug/api/peers").await.unwrap()).unwrap();
    let at = json!([other.peili().registry()]);
    let all = peers["peers"].as_array().unwrap();
    let peer = all.iter().find(|peer| peer["addresses"] == at);
    peer.unwrap_or_else(|| panic!("{at} in {peers}"))["peer"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// One row of the page's table of what grows.
fn row<'a>(page: &'a str, digest: &str) -> Option<&'a str> {
    let (_, growing) = page.split_once("<section id=\"growing\"")?;
    let (growing, _) = growing.split_once("</section>")?;
    growing.split("<tr>").find(|row| row.contains(digest))
}

/// How far a row's bar is.
fn bar(row: &str) -> u64 {
    let (_, value) = row.split_once("value=\"").expect("a bar");
    value.split('"').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn growing_layers_are_shown_with_their_bars_and_the_nodes_place() {
    let lab = lab_or_skip!();
    let image = lab
        .push(ImageSpec::new("app:v1").busybox().layers([24 * MIB; 2]))
        .await
        .unwrap();
    let nodes = [
        lab.node(NodeOptions::default()).await.unwrap(),
        lab.node(NodeOptions::default()).await.unwrap(),
    ];
    for node in &nodes {
        node.start_peili().await.unwrap();
    }
    for node in &nodes {
        eventually("acquaintance", AT_ALL, async || {
            let known = node.metric("peili_peers", &[("state", "known")]).await?;
            Ok((known >= 1.0).then_some(()))
        })
        .await
        .unwrap();
    }
    // Some eight seconds, in which there is something to see.
    lab.shape_registry(Some(6_000_000), Direction::Up).unwrap();

    let reference = image.reference();
    let pulls = async {
        let (one, two) = tokio::join!(nodes[0].cri_pull(&reference), nodes[1].cri_pull(&reference));
        one.and(two).unwrap();
    };
    let look = async {
        // A layer that one gets from the registry and the other from the first, and that both have a part of.
        let (leader, follower, led, followed) =
            eventually("a layer that both get", AT_ALL, async || {
                let seen = [flights(&nodes[0]).await?, flights(&nodes[1]).await?];
                for (leads, follows) in [(0, 1), (1, 0)] {
                    for led in seen[leads]
                        .iter()
                        .filter(|flight| flight["role"] == "leads")
                    {
                        let followed = of(&seen[follows], &led["digest"]);
                        let followed = followed.filter(|flight| flight["role"] == "follows");
                        let grows = |flight: &Value| {
                            let [bytes, length] =
                                [&flight["bytes"], &flight["length"]].map(Value::as_u64);
                            // Not busybox, which is here before one has looked.
                            length > Some(20 * MIB) && bytes > Some(0) && bytes < length
                        };
                        let followed = followed.filter(|it| it["leaders_bytes"].as_u64() > Some(0));
                        if let Some(followed) =
                            followed.filter(|followed| grows(led) && grows(followed))
                        {
                            return Ok(Some((
                                &nodes[leads],
                                &nodes[follows],
                                led.clone(),
                                followed.clone(),
                            )));
                        }
                    }
                }
                Ok(None)
            })
            .await
            .unwrap();

        let digest = led["digest"].as_str().unwrap();
        let layer = image.layers.iter().find(|layer| layer.digest == digest);
        let length = std::fs::metadata(&layer.expect("a layer").file)
            .unwrap()
            .len();
        for flight in [&led, &followed] {
            assert_eq!(flight["length"], length, "{flight}");
            let of = flight["image"].as_str().unwrap();
            assert!(
                of.starts_with(reference.strip_suffix(":v1").unwrap()),
                "{flight}"
            );
        }
        let parent = peer_id(follower, leader).await;
        assert_eq!(followed["parent"], parent, "{followed}");
        assert_eq!(led["parent"], Value::Null);

        // The same on the page, in words; and its bar moves.
        let page = async |node: &Node| {
            let page = told(node, "/debug/web/flights").await?;
            Ok::<_, anyhow::Error>(row(&page, digest).map(str::to_owned))
        };
        for (node, words) in [
            (leader, "Leader: this node gets it from the registry"),
            (follower, "Follows "),
        ] {
            let first = page(node).await.unwrap().expect("it still grows");
            assert!(first.contains(words), "{first}");
            assert!(first.contains(&format!("max=\"{length}\"")), "{first}");
            eventually("a bar that has moved", AT_ALL, async || {
                let Some(row) = page(node).await? else {
                    anyhow::bail!("it was whole before its bar had moved")
                };
                Ok((bar(&row) > bar(&first)).then_some(()))
            })
            .await
            .unwrap();
        }
        let shown = page(follower).await.unwrap().expect("it still grows");
        assert!(shown.contains(&parent[parent.len() - 6..]), "{shown}");
        eventually("its reader", AT_ALL, async || {
            let seen = flights(leader).await?;
            let Some(led) = of(&seen, &led["digest"]) else {
                anyhow::bail!("nobody was seen to read it")
            };
            let is_read = led["readers"] == 1 && led["bytes_per_second"].as_u64() > Some(0);
            Ok(is_read.then_some(()))
        })
        .await
        .unwrap();
        let row = page(leader).await.unwrap().expect("it still grows");
        assert!(row.contains("One node reads it from here."), "{row}");
        // What a peer gets is fast or slow now, and both ends say so.
        let seen: Value =
            serde_json::from_str(&told(leader, "/debug/api/flights").await.unwrap()).unwrap();
        let given = seen["giving"].as_array().unwrap();
        let given = given.iter().find(|body| body["reference"] == digest);
        let given = given.unwrap_or_else(|| panic!("{seen}"));
        let rate = given["bytes_per_second"].as_u64().unwrap();
        assert!((500_000..20_000_000).contains(&rate), "{given}");
    };
    tokio::join!(pulls, look);

    for node in &nodes {
        eventually("the end", AT_ALL, async || {
            Ok(flights(node).await?.is_empty().then_some(()))
        })
        .await
        .unwrap();
        let page = told(node, "/debug/web/flights").await.unwrap();
        assert!(page.contains("is writing nothing now"), "{page}");
    }
}
