//! What we say in a `hosts.toml`: our host tables, and the whole file where there was none before.
//!
//! Keys before the first table (`server`, `ca`, `client`, `skip_verify`, `header`) concern the registry itself, whom
//! containerd asks last, and never a mirror. So ours and an administrator's do not meet.

use super::mark::Mark;

/// A request header that containerd sends to a target. The value has no quote, backslash or control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: &'static str,
    pub value: String,
}

/// One host table, by its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Its 404 means "ask the next entry", which is ours as well. The path is complete.
    Again(String),
    /// Its 404 is a mirror's last word.
    Last(String),
    /// Somebody else's mirror, below a path that is complete: the headers are no concern of his.
    Below(String),
}

impl Entry {
    pub fn url(&self) -> &str {
        match self {
            Entry::Again(url) | Entry::Last(url) | Entry::Below(url) => url,
        }
    }
}

/// A mirror on the same node answers in microseconds or is not there. Without a bound a vanished address costs 30 s per
/// request; containerd 1.6 and 1.7 ignore the key.
const DIAL_TIMEOUT: &str = "200ms";

const ABOUT: &str = "\
# As it stands, it is ours: it follows what `peili configuration` is told, and `peili cleanup` takes it away.
# Once it is edited, it is yours, and both leave it alone.
";

/// What we want to say in every file.
#[derive(Clone, Debug)]
pub struct Hosts {
    pub release: String,
    pub entries: Vec<Entry>,
    pub resolve_tags: bool,
    pub headers: Vec<Header>,
}

impl Hosts {
    /// A file of its own. Without `server` each registry is its own, so that one file does for all of them.
    pub fn alone(&self, server: Option<&str>) -> String {
        let server = server.map_or(String::new(), |url| format!("server = \"{url}\"\n"));
        self.marked(&format!("{server}{}", self.tables()))
    }

    /// Our host tables, in order, each after an empty line.
    pub fn tables(&self) -> String {
        self.entries
            .iter()
            .map(|entry| self.table(entry))
            .collect::<String>()
    }

    pub fn marked(&self, body: &str) -> String {
        let mark = Mark {
            release: self.release.clone(),
            hosts: self.entries.len(),
        };
        mark.put_on(&format!("{ABOUT}{body}"))
    }

    // Nothing needs escaping: no type lets a quote or a backslash in.
    fn table(&self, entry: &Entry) -> String {
        let url = entry.url();
        // Who is closest to a tag is asked once: there is nothing to wait for.
        let resolves = self.resolve_tags && !matches!(entry, Entry::Again(_));
        let capabilities = if resolves {
            r#"["pull", "resolve"]"#
        } else {
            r#"["pull"]"#
        };
        let mut text = format!(
            "\n[host.\"{url}\"]\ncapabilities = {capabilities}\ndial_timeout = \"{DIAL_TIMEOUT}\"\n"
        );
        if let Entry::Again(_) | Entry::Below(_) = entry {
            text += "override_path = true\n";
        }
        if !self.headers.is_empty() && !matches!(entry, Entry::Below(_)) {
            text += &format!("\n[host.\"{url}\".header]\n");
            for Header { name, value } in &self.headers {
                text += &format!("{name} = [\"{value}\"]\n");
            }
        }
        text
    }
}

/// The URLs of all host tables in the order of the file, which is that of asking. None: it is no TOML, or has no table.
pub fn urls(text: &str) -> Option<Vec<String>> {
    let document = text.parse::<toml_edit::DocumentMut>().ok()?;
    let hosts = document.get("host")?.as_table_like()?;
    Some(hosts.iter().map(|(url, _)| url.to_string()).collect())
}

/// Looks like what Spegel writes, which leaves no mark: its first host says how long to dial and what it can do, and
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
    let is_marked = Mark::read(text).is_some();
    first.is_some_and(|host| {
        let dial = host.get("dial_timeout").and_then(|value| value.as_str());
        !is_marked
            && dial == Some(DIAL_TIMEOUT)
            && host.contains_key("capabilities")
            && host
                .iter()
                .all(|(key, _)| matches!(key, "capabilities" | "dial_timeout" | "header"))
    })
}
