//! Files of our own, without anything of others in them.

use super::super::mark::Mark;
use super::super::toml::{Entry, Hosts, is_spegels, urls};
use super::*;

fn hosts(entries: &[Entry]) -> Hosts {
    Hosts {
        release: "ns/name".to_string(),
        entries: entries.to_vec(),
        tags: TagResolution::default(),
        headers: Vec::new(),
    }
}

fn last(url: &str) -> Entry {
    Entry::Last(url.to_string())
}

#[test]
fn a_named_registry_falls_back_to_its_own_server() {
    let registry: Registry = "https://docker.io".parse().expect("a registry");
    let entries = [
        last("http://[2001:db8::7]:30020"),
        last("https://mirror.example"),
    ];

    let text = hosts(&entries).alone(registry.server().as_deref());

    assert_eq!(
        parsed(&text),
        parsed(
            r#"
            server = "https://registry-1.docker.io"
            [host."http://[2001:db8::7]:30020"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            [host."https://mirror.example"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            "#
        )
    );
    // A table has no order for a parser, but for containerd it is the order of asking.
    assert!(text.find("2001:db8::7") < text.find("mirror.example"));
}

#[test]
fn the_wildcard_names_no_server_and_tags_can_be_left_to_upstream() {
    let hosts = Hosts {
        tags: TagResolution::UpstreamOnly,
        ..hosts(&[last("http://192.0.2.7:30020")])
    };

    let text = hosts.alone(Registry::Every.server().as_deref());

    assert_eq!(
        parsed(&text),
        parsed(
            r#"
            [host."http://192.0.2.7:30020"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            "#
        )
    );
}

#[test]
fn an_entry_that_is_asked_again_resolves_no_tag_and_one_below_a_path_gets_no_header() {
    let hosts = Hosts {
        headers: vec![
            Header {
                name: "x-peili-token",
                value: "0123".to_string(),
            },
            Header {
                name: "authorization",
                value: "Basic eDp5".to_string(),
            },
        ],
        ..hosts(&[
            Entry::Again("http://192.0.2.7:1/again/1/v2".to_string()),
            last("http://192.0.2.7:1"),
            Entry::Below("https://harbor.example/v2/proxy".to_string()),
        ])
    };

    let text = hosts.alone(None);

    assert_eq!(
        parsed(&text),
        parsed(
            r#"
            [host."http://192.0.2.7:1/again/1/v2"]
            capabilities = ["pull"]
            dial_timeout = "200ms"
            override_path = true
            header = { x-peili-token = ["0123"], authorization = ["Basic eDp5"] }
            [host."http://192.0.2.7:1"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            header = { x-peili-token = ["0123"], authorization = ["Basic eDp5"] }
            [host."https://harbor.example/v2/proxy"]
            capabilities = ["pull", "resolve"]
            dial_timeout = "200ms"
            override_path = true
            "#
        )
    );
    let order: Vec<_> = hosts.entries.iter().map(Entry::url).collect();
    assert_eq!(urls(&text).expect("tables"), order);
}

#[test]
fn a_file_is_ours_until_any_byte_of_it_is_changed() {
    let text = hosts(&[last("http://192.0.2.7:1")]).alone(None);

    let mark = Mark::read(&text).expect("ours");

    let release = "ns/name".to_string();
    assert_eq!(mark, Mark { release, hosts: 1 });
    for edited in [
        text.replace("200ms", "300ms"),
        text.replace("# Once", "# once"),
        format!("{text}# one more line\n"),
        format!("# before\n{text}"),
        text.replace("Written by peili", "Written by me"),
        text.replacen(" hosts=1 ", " hosts=1 x ", 1),
        text.lines().next().unwrap().to_string(),
        String::new(),
    ] {
        assert_eq!(Mark::read(&edited), None, "{edited}");
    }
    assert!(!is_spegels(&text));
}

#[test]
fn what_spegel_wrote_is_told_from_what_an_administrator_wrote() {
    for (text, spegels) in [
        (
            "[host.'http://192.0.2.7:30020']\ncapabilities = ['pull','resolve']\ndial_timeout = '200ms'\n",
            true,
        ),
        (
            "server = 'https://a'\n[host]\n[host.'http://b']\ncapabilities = ['pull']\ndial_timeout = '200ms'\n\
             [host.'http://b'.header]\nAuthorization = 'Basic eA=='\n[host.'https://mine']\nca = 'ca.crt'\n",
            true,
        ),
        (
            "[host.'https://mine']\nca = 'ca.crt'\n[host.'http://b']\ncapabilities = ['pull']\ndial_timeout = '200ms'\n",
            false,
        ),
        (
            "[host.'https://mine']\ncapabilities = ['pull', 'resolve']\n",
            false,
        ),
        ("server = 'https://mine'\n", false),
        ("[host.", false),
        ("", false),
    ] {
        assert_eq!(is_spegels(text), spegels, "{text}");
        assert_eq!(Mark::read(text), None);
    }
}

#[test]
fn files_with_a_header_in_them_are_for_root_alone() {
    let root = folder();
    let open = config(root.path(), &["*"], 1);
    let secret = Config {
        headers: vec![Header {
            name: "x-peili-token",
            value: "0123".to_string(),
        }],
        ..open.clone()
    };
    let file = root.path().join("_default/hosts.toml");
    let mode_after = |config: &Config| {
        configure(config).expect("configure");
        fs::metadata(&file).expect("stat").mode() & 0o777
    };

    assert_eq!(mode_after(&open), 0o644);
    assert_eq!(mode_after(&secret), 0o600);
    assert_eq!(mode_after(&secret), 0o600);
    // Somebody was careless.
    mode(&file, 0o644);
    assert_eq!(mode_after(&secret), 0o600);
    assert_eq!(mode_after(&open), 0o644);
}

#[test]
fn an_upgrade_of_containerd_rewrites_the_files_once_and_the_cleanup_knows_nothing_of_it() {
    let (root, before) = administrators();
    let ours = root.path().join("_default/hosts.toml");
    let at = |containerd: Option<&str>| Config {
        containerd: containerd.map(|text| text.parse().expect("a version")),
        ..config(root.path(), &["*"], 30020)
    };
    let tables = || {
        let text = fs::read_to_string(&ours).expect("ours");
        urls(&text).expect("tables").len()
    };

    configure(&at(Some("1.7.24"))).expect("configure");
    assert_eq!(tables(), 1);

    let upgraded = at(Some("2.1.9"));
    assert_eq!(upgraded.again(), 3);
    let done = configure(&upgraded).expect("configure");
    assert_eq!(done, [Done::Written(ours.clone())]);
    assert_eq!(tables(), 4);
    let done = configure(&upgraded).expect("configure");
    assert_eq!(done, [Done::Unchanged(ours.clone())]);

    let done = configure(&at(None)).expect("configure");
    assert_eq!(done, [Done::Written(ours.clone())]);
    assert_eq!(tables(), 1);

    restore(root.path());
    assert!(tree(root.path()) == before);
}
