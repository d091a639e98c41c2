//! What may be typed.

use super::super::target::Target;
use super::*;

/// One for each row of (value, part of the reason, part of the cure).
fn assert_mistakes(mistakes: &[Mistake], table: &[(&str, &str, &str)]) {
    assert_eq!(mistakes.len(), table.len());
    for (mistake, (text, reason, cure)) in mistakes.iter().zip(table) {
        assert_eq!(mistake.value, *text);
        assert!(mistake.reason.contains(reason), "{mistake}");
        assert!(mistake.cure.contains(cure), "{mistake}");
    }
}

#[test]
fn an_empty_list_and_both_wildcards_mean_every_registry() {
    for list in [&[][..], &["*"], &["_default"], &["*", "_default"]] {
        assert_eq!(Registry::list(list), Ok(vec![Registry::Every]), "{list:?}");
    }
}

#[test]
fn registries_are_named_as_containerd_names_them() {
    for (text, directory, upstream) in [
        (
            "https://docker.io",
            "docker.io",
            "https://registry-1.docker.io",
        ),
        ("https://ghcr.io", "ghcr.io", "https://ghcr.io"),
        (
            "http://registry.example:5000",
            "registry.example:5000",
            "http://registry.example:5000",
        ),
        (
            "https://[2001:db8::1]:5000",
            "[2001:db8::1]:5000",
            "https://[2001:db8::1]:5000",
        ),
    ] {
        let Ok(Registry::Named(server)) = text.parse() else {
            panic!("{text}");
        };

        assert_eq!(server.upstream(), upstream);
        assert_eq!(Registry::Named(server).directory(), directory);
    }
}

#[test]
fn every_malformed_registry_is_reported_with_its_value_reason_and_cure() {
    let table = [
        ("docker.io", "has no scheme", "write https://docker.io"),
        ("", "has no scheme", "write https://, followed by a host"),
        (
            "ftp://docker.io",
            "has a scheme other than http and https",
            "write https://docker.io",
        ),
        ("https://", "has no host", "followed by a host"),
        ("https:///v2", "has no host", "followed by a host"),
        (
            "https://docker.io/",
            "has a path",
            "write https://docker.io;",
        ),
        (
            "https://docker.io/library",
            "has a path",
            "write https://docker.io;",
        ),
        (
            "https://docker.io?a=b",
            "has a query",
            "write https://docker.io",
        ),
        (
            "https://docker.io#a",
            "has a query",
            "write https://docker.io",
        ),
        (
            "https://docker.io:port",
            "is not a host",
            "https://registry.example",
        ),
        (
            "https://docker.io:70000",
            "is not a host",
            "https://registry.example",
        ),
        ("https://..", "is not a host", "https://registry.example"),
        ("https://a b", "is not a host", "https://registry.example"),
        ("https://a\"b", "is not a host", "https://registry.example"),
        ("https://_default", "is not a host", "* for every registry"),
        ("https://_backup", "is not a host", "* for every registry"),
        (
            "https://fd00::1",
            "is not a host",
            "https://registry.example",
        ),
        ("http://ghcr.io", "with the other scheme", "name it once"),
    ];
    let mut texts = vec!["https://ghcr.io"];
    texts.extend(table.iter().map(|(text, ..)| text));

    let mistakes = Registry::list(&texts).expect_err("all but one are malformed");

    assert_mistakes(&mistakes, &table);
}

#[test]
fn targets_are_spelt_as_containerd_needs_them() {
    for (text, url) in [
        ("http://192.0.2.7:30020", "http://192.0.2.7:30020"),
        ("https://mirror.example/", "https://mirror.example"),
        (
            "https://harbor.example/v2/proxy/",
            "https://harbor.example/v2/proxy",
        ),
        (
            "https://art.example:8443/api/docker/repo/v2",
            "https://art.example:8443/api/docker/repo/v2",
        ),
        (
            "http://2001:db8::7:5000/v2/hub",
            "http://[2001:db8::7]:5000/v2/hub",
        ),
        ("http://2001:db8::7:30020", "http://[2001:db8::7]:30020"),
        ("http://2001:db8::7", "http://[2001:db8::7]"),
        ("http://[2001:db8::7]:30020", "http://[2001:db8::7]:30020"),
        (
            "http://2001:db8:0:0:0:0:0:7:30020",
            "http://[2001:db8:0:0:0:0:0:7]:30020",
        ),
        (
            "http://2001:db8:0:0:0:0:0:7",
            "http://[2001:db8:0:0:0:0:0:7]",
        ),
    ] {
        let targets = Targets::list(&[text]).unwrap_or_else(|e| panic!("{e:?}"));

        assert_eq!(targets.urls().collect::<Vec<_>>(), [url]);
    }
}

#[test]
fn every_malformed_target_is_reported_and_no_target_is_one() {
    let table = [
        ("192.0.2.7:30020", "has no scheme", "http://192.0.2.7:30020"),
        ("http://:30020", "is not a host", "http://192.0.2.7:30020"),
        ("http://node:x", "is not a host", "http://192.0.2.7:30020"),
        (
            "http://fe80::1%eth0:30020",
            "is not a host",
            "[2001:db8::7]",
        ),
        (
            "https://harbor.example/proxy",
            "has a path without /v2",
            "https://harbor.example/v2/proxy for a project of Harbor",
        ),
        (
            "http://node/v2//x",
            "has a path that cannot",
            "single slashes",
        ),
        ("http://node/v2/../x", "has a path that cannot", "letters"),
        ("http://node/v2/a\"b", "has a path that cannot", "letters"),
        ("http://node?x", "has a query", "write http://node"),
    ];
    let texts: Vec<_> = table.iter().map(|(text, ..)| text).collect();

    let mistakes = Targets::list(&texts).expect_err("all are malformed");

    assert_mistakes(&mistakes, &table);
    assert_eq!(Targets::list::<&str>(&[]).expect_err("none").len(), 1);
}

#[test]
fn a_password_is_refused_without_being_quoted() {
    let mistake = "http://me:hunter2@node"
        .parse::<Target>()
        .expect_err("names a user");

    assert_eq!(mistake.reason, "names a user");
    assert!(!mistake.to_string().contains("hunter2"), "{mistake}");
}
