//! Tags from the registry first: the registry's own table between our two.

use super::super::existing::{Unmergeable, prepended};
use super::super::mark::Mark;
use super::super::toml::{Entry, Hosts, urls};
use super::*;

const HUB: &str = "https://registry-1.docker.io";

fn hosts(entries: &[Entry]) -> Hosts {
    Hosts {
        release: "peili".to_string(),
        entries: entries.to_vec(),
        tags: TagResolution::UpstreamFirst,
        headers: Vec::new(),
    }
}

fn last(url: &str) -> Entry {
    Entry::Last(url.to_string())
}

fn registry(url: &str) -> Registry {
    url.parse().expect("a registry")
}

/// Before an administrator's `existing`, for registry.example.
fn merged(existing: &str) -> String {
    let registry = registry("https://registry.example");
    prepended(&hosts(&[last("http://a:1")]), existing, Some(&registry))
        .unwrap_or_else(|e| panic!("{e}\n{existing}"))
}

/// Who is asked for a tag, in order.
fn resolvers(text: &str) -> Vec<String> {
    let hosts = parsed(text)["host"].clone();
    let resolves = |url: &String| {
        let listed = hosts[url.as_str()].get("capabilities").cloned();
        listed.is_none_or(|listed| {
            let listed = listed.as_array().expect("a list").clone();
            listed.contains(&"resolve".into()) && listed.contains(&"pull".into())
        })
    };
    urls(text)
        .expect("tables")
        .into_iter()
        .filter(resolves)
        .collect()
}

#[test]
fn content_is_asked_of_us_and_tags_of_the_registry_and_then_of_us_under_another_spelling() {
    let header = Header {
        name: "x-peili-token",
        value: "0123".to_string(),
    };
    let hosts = Hosts {
        headers: vec![header],
        ..hosts(&[
            Entry::Again("http://[2001:db8::7]:1/again/1/v2".to_string()),
            last("http://[2001:db8::7]:1"),
            last("http://b:1"),
            Entry::Below("https://harbor.example/v2/proxy".to_string()),
        ])
    };

    let text = hosts.alone(registry("https://docker.io").server().as_deref());

    assert_eq!(
        parsed(&text),
        parsed(
            r#"
            server = "https://registry-1.docker.io"
            [host."http://[2001:db8::7]:1/again/1/v2"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            override_path = true
            header = { x-peili-token = ["0123"] }
            [host."http://[2001:db8::7]:1"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            header = { x-peili-token = ["0123"] }
            [host."http://b:1"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            header = { x-peili-token = ["0123"] }
            [host."https://harbor.example/v2/proxy"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            override_path = true
            [host."https://registry-1.docker.io"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "5s"
            [host."http://[2001:db8::7]:1/v2"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            override_path = true
            header = { x-peili-token = ["0123"] }
            [host."http://b:1/v2"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            override_path = true
            header = { x-peili-token = ["0123"] }
            [host."https://harbor.example/v2/proxy/"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            override_path = true
            "#
        )
    );
    assert_eq!(
        urls(&text).expect("tables"),
        [
            "http://[2001:db8::7]:1/again/1/v2",
            "http://[2001:db8::7]:1",
            "http://b:1",
            "https://harbor.example/v2/proxy",
            HUB,
            "http://[2001:db8::7]:1/v2",
            "http://b:1/v2",
            "https://harbor.example/v2/proxy/",
        ]
    );
    // What stands in front is what tells a file for one containerd from one for another.
    assert_eq!(Mark::read(&text).expect("ours").hosts, 4);
}

#[test]
fn every_table_has_a_name_of_its_own_whatever_the_targets_are_called() {
    let url = "http://registry.example:5000";
    for targets in [
        &["http://a:1", "http://a:1/v2"][..],
        &["http://a:1", "http://a:1/v2", "http://a:1/v2/x/v2"],
        &[url],
    ] {
        let targets = Targets::list(targets).expect("targets");
        let entries = again::entries(&targets, None, |_| false);

        let text = hosts(&entries).alone(registry(url).server().as_deref());

        let mut all = urls(&text).expect("TOML, in which no table comes twice");
        assert_eq!(all.len(), 2 * entries.len() + 1, "{text}");
        all.dedup_by_key(|url| url.trim_end_matches('/').to_string());
        assert!(resolvers(&text)[0].starts_with(url), "{text}");
    }
}

#[test]
fn the_registrys_table_has_the_keys_that_the_file_has_for_it_in_whatever_form() {
    for (existing, table) in [
        ("", ""),
        ("# Nothing yet.", ""),
        ("ca = \"ca.crt\" # ours\n", "ca = \"ca.crt\""),
        (
            "ca = [\"a.crt\", \"b.crt\"]\nclient = [[\"c.cert\", \"c.key\"]]\nskip_verify = true\n",
            "ca = [\"a.crt\", \"b.crt\"]\nclient = [[\"c.cert\", \"c.key\"]]\nskip_verify = true\n",
        ),
        (
            "header.x-a = [\"b\"]\n[host.\"https://m\"]\n",
            "header = { x-a = [\"b\"] }",
        ),
        (
            "header = { x-a = \"b\" }\n[host.\"https://m\"]\n",
            "header = { x-a = \"b\" }",
        ),
        (
            "[host.\"https://m\"]\n\n# Last.\n[header]\nx-a = [\"b\"] # c\n# The end.",
            "header = { x-a = [\"b\"] }",
        ),
        ("host = { \"https://m\" = { ca = \"m.crt\" } }\n", ""),
        // He has said how long, and what for.
        ("dial_timeout = \"1s\"\n", "dial_timeout = \"1s\""),
        ("capabilities = [\"pull\"]\n", "capabilities = [\"pull\"]"),
    ] {
        let text = merged(existing);

        let usual = "capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"5s\"\n";
        let mut expected = parsed(usual);
        expected.extend(parsed(table));
        let merged = parsed(&text);
        let own = merged["host"]["https://registry.example"].as_table();
        assert_eq!(own, Some(&expected), "{text}");
        // And what was there is there: the same keys, the same tables.
        for (key, value) in parsed(existing) {
            if key != "host" {
                assert_eq!(merged[&key], value, "{text}");
            }
        }
        let all = urls(&text).expect("tables");
        let theirs = urls(existing).unwrap_or_default();
        let ours = |url: &str| vec![url.to_string()];
        let expected = [
            ours("http://a:1"),
            theirs,
            ours("https://registry.example"),
            ours("http://a:1/v2"),
        ];
        assert_eq!(all, expected.concat(), "{text}");
    }
}

#[test]
fn the_registry_is_the_one_that_the_file_names_and_stands_there_once() {
    for (existing, expected) in [
        // As containerd knows it, or as it is said.
        (
            "[host.\"https://m\"]\n",
            &["https://m", "https://registry.example", "http://a:1/v2"][..],
        ),
        (
            "server = \"https://other/v2/x\"\noverride_path = true\n",
            &["https://other/v2/x", "http://a:1/v2"],
        ),
        (
            "server = \"\"\n",
            &["https://registry.example", "http://a:1/v2"],
        ),
        ("server = \"other\"\n", &["other", "http://a:1/v2"]),
        // It stands there, in one way or another.
        (
            "[host.\"https://registry.example\"]\nca = \"ca.crt\"\n",
            &["https://registry.example", "http://a:1/v2"],
        ),
        (
            "[host.\"registry.example/v2/\"]\ncapabilities = [\"resolve\", \"pull\"]\n[host.\"https://m\"]\n",
            &["registry.example/v2/", "https://m", "http://a:1/v2"],
        ),
        // For content alone, or below another path: then it is not who is asked for tags.
        (
            "[host.\"https://registry.example\"]\ncapabilities = [\"pull\"]\n",
            &["https://registry.example/", "http://a:1/v2"],
        ),
        (
            "[host.\"https://registry.example\"]\noverride_path = true\n",
            &[
                "https://registry.example",
                "https://registry.example/",
                "http://a:1/v2",
            ],
        ),
    ] {
        let text = merged(existing);

        assert_eq!(resolvers(&text), expected, "{text}");
    }
}

#[test]
fn a_server_that_nobody_can_read_is_a_reason_to_leave_the_file_as_it_is() {
    let hosts = hosts(&[last("http://a:1")]);

    let error = prepended(&hosts, "server = 5\n", None).expect_err("a number");

    assert_eq!(error, Unmergeable::BadServer);
}

#[test]
fn the_policy_can_be_changed_and_changed_back_and_the_cleanup_knows_nothing_of_it() {
    let (root, _) = administrators();
    let at = root.path();
    write(at, "certificates.example/ca.crt", "certificate");
    let before = tree(at);
    let names = [
        "https://docker.io",
        "https://certificates.example",
        "http://new.example:1",
    ];
    let with = |tags| Config {
        tags,
        ..prepending(at, &names, 30020)
    };
    let files = || {
        let files = ["docker.io", "certificates.example", "new.example:1"];
        files.map(|name| read(at, &format!("{name}/hosts.toml")).expect("a file"))
    };
    let configured = |tags| {
        let done = configure(&with(tags)).unwrap_or_else(|e| panic!("{e}"));
        let written = done.iter().filter(|done| matches!(done, Done::Written(_)));
        (files(), written.count())
    };
    use TagResolution::{ClusterFirst, UpstreamFirst, UpstreamOnly};

    let (cluster, written) = configured(ClusterFirst);
    assert_eq!(written, 3);
    let (upstream, written) = configured(UpstreamFirst);
    assert_eq!(written, 3);
    let (ours, again) = ("http://127.0.0.1:30020", "http://127.0.0.1:30020/v2");
    assert_eq!(resolvers(&upstream[0]), ["https://mine", again]);
    assert_eq!(
        resolvers(&upstream[1]),
        ["https://certificates.example", again]
    );
    assert_eq!(resolvers(&upstream[2]), ["http://new.example:1", again]);
    let certificates = parsed(&upstream[1]);
    let own = &certificates["host"]["https://certificates.example"];
    assert_eq!(own["ca"], certificates["ca"]);
    assert_eq!(configured(UpstreamFirst), (upstream.clone(), 0));

    let (only, _) = configured(UpstreamOnly);
    for text in &only {
        assert!(urls(text).expect("tables").contains(&ours.to_string()));
        assert_eq!(resolvers(text), [""; 0], "{text}");
    }
    assert_eq!(configured(ClusterFirst), (cluster, 3));
    assert_eq!(configured(UpstreamFirst), (upstream, 3));

    // An edit is an edit, wherever in the file it is.
    let file = at.join("docker.io/hosts.toml");
    let text = fs::read_to_string(&file).expect("ours");
    fs::write(&file, format!("{text}# Mine.\n")).expect("write");
    let done = configure(&with(ClusterFirst)).expect("configure");
    assert!(done.contains(&Done::Edited(file.clone())), "{done:?}");
    fs::write(&file, text).expect("write");

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn only_what_names_a_registry_can_be_asked_of_it_first() {
    let every = [Registry::Every];
    let named = [registry("https://docker.io")];
    let both = [registry("https://docker.io"), Registry::Every];
    use TagResolution::{ClusterFirst, UpstreamFirst, UpstreamOnly};
    for (policy, registries, can) in [
        (ClusterFirst, &every[..], true),
        (UpstreamOnly, &every, true),
        (UpstreamFirst, &every, false),
        (UpstreamFirst, &both, false),
        (UpstreamFirst, &named, true),
    ] {
        assert_eq!(
            policy.check(registries).is_ok(),
            can,
            "{policy} {registries:?}"
        );
    }
}
