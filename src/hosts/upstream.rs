//! The registry's own host table: the same server, asked with the same keys, before our last tables instead of behind
//! everything.
//!
//! Keys above a file's first table are those of its `server` (containerd reads both with one function, and takes both
//! for the registry itself, to which it sends no `ns=`). So a copy of them in a table with its URL is asked as the server
//! is: with its certificates, its headers, its capabilities.

use toml_edit::{DocumentMut, Item, Table, Value};

use super::existing::Unmergeable;

/// Long enough for a registry that is up: the second and third SYN follow after 1 and 3 s (RFC 6298, section 2). One
/// whose packets are dropped would cost 30 s for each tag; containerd 1.6 and 1.7 ignore the key and pay them. The
/// file's `server` comes last with all of its time, so nothing that can be reached is lost by this.
const DIAL_TIMEOUT: &str = "5s";

const CAPABILITIES: [&str; 2] = ["pull", "resolve"];

/// Where a file's registry is, if the file says it.
pub fn server(document: &DocumentMut) -> Result<Option<&str>, Unmergeable> {
    match document.get("server") {
        None => Ok(None),
        Some(server) => match server.as_str() {
            Some("") => Ok(None),
            Some(url) => Ok(Some(url)),
            None => Err(Unmergeable::BadServer),
        },
    }
}

/// A table called `url` for the `server` of this document; None where it has one that resolves tags.
pub fn own_table(document: &DocumentMut, server: &str, url: &str) -> Option<String> {
    let overrides = |table: &dyn toml_edit::TableLike| {
        let value = table.get("override_path").and_then(Item::as_bool);
        value.unwrap_or(false)
    };
    let own = base(server, overrides(document.as_table()));
    let hosts = document.get("host").and_then(Item::as_table_like);
    let stands_there = hosts.is_some_and(|hosts| {
        hosts.iter().any(|(url, host)| {
            let host = host.as_table_like();
            host.is_some_and(|host| base(url, overrides(host)) == own && resolves(host))
        })
    });
    if stands_there {
        return None;
    }

    let mut table = Table::new();
    table.insert("capabilities", Value::from_iter(CAPABILITIES).into());
    table.insert("dial_timeout", DIAL_TIMEOUT.into());
    let mut header = None;
    for (key, item) in document.iter() {
        match item {
            _ if matches!(key, "server" | "host") => {}
            _ if key == "header" => header = item.clone().into_table().ok(),
            Item::Value(value) => {
                let mut value = value.clone();
                value.decor_mut().clear();
                table.insert(key, value.into());
            }
            // Nothing that containerd reads has this form.
            _ => {}
        }
    }
    table.set_position(Some(1));
    if let Some(mut header) = header {
        header.decor_mut().clear();
        header.set_dotted(false);
        header.set_implicit(false);
        header.set_position(Some(2));
        table.insert("header", Item::Table(header));
    }
    let mut hosts = Table::new();
    hosts.set_implicit(true);
    hosts.insert(url, Item::Table(table));
    let mut own = DocumentMut::new();
    own.insert("host", Item::Table(hosts));
    Some(format!("\n{}", own.to_string().trim_start()))
}

/// Without capabilities a host has all of them.
fn resolves(host: &dyn toml_edit::TableLike) -> bool {
    let Some(listed) = host.get("capabilities").and_then(Item::as_array) else {
        return true;
    };
    let has = |wanted: &str| listed.iter().any(|value| value.as_str() == Some(wanted));
    CAPABILITIES.iter().all(|wanted| has(wanted))
}

/// Below which URL containerd asks.
fn base(url: &str, overrides_path: bool) -> String {
    let url = url.trim_end_matches('/');
    let url = match url.starts_with("http") {
        true => url.to_string(),
        false => format!("https://{url}"),
    };
    match overrides_path || url.ends_with("/v2") {
        true => url,
        false => format!("{url}/v2"),
    }
}
