//! Renders one `hosts.toml`, and tells whether one was rendered by us.

use super::{Registry, Token};

/// One host table, by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Its 404 means "ask the next entry", which is ours as well. The path is complete.
    Again(String),
    /// Its 404 is a mirror's last word.
    Last(String),
}

/// How every file of ours begins. It is how we know them again, so it must stay as it is.
const MARKER: &str = "# Written by peili.";

/// A mirror on the same node answers in microseconds or is not there. Without a bound a vanished address costs 30 s per
/// request; containerd 1.6 and 1.7 ignore the key.
const DIAL_TIMEOUT: &str = "200ms";

/// `token` is sent to every entry, as the header of that name.
pub fn render(
    registry: &Registry,
    entries: &[Entry],
    resolve_tags: bool,
    token: Option<&Token>,
) -> String {
    let mut text =
        format!("{MARKER} Edits are lost; `peili cleanup` brings back what was here before.\n");
    // Under the wildcard a `server` would be asked for everybody's images; without one each registry is its own.
    if let Registry::Named(server) = registry {
        text += &format!("server = \"{}\"\n", server.upstream());
    }
    for entry in entries {
        let (url, resolves) = match entry {
            // Who is closest to a tag is asked once: there is nothing to wait for.
            Entry::Again(url) => (url, false),
            Entry::Last(url) => (url, resolve_tags),
        };
        let capabilities = if resolves {
            r#"["pull", "resolve"]"#
        } else {
            r#"["pull"]"#
        };
        // Nothing needs escaping: neither type lets a quote or a backslash in.
        text += &format!(
            "\n[host.\"{url}\"]\ncapabilities = {capabilities}\ndial_timeout = \"{DIAL_TIMEOUT}\"\n"
        );
        if let Entry::Again(_) = entry {
            text += "override_path = true\n";
        }
        if let Some(Token { header, value }) = token {
            text += &format!("\n[host.\"{url}\".header]\n{header} = [\"{value}\"]\n");
        }
    }
    text
}

/// Written by us, be it by an older release.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(MARKER)
}

/// The URLs of all host tables in the order of the file, which is that of asking. None: it is no TOML, or has no table.
pub fn urls(text: &str) -> Option<Vec<String>> {
    let document = text.parse::<toml_edit::DocumentMut>().ok()?;
    let hosts = document.get("host")?.as_table_like()?;
    Some(hosts.iter().map(|(url, _)| url.to_string()).collect())
}

/// Looks like what Spegel writes, which leaves no marker: its first host says how long to dial and what it can do, and
/// nothing else but perhaps a password. (Hosts that follow may be those that it found.)
pub fn is_spegels(text: &str) -> bool {
    let Ok(document) = text.parse::<toml_edit::DocumentMut>() else {
        return false;
    };
    let first = document
        .get("host")
        .and_then(|hosts| hosts.as_table_like())
        .and_then(|hosts| hosts.iter().next())
        .and_then(|(_, host)| host.as_table_like());
    first.is_some_and(|host| {
        let dial = host.get("dial_timeout").and_then(|value| value.as_str());
        dial == Some(DIAL_TIMEOUT)
            && host.contains_key("capabilities")
            && host
                .iter()
                .all(|(key, _)| matches!(key, "capabilities" | "dial_timeout" | "header"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(urls: &[&str]) -> Vec<Entry> {
        let urls = urls.iter().map(|url| url.to_string());
        urls.map(Entry::Last).collect()
    }

    fn rendered(registry: &str, targets: &[&str], resolve_tags: bool) -> String {
        let registry = registry.parse().expect("a registry");
        render(&registry, &last(targets), resolve_tags, None)
    }

    fn parsed(text: &str) -> toml::Table {
        text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn a_token_is_sent_to_every_entry() {
        let mut entries = last(&["http://192.0.2.7:1", "http://192.0.2.8:1"]);
        entries.insert(0, Entry::Again("http://192.0.2.7:1/again/1/v2".to_string()));
        let token = Token {
            header: "x-peili-token",
            value: "0123".to_string(),
        };

        let text = render(&Registry::Every, &entries, true, Some(&token));

        let hosts = &parsed(&text)["host"];
        for host in [
            "http://192.0.2.7:1/again/1/v2",
            "http://192.0.2.7:1",
            "http://192.0.2.8:1",
        ] {
            let sent = hosts[host]["header"]["x-peili-token"].as_array();
            assert_eq!(sent.expect("a list")[0].as_str(), Some("0123"));
        }
    }

    #[test]
    fn a_named_registry_falls_back_to_its_own_server() {
        let text = rendered(
            "https://docker.io",
            &["http://[2001:db8::7]:30020", "https://mirror.example"],
            true,
        );

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
        assert!(is_ours(&text));
    }

    #[test]
    fn the_wildcard_names_no_server_and_tags_can_be_left_to_upstream() {
        let text = rendered("*", &["http://192.0.2.7:30020"], false);

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
    fn an_entry_that_is_asked_again_has_its_own_path_and_resolves_no_tag() {
        let entries = [
            Entry::Again("http://192.0.2.7:1/again/1/v2".to_string()),
            Entry::Last("http://192.0.2.7:1".to_string()),
        ];

        let text = render(&Registry::Every, &entries, true, None);

        assert_eq!(
            parsed(&text),
            parsed(
                r#"
                [host."http://192.0.2.7:1/again/1/v2"]
                capabilities = ["pull"]
                dial_timeout = "200ms"
                override_path = true
                [host."http://192.0.2.7:1"]
                capabilities = ["pull", "resolve"]
                dial_timeout = "200ms"
                "#
            )
        );
        let order = ["http://192.0.2.7:1/again/1/v2", "http://192.0.2.7:1"];
        assert_eq!(urls(&text).expect("tables"), order);
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
            assert!(!is_ours(text));
        }
    }
}
