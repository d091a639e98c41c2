//! Who holds something, and whether he delivers it.

use rustix::process::Signal;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_it_is_asked_now() {
    let cluster = cluster().await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;

    let found = posted(three, "find", json!({"reference": image.reference()}))
        .await
        .unwrap();
    let found: Value = serde_json::from_slice(&found.expect(200).unwrap().body).unwrap();

    assert_eq!(
        (&found["key"], &found["here"]),
        (&json!(image.reference()), &json!(false))
    );
    let holder = &found["peers"][0];
    assert_eq!(holder["addresses"], json!([one.registry()]));
    assert!(holder["after_ms"].as_f64().unwrap() <= found["took_ms"].as_f64().unwrap());
    assert_eq!(holder["asked"]["delivers"], true, "{found}");
    assert!(
        holder["asked"]["took_ms"].as_f64().unwrap() > 0.0,
        "{found}"
    );
    let at = two.metrics().to_string();
    let output = peili(&["find", &image.layers[0].digest, "--metrics-addr", &at]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains(&one.registry().to_string()) && said.contains("  delivers ("),
        "{said}"
    );
    let absent = format!("sha256:{}", "0".repeat(64));
    let output = peili(&["find", &absent, "--metrics-addr", &at]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("no other node holds it"));
    let at = one.metrics().to_string();
    let output = peili(&["find", &image.reference(), "--metrics-addr", &at]);
    assert!(text(&output.stdout).contains("this node holds it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_said_to_hold_it_and_does_not_deliver_says_why() {
    let cluster = cluster().await;
    let [one, two, three] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;
    two.layout().add(&image).unwrap();
    let reference = image.reference();
    let layer = &image.layers[0].digest;
    let find = async |reference: &str| {
        let body = json!({ "reference": reference });
        let found = posted(three, "find", body).await.unwrap();
        serde_json::from_slice::<Value>(&found.expect(200).unwrap().body).unwrap()
    };
    let by = |found: &Value, node: &LoopbackNode| {
        let at = json!([node.registry()]);
        let all = found["peers"].as_array().unwrap();
        all.iter().find(|one| one["addresses"] == at).cloned()
    };
    for key in [&reference, layer] {
        eventually("both", AT_ALL, async || {
            let found = find(key).await;
            let are_there = by(&found, one).is_some() && by(&found, two).is_some();
            Ok(are_there.then_some(()))
        })
        .await
        .unwrap();
    }

    // The first loses it, and the second hangs: what the cluster was told of them stays.
    one.layout().remove(&reference).unwrap();
    two.signal(Signal::STOP).unwrap();
    let begun = std::time::Instant::now();
    let of_tag = find(&reference).await;
    let of_layer = find(layer).await;
    let took = begun.elapsed();
    let at = three.metrics().to_string();
    let output = peili(&["find", &reference, "--metrics-addr", &at]);
    two.signal(Signal::CONT).unwrap();

    for (found, hint) in [
        (&of_tag, ""),
        (&of_layer, "an image's name before it may help"),
    ] {
        for (node, why) in [
            (one, "does not have it"),
            (two, "brought no byte within 2s"),
        ] {
            let holder = by(found, node).unwrap_or_else(|| panic!("{found}"));
            assert_eq!(holder["asked"]["delivers"], false, "{found}");
            let told = holder["asked"]["why"].as_str().unwrap();
            assert!(told.starts_with(why) && told.contains(hint), "{told}");
        }
    }
    // Side by side, and bounded.
    assert!(took < Duration::from_secs(8), "{took:?}");
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "nobody gives it: {said}");
    assert!(
        said.contains("does not deliver: does not have it ("),
        "{said}"
    );
    assert!(
        said.contains("does not deliver: brought no byte within 2s ("),
        "{said}"
    );

    let found = find(&reference).await;
    let delivers = &by(&found, two).unwrap()["asked"]["delivers"];
    assert_eq!(delivers, true, "{found}");
}
