//! What we say in a `hosts.toml`: our host tables, and the whole file where there was none before.
//!
//! Keys before the first table (`server`, `ca`, `client`, `skip_verify`, `header`) concern the registry itself, whom
//! containerd asks last, and never a mirror. So ours and an administrator's do not meet. Where the registry is asked for
//! tags before us, it has a table of its own with the same keys ([`super::upstream`]), and we stand in front of it and
//! behind it.

use toml_edit::{DocumentMut, Item};

use super::mark::Mark;
use super::tags::TagResolution;
use super::upstream;

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
    pub tags: TagResolution,
    pub headers: Vec<Header>,
}

impl Hosts {
    /// A file of its own. Without `server` each registry is its own, so that one file does for all of them.
    pub fn alone(&self, server: Option<&str>) -> String {
        let line = server.map_or(String::new(), |url| format!("server = \"{url}\"\n"));
        let behind = self.tables_behind(&DocumentMut::new(), server);
        self.marked(&format!("{line}{}{behind}", self.tables()))
    }

    /// Our host tables, in order, each after an empty line.
    pub fn tables(&self) -> String {
        let resolves = self.tags == TagResolution::ClusterFirst;
        let table = |entry: &Entry| {
            let overrides_path = !matches!(entry, Entry::Last(_));
            // Who is closest to a tag is asked once: there is nothing to wait for.
            let resolves = resolves && !matches!(entry, Entry::Again(_));
            self.table(entry, entry.url(), resolves, overrides_path)
        };
        self.entries.iter().map(table).collect()
    }

    /// What comes behind all that is in `existing`, where tags are the registry's to say: the registry at `server`, unless
    /// it stands there already, and each of our targets once more, for the tags of a registry that does not answer.
    pub fn tables_behind(&self, existing: &DocumentMut, server: Option<&str>) -> String {
        if self.tags != TagResolution::UpstreamFirst {
            return String::new();
        }
        let mut taken: Vec<String> = self.entries.iter().map(|e| e.url().to_string()).collect();
        let theirs = existing.get("host").and_then(Item::as_table_like);
        let theirs = theirs.into_iter().flat_map(|hosts| hosts.iter());
        taken.extend(theirs.map(|(url, _)| url.to_string()));
        // containerd takes the slashes at the end away; to TOML it is another key.
        let mut free = |url: &str| {
            let mut url = url.to_string();
            while taken.contains(&url) {
                url.push('/');
            }
            taken.push(url.clone());
            url
        };
        let own = server.and_then(|url| upstream::own_table(existing, url, &free(url)));
        let mut text = own.unwrap_or_default();
        for entry in &self.entries {
            let url = match entry {
                Entry::Again(_) => continue,
                // What containerd appends to the plain URL.
                Entry::Last(url) => free(&format!("{url}/v2")),
                Entry::Below(url) => free(url),
            };
            text += &self.table(entry, &url, true, true);
        }
        text
    }

    pub fn marked(&self, body: &str) -> String {
        let mark = Mark {
            release: self.release.clone(),
            hosts: self.entries.len(),
        };
        mark.put_on(&format!("{ABOUT}{body}"))
    }

    // Nothing needs escaping: no type lets a quote or a backslash in.
    fn table(&self, entry: &Entry, url: &str, resolves: bool, overrides_path: bool) -> String {
        let capabilities = if resolves {
            r#"["pull", "resolve"]"#
        } else {
            r#"["pull"]"#
        };
        let mut text = format!(
            "\n[host.\"{url}\"]\ncapabilities = {capabilities}\ndial_timeout = \"{DIAL_TIMEOUT}\"\n"
        );
        if overrides_path {
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
    let document = text.parse::<DocumentMut>().ok()?;
    let hosts = document.get("host")?.as_table_like()?;
    Some(hosts.iter().map(|(url, _)| url.to_string()).collect())
}

/// Looks like what Spegel writes, which leaves no mark: its first host says how long to dial and what it can do, and
/// nothing else but perhaps a password. (Hosts that follow may be those that it found.)
pub fn is_spegels(text: &str) -> bool {
    let Ok(document) = text.parse::<DocumentMut>() else {
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
