//! An administrator's hosts.toml, before which ours are put: nothing of his is lost, and all of it comes back.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use toml_edit::{DocumentMut, Item, Value};

use crate::hosts::existing::{Unmergeable, prepended as put_before};
use crate::hosts::toml::{Entry, Header, Hosts, urls};
use crate::hosts::{self, Config, Done, Registry, TagResolution, Targets};

pub const WORDS: &[&str] = &[
    "server = \"https://registry-1.docker.io\"\n",
    "\n[host]\n",
    "\n[host.\"https://proxy.example\"]\n",
    "\n[host.\"http://192.0.2.7:30020\"]\n",
    "\n[host.'http://192.0.2.7:30020'.header]\n",
    "host.\"https://a\".capabilities = [\"pull\"]\n",
    "host = { \"https://a\" = {} }\n",
    "\n[[host]]\n",
    "capabilities = [\"pull\", \"resolve\"]\n",
    "override_path = true\n",
    "ca = \"ca.crt\"\n",
    "# a comment\n",
    "\"\"\"",
    "'''",
    "\r\n",
    "[header]\n",
    "x = nan\n",
];

const URL: &str = "http://192.0.2.7:30020";
const POLICIES: [TagResolution; 3] = [
    TagResolution::ClusterFirst,
    TagResolution::UpstreamFirst,
    TagResolution::UpstreamOnly,
];

/// What is put before, and for which registry; None: one that is mirrored because every registry is.
fn ours(way: u8) -> (Hosts, Option<Registry>) {
    let tags = POLICIES[usize::from(way % 3)];
    let registries = ["https://docker.io", "http://registry.test:5000", "*"];
    let registry = registries[usize::from(way / 3 % 3)].parse();
    let registry: Registry = registry.expect("a registry");
    let is_known = way & 128 == 0;
    let registry = match tags {
        // It needs each registry's own address.
        TagResolution::UpstreamFirst if registry == Registry::Every || !is_known => {
            Some("https://ghcr.io".parse().expect("a registry"))
        }
        _ => is_known.then_some(registry),
    };
    let header = Header {
        name: "x-peili-token",
        value: "0123".into(),
    };
    let hosts = Hosts {
        release: "peili/peili".into(),
        entries: vec![
            Entry::Again(format!("{URL}/again/1/v2")),
            Entry::Last(URL.into()),
        ],
        tags,
        headers: (way & 64 == 0).then_some(header).into_iter().collect(),
    };
    (hosts, registry)
}

/// A byte that says which way, and the file that was there.
pub fn prepended(bytes: &[u8]) {
    let Some((way, existing)) = bytes.split_first() else {
        return;
    };
    let Ok(existing) = std::str::from_utf8(existing) else {
        return;
    };
    let (hosts, registry) = ours(*way);
    let before = existing.parse::<DocumentMut>();
    let text = match (put_before(&hosts, existing, registry.as_ref()), &before) {
        (Ok(text), Ok(_)) => text,
        (Ok(_), Err(e)) => panic!("what nobody can read was rewritten: {e}"),
        (Err(Unmergeable::NoToml(why)), Ok(_)) => panic!("ours made it unreadable: {why}"),
        (Err(_), _) => return,
    };
    let before = before.expect("it was read");
    let after: DocumentMut = text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"));
    nothing_is_lost(existing, &before, &text, &after, &hosts);
    // With ours before it already it is readable still.
    let again = put_before(&hosts, &text, registry.as_ref());
    again.unwrap_or_else(|e| panic!("{e}\n{text}"));
}

fn nothing_is_lost(
    existing: &str,
    before: &DocumentMut,
    text: &str,
    after: &DocumentMut,
    ours: &Hosts,
) {
    for (key, item) in before.iter().filter(|(key, _)| *key != "host") {
        assert_eq!(told(after.get(key)), told(Some(item)), "{key}\n{text}");
    }
    let is_ours = |url: &str| ours.entries.iter().any(|entry| entry.url() == url);
    let theirs = before.get("host").and_then(Item::as_table_like);
    let hosts = after.get("host").and_then(Item::as_table_like);
    let hosts = hosts.unwrap_or_else(|| panic!("no hosts\n{text}"));
    let mut kept = Vec::new();
    for (url, host) in theirs.into_iter().flat_map(|theirs| theirs.iter()) {
        if !is_ours(url) {
            let now = told(hosts.get(url));
            assert_eq!(now, told(Some(host)), "{url}\n{text}");
            // One that only a table below it speaks of has no place of its own, and may get another among them.
            if host.as_table().is_none_or(|table| !table.is_implicit()) {
                kept.push(url.to_string());
            }
        }
    }
    // Ours come first, then theirs as they stood.
    let all = urls(text).expect("hosts");
    for (entry, url) in ours.entries.iter().zip(&all) {
        assert_eq!(entry.url(), url, "{text}");
    }
    let rest: Vec<String> = all.into_iter().filter(|url| kept.contains(url)).collect();
    assert_eq!(rest, kept, "{text}");
    for (url, host) in hosts.iter() {
        // containerd 2.x counts no others.
        let has_heading = host.as_table().is_some_and(|table| !table.is_dotted());
        assert!(has_heading, "{url} has no heading of its own\n{text}");
    }
    // Those that are lines of their own. With a table that counts as ours its comments go.
    let has_ours = theirs.is_some_and(|theirs| theirs.iter().any(|(url, _)| is_ours(url)));
    if !has_ours {
        let comments = existing.lines().map(str::trim);
        for line in comments.filter(|line| line.starts_with('#')) {
            assert!(text.contains(line), "{line:?}\n{text}");
        }
    }
}

/// What a key means, however it is typed.
fn told(item: Option<&Item>) -> String {
    // No string is quoted twice: within tables of tables it would double with each.
    fn pairs(all: impl Iterator<Item = (String, String)>) -> String {
        let mut all: Vec<_> = all.map(|(key, is)| format!("{key:?} = {is}")).collect();
        all.sort();
        format!("{{{}}}", all.join(", "))
    }
    fn list(all: impl Iterator<Item = String>) -> String {
        format!("[{}]", all.collect::<Vec<_>>().join(", "))
    }
    fn of_value(value: &Value) -> String {
        match value {
            Value::InlineTable(table) => {
                pairs(table.iter().map(|(key, it)| (key.into(), of_value(it))))
            }
            Value::Array(array) => list(array.iter().map(of_value)),
            Value::String(text) => format!("{:?}", text.value()),
            Value::Integer(number) => number.value().to_string(),
            Value::Float(number) => format!("{:?}", number.value()),
            Value::Boolean(is) => is.value().to_string(),
            Value::Datetime(when) => when.value().to_string(),
        }
    }
    fn of_table(table: &toml_edit::Table) -> String {
        pairs(table.iter().map(|(key, it)| (key.into(), told(Some(it)))))
    }
    match item {
        None | Some(Item::None) => "nothing".into(),
        Some(Item::Table(table)) => of_table(table),
        Some(Item::ArrayOfTables(all)) => list(all.iter().map(of_table)),
        Some(Item::Value(value)) => of_value(value),
    }
}

thread_local! {
    /// In memory, and the same for all inputs: making one for each would take most of the time.
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new();
    let made = match memory.is_dir() {
        true => builder.tempdir_in(memory),
        false => builder.tempdir(),
    };
    made.expect("a folder")
}

/// A byte that says which way, and the file that was there: after `configuration` it is there with ours before it, or
/// untouched, and after `cleanup` byte for byte.
pub fn configured(bytes: &[u8]) {
    let Some((way, before)) = bytes.split_first() else {
        return;
    };
    FOLDER.with(|folder| {
        let certs_d = folder.get_or_init(self::folder).path().join("certs.d");
        let _ = fs::remove_dir_all(&certs_d);
        // As containerd spells registry.test:5000.
        let directory = certs_d.join("registry.test_5000_");
        fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("hosts.toml");
        fs::write(&file, before).expect("a file");
        there_and_back(&certs_d, &file, before, *way);
    });
}

fn there_and_back(certs_d: &Path, file: &Path, before: &[u8], way: u8) {
    let is_every = way & 2 != 0;
    let registry = if is_every {
        "*"
    } else {
        "http://registry.test:5000"
    };
    let config = Config {
        directory: certs_d.to_owned(),
        release: "peili/peili".parse().expect("a release"),
        registries: Registry::list(&[registry]).expect("a registry"),
        targets: Targets::list(&[URL]).expect("a target"),
        tags: match is_every {
            true => TagResolution::ClusterFirst,
            false => POLICIES[usize::from(way / 4 % 3)],
        },
        prepend_existing: way & 1 == 0,
        headers: Vec::new(),
        containerd: Some("2.1".parse().expect("a version")),
        node_ips: Vec::new(),
    };

    let done = hosts::configure(&config).expect("configured");

    let is_left = |done: &Done| matches!(done, Done::Unmergeable(..));
    let now = fs::read(file).ok();
    if done.iter().any(is_left) {
        assert_eq!(now.as_deref(), Some(before), "what cannot be read is left");
    } else if config.prepend_existing {
        let now = String::from_utf8(now.expect("it is there")).expect("UTF-8");
        let urls = urls(&now).expect("hosts");
        assert!(urls[0].starts_with(URL), "{now}");
    }
    let again = hosts::configure(&config).expect("configured again");
    let is_new = |done: &Done| matches!(done, Done::Written(_) | Done::BackedUp(_));
    assert!(!again.iter().any(is_new), "{again:?}");

    hosts::cleanup(certs_d, &config.release).expect("cleaned up");

    let now = fs::read(file).ok();
    assert_eq!(now.as_deref(), Some(before), "byte for byte");
    let left: Vec<_> = fs::read_dir(certs_d).expect("it is there").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
