//! Our tables before an administrator's.

use super::super::existing::{Unmergeable, of_certificates, prepended};
use super::super::toml::{Entry, Hosts, urls};
use super::*;

const OURS: [&str; 2] = ["http://127.0.0.1:1/again/1/v2", "http://127.0.0.1:1"];

fn hosts() -> Hosts {
    Hosts {
        release: "peili".to_string(),
        entries: vec![
            Entry::Again(OURS[0].to_string()),
            Entry::Last(OURS[1].to_string()),
        ],
        tags: TagResolution::default(),
        headers: Vec::new(),
    }
}

fn merged(existing: &str) -> String {
    prepended(&hosts(), existing, None).unwrap_or_else(|e| panic!("{e}\n{existing}"))
}

/// containerd 2.x counts only tables with a heading, and a host that is interrupted by another one twice; so do we here.
fn as_containerd_2_reads(text: &str) -> Vec<String> {
    let mut found = Vec::<String>::new();
    for line in text.lines().map(str::trim) {
        let heading = line.strip_prefix('[').filter(|rest| !rest.starts_with('['));
        let Some(key) = heading.and_then(|rest| rest.split(']').next()) else {
            continue;
        };
        // A bracket in a URL is not met with here.
        let keys = toml_edit::Key::parse(key).expect("a key");
        let [host, url, ..] = &keys[..] else { continue };
        if host.get() == "host" && found.last().is_none_or(|last| last != url.get()) {
            found.push(url.get().to_string());
        }
    }
    found
}

/// As `existing` says it, with our tables first.
fn assert_nothing_is_lost(existing: &str, text: &str) {
    let (mut before, mut after) = (parsed(existing), parsed(text));
    let hosts = |table: &mut ::toml::Table| match table.remove("host") {
        Some(::toml::Value::Table(hosts)) => hosts,
        _ => ::toml::Table::new(),
    };
    let (theirs, mut all) = (hosts(&mut before), hosts(&mut after));
    for ours in OURS {
        all.remove(ours).expect("ours");
    }
    assert_eq!(all, theirs, "{text}");
    assert_eq!(after, before, "root keys: {text}");
    let order = existing
        .parse::<toml_edit::DocumentMut>()
        .expect("a document");
    let order = order.get("host").and_then(|hosts| hosts.as_table_like());
    let order = order.map_or(Vec::new(), |hosts| {
        hosts.iter().map(|(url, _)| url.to_string()).collect()
    });
    let expected = [OURS.map(str::to_string).to_vec(), order].concat();
    assert_eq!(as_containerd_2_reads(text), expected, "{text}");
    assert_eq!(urls(text).expect("tables"), expected, "{text}");
    // Every comment is there, in its order.
    let comments = existing.lines().filter_map(|line| {
        let at = line.find('#')?;
        Some(line[at..].trim_end())
    });
    let mut rest = text;
    for comment in comments {
        assert_eq!(
            text.matches(comment).count(),
            existing.matches(comment).count(),
            "{text}"
        );
        let at = rest
            .find(comment)
            .unwrap_or_else(|| panic!("{comment} in {text}"));
        rest = &rest[at + comment.len()..];
    }
}

#[test]
fn tables_keys_and_comments_stay_as_they_are_typed() {
    let root = "# Mirrors of the second floor.\n\nserver   = 'https://registry.example'  # ours\n\
                ca = \"ca.crt\"\nclient = [[\"client.cert\", \"client.key\"]]\nskip_verify = false\n";
    let tables = "\n# The fast one.\n[host.\"https://fast.example\"] # 10 Gbit/s\n  capabilities = [ \"pull\" ]\n\n  \
                  [host.\"https://fast.example\".header]\n    x-a = [\"b\"]\n\n\
                  [ host . 'https://slow.example' ]\nca = [\"a.crt\",   \"b.crt\"]\n# The end.\n";

    let text = merged(&format!("{root}{tables}"));

    assert_nothing_is_lost(&format!("{root}{tables}"), &text);
    let at = |part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("{part:?} in {text}"))
    };
    assert!(at(root) < at(OURS[0]) && at(OURS[1]) < at(tables), "{text}");
    assert!(text.ends_with(tables), "{text}");
}

#[test]
fn whatever_form_hosts_are_written_in_none_is_lost_and_all_have_headings() {
    for existing in [
        // Nothing, and nothing but words.
        "",
        "# Nothing yet.\n",
        "server = \"https://a\"\n# The end.",
        // Root keys of each kind.
        "ca = \"ca.crt\"\nskip_verify = true\ndial_timeout = \"1s\"\n",
        "header.x-a = [\"b\"]\n[host.\"https://a\"]\n",
        "header = { x-a = \"b\" }\n[host.\"https://a\"]\n",
        "[header]\nx-a = [\"b\"]\n[host.\"https://a\"]\n",
        "[host.\"https://a\"]\n\n# Last.\n[header]\nx-a = [\"b\"]\n",
        // Dotted.
        "host.\"https://b\".capabilities = [\"pull\"] # b\n# And a.\nhost.\"https://a\".ca = \"ca.crt\"\n\
         host.\"https://a\".header.x-a = [\"b\"]\nserver = \"https://z\"\n",
        "[host]\n# First.\n\"https://b\".capabilities = [\"pull\"]\n\"https://a\".ca = \"a.crt\"\n",
        // Inline.
        "# All.\nhost = { \"https://b\" = { ca = \"b.crt\" }, 'https://a' = { capabilities = [\"pull\"] } } # one line\n",
        "# Hosts.\n[host] # here\n# First.\n\"https://b\" = { ca = \"b.crt\", header = { x-a = [\"b\"] } } # b\n\
         \"https://a\" = { skip_verify = true }\n",
        // Inline, with lines of its own.
        "host = { # All.\n # First.\n \"https://b\" = { # b\n # Its CA.\n ca = \"b.crt\", # old\n # Done.\n },\n \
         # Second.\n 'https://a' = {} # a\n # No more.\n} # The end.\n",
        "host = { # All.\n \"https://b\" = { header = { # within\n x-a = [\"b\"] } } }\n",
        // No host to come along with.
        "server = \"https://a\"\r\n# Nothing yet.\n[host] # here\n\r\n",
        "# All.\nhost = { # none\n}\n",
        // A host that is gone on with after another one, and one that has a header and nothing else.
        "[host.\"https://b\"]\n[host.\"https://a\"]\n[host.\"https://b\".header]\nx-a = [\"b\"]\n",
        "[host.\"https://b\".header]\nx-a = [\"b\"]\n",
        // As few have it.
        "[host.\"https://a\"]\r\ncapabilities = [\"pull\"]\r\n",
        "[[others]]\na = 1\n[[others]]\na = 2\n[host.\"https://a\"]\n[unknown.table]\nb = 2\n",
        "a.b.c = 1\n[host.\"https://a\"]\n",
        "[host.\"https://a\"]",
    ] {
        assert_nothing_is_lost(existing, &merged(existing));
    }
}

#[test]
fn a_server_that_must_be_said_is_said_once() {
    let registry: Registry = "http://registry.example:5000".parse().expect("a registry");
    for (existing, expected) in [
        ("", "http://registry.example:5000"),
        ("[host.\"https://a\"]\n", "http://registry.example:5000"),
        (
            "# Mine.\nca = \"ca.crt\"\n[host.\"https://a\"]\n",
            "http://registry.example:5000",
        ),
        ("server = \"https://theirs\"\n", "https://theirs"),
    ] {
        let text = prepended(&hosts(), existing, Some(&registry)).expect("merged");

        assert_eq!(parsed(&text)["server"].as_str(), Some(expected), "{text}");
    }
}

#[test]
fn a_table_for_the_same_url_is_ours_alone() {
    let existing = format!(
        "[host.\"https://a\"]\n[host.\"{}\"]\ncapabilities = [\"resolve\"]\n",
        OURS[1]
    );

    let text = merged(&existing);

    assert_eq!(
        urls(&text).expect("tables"),
        [OURS[0], OURS[1], "https://a"]
    );
    let ours = parsed(&text)["host"][OURS[1]]["capabilities"].clone();
    assert_eq!(ours.as_array().expect("a list").len(), 2);
}

#[test]
fn what_containerd_could_not_read_either_is_refused_with_the_reason() {
    for (existing, reason) in [
        ("[host.", "not valid TOML"),
        ("server = \"a\"\nserver = \"b\"\n", "not valid TOML"),
        ("host = \"https://a\"\n", "host is no table"),
        ("[[host]]\n", "host is no table"),
        ("host.\"https://a\" = 1\n", "host.\"https://a\" is no table"),
        ("[[host.\"https://a\"]]\n", "host.\"https://a\" is no table"),
    ] {
        let error: Unmergeable = prepended(&hosts(), existing, None).expect_err(existing);

        let said = error.to_string();
        assert!(said.contains(reason), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn certificates_without_a_file_mean_what_containerd_makes_of_them() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    for (files, expected) in [
        (&["README"][..], None),
        (&["b.crt", "a.crt"], Some("ca = [\"a.crt\", \"b.crt\"]\n")),
        (
            &["client.cert", "client.key", "ca.crt", "other.key"],
            Some("ca = [\"ca.crt\"]\nclient = [[\"client.cert\", \"client.key\"]]\n"),
        ),
        (&["both.cert"], Some("client = [\"both.cert\"]\n")),
        (&["a\"b.crt"], Some("ca = ['a\"b.crt']\n")),
    ] {
        assert_eq!(
            of_certificates(&names(files)).as_deref(),
            expected,
            "{files:?}"
        );
    }
}
