//! Who may ask, and that nothing is brought from or shown to anybody else.

use super::*;

const VIEWS: [&str; 6] = ["", "cluster", "content", "flights", "pulls", "try"];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_brings_all_it_needs_and_nobody_elses_page_gets_anything() {
    let cluster = cluster().await;
    let node = &cluster.nodes()[0];
    for view in VIEWS {
        let answer = get_here(node.metrics(), &format!("/debug/web/{view}"))
            .await
            .unwrap();
        let answer = answer.expect(200).unwrap();
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        let html = answer.text();
        for elsewhere in ["http://", "https://", "style=", "<style", "onclick"] {
            assert!(!html.contains(elsewhere), "{view}: {elsewhere}");
        }
        for (_, rest) in html
            .match_indices("=\"/debug/web/")
            .map(|(at, _)| html.split_at(at + 2))
        {
            let link = rest.split('"').next().unwrap();
            get_here(node.metrics(), link)
                .await
                .unwrap()
                .expect(200)
                .unwrap();
        }
    }
    let at = node.metrics();
    let own = format!("http://{at}");
    let find = json!({"reference": format!("{REGISTRY}/test/app:v1")}).to_string();
    for (name, headers, status) in [
        (
            "the page",
            vec![
                JSON,
                ("origin", own.as_str()),
                ("sec-fetch-site", "same-origin"),
            ],
            200,
        ),
        ("curl", vec![JSON], 200),
        (
            "another site",
            vec![JSON, ("sec-fetch-site", "cross-site")],
            403,
        ),
        (
            "another origin",
            vec![JSON, ("origin", "http://evil.example")],
            403,
        ),
        ("a form", vec![("content-type", "text/plain")], 415),
        ("another name", vec![JSON, ("host", "evil.example")], 403),
    ] {
        let answer = send_here(at, Method::POST, "/debug/api/find", &headers, &find)
            .await
            .unwrap();
        assert_eq!(answer.status.as_u16(), status, "{name}: {}", answer.text());
    }
    let rebound = [("host", "evil.example:9090")];
    for path in ["/debug/web/", "/debug/api/overview", "/debug/api/events"] {
        let answer = send_here(at, Method::GET, path, &rebound, "")
            .await
            .unwrap();
        assert_eq!(answer.status.as_u16(), 403, "{path}");
        assert!(answer.text().contains("evil.example"), "{path}");
    }
    // Looking is no POST, and what costs traffic is no GET.
    for path in ["/debug/api/find", "/debug/api/pull"] {
        get_here(at, path).await.unwrap().expect(405).unwrap();
    }
    for (what, body) in [
        ("find", json!({"reference": "nginx"})),
        ("pull", json!({"image": "nginx"})),
        ("pull", json!({})),
        ("find", json!([])),
    ] {
        let answer = posted(node, what, body).await.unwrap().expect(400).unwrap();
        let said: Value = serde_json::from_slice(&answer.body).unwrap();
        assert!(said["error"].is_string(), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_call_things_is_text() {
    let cluster = cluster().await;
    let node = &cluster.nodes()[0];
    let ns = "%3Cscript%3Ealert(1)%3C%2Fscript%3E%22%3E%3Cimg%20src=x%3E";
    let digest = format!("sha256:{}", "0".repeat(64));

    let _ = node
        .get(&format!("/v2/a/blobs/{digest}?ns={ns}"))
        .await
        .unwrap();
    let _ = node
        .get(&format!("/v2/a/manifests/v1?ns={ns}"))
        .await
        .unwrap();

    let html = page(node, "pulls").await;
    assert!(html.contains("&#60;script&#62;alert(1)"), "{html}");
    for hostile in ["<script>alert", "<img src=x"] {
        assert!(!html.contains(hostile), "{html}");
    }
    let html = page(node, "content?q=%22%3E%3Cscript%3Ealert(2)").await;
    assert!(!html.contains("<script>alert"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_page_there_is_nothing_below_debug() {
    let cluster = Loopback::new(2).unwrap();
    let off = |_: &LoopbackNode| vec!["--debug-web-enabled=false".to_string()];
    cluster.start_with(Path::new(PEILI), off).await.unwrap();
    let node = &cluster.nodes()[0];

    for path in [
        "/debug",
        "/debug/web/",
        "/debug/web/app.js",
        "/debug/api/overview",
        "/debug/api/events",
    ] {
        get_here(node.metrics(), path)
            .await
            .unwrap()
            .expect(404)
            .unwrap();
    }
    node.metrics_page().await.unwrap();
    let at = node.metrics().to_string();
    for command in [
        &["peers", "--metrics-addr", &at][..],
        &["find", "r.test/a:v1", "--metrics-addr", &at],
    ] {
        let output = peili(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("the debug page is off") && said.contains("debugWebEnabled"),
            "{said}"
        );
    }
}
