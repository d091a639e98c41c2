//! Renders one `hosts.toml`, and tells whether one was rendered by us.

use super::{Registry, Targets, Token};

/// How every file of ours begins. It is how we know them again, so it must stay as it is.
const MARKER: &str = "# Written by peili.";

/// A mirror on the same node answers in microseconds or is not there. Without a bound a vanished address costs 30 s per
/// request; containerd 1.6 and 1.7 ignore the key.
const DIAL_TIMEOUT: &str = "200ms";

/// `token` is sent to every target, as the header of that name.
pub fn render(
    registry: &Registry,
    targets: &Targets,
    resolve_tags: bool,
    token: Option<&Token>,
) -> String {
    let mut text =
        format!("{MARKER} Edits are lost; `peili cleanup` brings back what was here before.\n");
    // Under the wildcard a `server` would be asked for everybody's images; without one each registry is its own.
    if let Registry::Named(server) = registry {
        text += &format!("server = \"{}\"\n", server.upstream());
    }
    let capabilities = if resolve_tags {
        r#"["pull", "resolve"]"#
    } else {
        r#"["pull"]"#
    };
    for url in targets.urls() {
        // Nothing needs escaping: neither type lets a quote or a backslash in.
        text += &format!(
            "\n[host.\"{url}\"]\ncapabilities = {capabilities}\ndial_timeout = \"{DIAL_TIMEOUT}\"\n"
        );
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

    fn rendered(registry: &str, targets: &[&str], resolve_tags: bool) -> String {
        let registry = registry.parse().expect("a registry");
        let targets = Targets::list(targets).expect("targets");
        render(&registry, &targets, resolve_tags, None)
    }

    fn parsed(text: &str) -> toml::Table {
        text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn a_token_is_sent_to_every_target() {
        let targets =
            Targets::list(&["http://192.0.2.7:1", "http://192.0.2.8:1"]).expect("targets");
        let token = Token {
            header: "x-peili-token",
            value: "0123".to_string(),
        };

        let text = render(&Registry::Every, &targets, true, Some(&token));

        let hosts = &parsed(&text)["host"];
        for host in ["http://192.0.2.7:1", "http://192.0.2.8:1"] {
            let sent = hosts[host]["header"]["x-peili-token"].as_array();
            assert_eq!(sent.expect("a list")[0].as_str(), Some("0123"));
        }
    }

    #[test]
    fn a_named_registry_falls_back_to_its_own_server() {
        let text = rendered(
            "https://docker.io",
            &["http://2001:db8::7:30020", "https://mirror.example"],
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
