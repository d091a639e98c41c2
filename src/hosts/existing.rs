//! Our host tables before those that an administrator wrote, with nothing of his lost.
//!
//! containerd asks in the order of the file, and 2.x counts only tables with a heading of their own, so hosts that are
//! written dotted or inline get one. Everything else stays as it is typed, comments included.

use toml_edit::{Array, Decor, DocumentMut, Item, Key, RawString, Table, Value};

use super::tags::TagResolution;
use super::toml::Hosts;
use super::{Registry, upstream};

/// Why our tables cannot be put before what is there. containerd could not read it either, and takes it for empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmergeable {
    #[error("it is not valid TOML ({0})")]
    NoToml(String),
    #[error("its {0} is no table of hosts")]
    NoHosts(String),
    /// Only where the registry has to be known.
    #[error("its server is no text")]
    BadServer,
}

/// The file with our tables first, then those of `existing`, then those that we have behind. A table of ours that it has
/// already counts once, as ours. Where it names no server it is that of the `registry`, which is said if it is not what
/// containerd would take.
pub fn prepended(
    hosts: &Hosts,
    existing: &str,
    registry: Option<&Registry>,
) -> Result<String, Unmergeable> {
    let mut document = parse(existing)?;
    // An editor on Windows puts it there. It is nothing at the beginning, and no TOML behind what is ours.
    let existing = existing.strip_prefix('\u{feff}').unwrap_or(existing);
    let root = without_headings(&document);
    let typed = existing.strip_prefix(&root);
    let (root, theirs) = match typed.filter(|_| is_plain(&document, hosts)) {
        Some(theirs) => (root, theirs.to_string()),
        None => {
            let mut left = String::new();
            if let Some((key, item)) = document.remove_entry("host") {
                let (mut tables, comments) = with_headings(&key, item)?;
                tables.retain(|url, _| !is_among(hosts, url));
                document.insert("host", Item::Table(tables));
                left = comments;
            }
            renumber(&mut document);
            let root = without_headings(&document) + &left;
            let mut tables = document.clone();
            tables.retain(|_, item| has_heading(item));
            (root, tables.to_string())
        }
    };
    let unusual = registry.and_then(Registry::unusual_server);
    let unusual = unusual.filter(|_| !document.contains_key("server"));
    let server = unusual.map_or(String::new(), |url| format!("server = \"{url}\"\n"));
    let ours = hosts.tables();
    let behind = match hosts.tags {
        TagResolution::UpstreamFirst => {
            let usual = registry.and_then(Registry::server);
            let server = upstream::server(&document)?.or(usual.as_deref());
            let tables = hosts.tables_behind(&document, server);
            let newline = if theirs.is_empty() || theirs.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            format!("{newline}{BEHIND}{tables}")
        }
        TagResolution::ClusterFirst | TagResolution::UpstreamOnly => String::new(),
    };
    let text = hosts.marked(&format!("{server}{root}{ours}{FOUND}{theirs}{behind}"));
    parse(&text).map(|_| text)
}

const BEHIND: &str = "\n# From here on ours again: the registry, with its keys from above, and us for the tags of one that does not answer.\n";

const FOUND: &str = "\n# From here on as it was found. It is kept in _backup: what is changed there counts at the next run.\n";

fn parse(text: &str) -> Result<DocumentMut, Unmergeable> {
    // The message is one line; the rest of the error is a drawing of the place.
    text.parse::<DocumentMut>()
        .map_err(|e| Unmergeable::NoToml(e.message().to_string()))
}

/// The keys that no heading is above. They must come before our tables, or they would belong to the last one.
fn without_headings(document: &DocumentMut) -> String {
    let mut root = document.clone();
    root.retain(|_, item| !has_heading(item));
    root.set_trailing("");
    root.to_string()
}

/// Whether the hosts can stay as they are typed: each has a heading and is gone on with by nobody but itself.
fn is_plain(document: &DocumentMut, ours: &Hosts) -> bool {
    /// The places of a table and of what is below it.
    fn places(table: &Table) -> Vec<isize> {
        let below = table.iter().filter_map(|(_, item)| item.as_table());
        let below = below.flat_map(places);
        table.position().into_iter().chain(below).collect()
    }
    let hosts = match document.get("host") {
        None => return true,
        Some(Item::Table(hosts)) if !hosts.is_dotted() => hosts,
        Some(_) => return false,
    };
    let mut all = Vec::new();
    for (url, item) in hosts.iter() {
        match item {
            Item::Table(host) if !host.is_dotted() && !is_among(ours, url) => {
                all.extend(places(host).into_iter().map(|place| (place, url)));
            }
            _ => return false,
        }
    }
    all.sort_unstable();
    all.dedup_by_key(|(_, url)| *url);
    all.len() == hosts.len()
}

fn is_among(hosts: &Hosts, url: &str) -> bool {
    hosts.entries.iter().any(|ours| ours.url() == url)
}

fn has_heading(item: &Item) -> bool {
    match item {
        Item::Table(table) => !table.is_dotted(),
        Item::ArrayOfTables(_) => true,
        Item::Value(_) | Item::None => false,
    }
}

/// What containerd makes of a directory with certificates and without a hosts.toml, written out: once there is a
/// hosts.toml it no longer looks for them. `names` are those of all files in the directory.
pub fn of_certificates(names: &[String]) -> Option<String> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let authorities: Array = names
        .iter()
        .copied()
        .filter(|n| n.ends_with(".crt"))
        .collect();
    let clients = names.iter().filter_map(|name| name.strip_suffix(".cert"));
    let clients: Array = clients
        .map(|stem| {
            let (certificate, key) = (format!("{stem}.cert"), format!("{stem}.key"));
            if names.contains(&key.as_str()) {
                Value::from_iter([certificate, key])
            } else {
                // The key is in the same file.
                Value::from(certificate)
            }
        })
        .collect();
    let mut document = DocumentMut::new();
    for (key, files) in [("ca", authorities), ("client", clients)] {
        if !files.is_empty() {
            document.insert(key, files.into());
        }
    }
    (!document.is_empty()).then(|| document.to_string())
}

/// The hosts in their order, each under a heading of its own; and the comments that none of them could take, for there is none.
fn with_headings(key: &Key, item: Item) -> Result<(Table, String), Unmergeable> {
    // The heading of them all goes, or what is in its place; the comments around it stay.
    let mut carried = match &item {
        Item::Table(table) => comments(table.decor()),
        Item::Value(value) => comments_of_pair(key, value, 2),
        _ => String::new(),
    };
    let is_inline = item.is_value();
    let position = item.as_table().and_then(Table::position);
    let mut hosts = item.into_table().map_err(|_| no_hosts("host"))?;
    let urls: Vec<String> = hosts.iter().map(|(url, _)| url.to_string()).collect();
    let mut tables = Table::new();
    tables.set_implicit(true);
    for url in urls {
        let Some((mut key, item)) = hosts.remove_entry(&url) else {
            continue;
        };
        let is_typed = has_heading(&item);
        if let Item::Value(value) = &item
            && !is_inline
        {
            carried += &comments_of_pair(&key, value, 1);
        }
        let table = item.into_table();
        let mut table = table.map_err(|_| no_hosts(&format!("host.{url:?}")))?;
        if !is_typed {
            *key.leaf_decor_mut() = Decor::default();
            *table.decor_mut() = Decor::new("\n", "");
            table.set_dotted(false);
            table.set_position(position);
        }
        // A table that is known by its `header` alone.
        table.set_implicit(false);
        if !carried.is_empty() {
            let decor = table.decor_mut();
            let prefix = text_of(decor.prefix());
            decor.set_prefix(format!("\n{carried}{prefix}"));
            carried.clear();
        }
        tables.insert_formatted(&key, Item::Table(table));
    }
    Ok((tables, carried))
}

fn no_hosts(what: &str) -> Unmergeable {
    Unmergeable::NoHosts(what.to_string())
}

/// Gives the tables places in the order that they have, each with what is below it: to containerd 2.x a host that is
/// gone on with after another one is two.
fn renumber(document: &mut DocumentMut) {
    fn place(table: &mut Table, next: &mut isize) {
        *next += 1;
        table.set_position(Some(*next));
        for (_, item) in table.iter_mut() {
            if let Item::Table(below) = item {
                place(below, next);
            }
        }
    }
    let mut tables = Vec::new();
    for (name, item) in document.as_table_mut().iter_mut() {
        let Item::Table(table) = item else {
            continue;
        };
        if name == "host" {
            let hosts = table.iter_mut();
            tables.extend(hosts.filter_map(|(_, host)| host.as_table_mut()));
        } else {
            tables.push(table);
        }
    }
    tables.sort_by_key(|table| table.position());
    let mut next = 0;
    for table in tables {
        place(table, &mut next);
    }
}

/// The comments around a key and its value, in their order, each on a line of its own; and those in so many levels of inline
/// tables, which may have lines (TOML 1.1) and lose what stands around their keys when they get a heading.
fn comments_of_pair(key: &Key, value: &Value, levels: u8) -> String {
    let around = value.decor();
    let mut found = comments(key.leaf_decor()) + &comments_in(around.prefix());
    let table = value.as_inline_table();
    // Deeper ones stay as they are typed, but for those that are no braces.
    if let Some(table) = table.filter(|table| levels > 0 || table.is_dotted()) {
        let pairs = table.iter().filter_map(|(key, _)| table.get_key_value(key));
        let pairs = pairs.filter_map(|(key, item)| Some((key, item.as_value()?)));
        let within = levels.saturating_sub(1);
        found.extend(pairs.map(|(key, value)| comments_of_pair(key, value, within)));
        found += &comments_in(Some(table.trailing()));
    }
    found + &comments_in(around.suffix())
}

/// The comments in what stands around something, each on a line of its own.
fn comments(around: &Decor) -> String {
    comments_in(around.prefix()) + &comments_in(around.suffix())
}

fn comments_in(raw: Option<&RawString>) -> String {
    let text = text_of(raw);
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| line.starts_with('#'));
    lines.map(|line| format!("{line}\n")).collect()
}

fn text_of(raw: Option<&RawString>) -> String {
    raw.and_then(RawString::as_str)
        .unwrap_or_default()
        .to_string()
}
