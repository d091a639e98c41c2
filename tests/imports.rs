//! Who may know whom: the layers of docs/architecture.md, read from the sources.
//!
//! A module that grows an import which its row does not list fails here with file and line. Whoever finds the row wrong
//! changes the row, in a commit that says why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Exported macros stand at the crate's root, wherever they are written.
const MACROS: &[&str] = &["routing_conformance"];
const WORDS: &[&str] = &["oci"];
/// Beside the stack: these import nothing of ours, so everybody may import them.
const BESIDE: &[&str] = &[
    "basic_auth",
    "finding",
    "http_get",
    "membership",
    "metrics",
    "node_token",
    "private_file",
    "readiness",
    "recent",
    "regular_file",
    "server",
    "shutdown",
    "telemetry",
    "tls",
];
const SEAMS: &[&str] = &["content", "routing"];
/// What implements the seams. Only the process names them.
const SEAM_ADAPTERS: &[&str] = &[
    "content::containerd",
    "content::layout",
    "routing::kad",
    "routing::bootstrap",
    "routing::flight",
];
const ADAPTERS: &[&str] = &["hosts", "inflight", "try_pull"];
const FLOWS: &[&str] = &["mirror", "advertise"];
const EDGES: &[&str] = &["registry", "admin"];

/// Each module and what it may import. A path belongs to the longest module that it begins with, so `content` is the
/// seam alone, without its adapters. What has no row may not exist.
const RULES: &[(&str, &[&[&str]])] = &[
    ("oci", &[]),
    //
    ("basic_auth", &[]),
    ("finding", &[]),
    ("membership", &[]),
    ("node_token", &[&["private_file"]]),
    ("private_file", &[]),
    ("readiness", &[]),
    ("recent", &[]),
    ("regular_file", &[]),
    ("shutdown", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("http_get", &[]),
    ("tls", &[]),
    ("server", &[&["shutdown", "metrics", "regular_file", "tls"]]),
    //
    ("content", &[WORDS, BESIDE]),
    ("routing", &[WORDS, BESIDE]),
    (
        "content::containerd",
        &[&["content", "inflight"], WORDS, BESIDE],
    ),
    (
        "content::layout",
        &[&["content", "inflight"], WORDS, BESIDE],
    ),
    // The first peers are where its swarm begins.
    (
        "routing::kad",
        &[
            &["routing", "routing::bootstrap", "inflight"],
            WORDS,
            BESIDE,
        ],
    ),
    (
        "routing::bootstrap",
        &[&["routing", "inflight"], WORDS, BESIDE],
    ),
    (
        "routing::flight",
        &[&["routing", "inflight"], WORDS, BESIDE],
    ),
    //
    ("hosts", &[WORDS, BESIDE]),
    ("inflight", &[WORDS, BESIDE]),
    ("try_pull", &[WORDS, BESIDE]),
    //
    ("mirror", &[SEAMS, &["inflight"], WORDS, BESIDE]),
    ("advertise", &[SEAMS, &["inflight"], WORDS, BESIDE]),
    //
    // It serves peers what containerd is still writing.
    (
        "registry",
        &[FLOWS, SEAMS, &["hosts", "inflight"], WORDS, BESIDE],
    ),
    (
        "admin",
        &[FLOWS, SEAMS, &["hosts", "try_pull"], WORDS, BESIDE],
    ),
    //
    // It looks at everything, and nobody below looks at it.
    (
        "doctor",
        &[EDGES, FLOWS, ADAPTERS, SEAMS, SEAM_ADAPTERS, WORDS, BESIDE],
    ),
    (
        "config",
        &[EDGES, FLOWS, ADAPTERS, SEAMS, SEAM_ADAPTERS, WORDS, BESIDE],
    ),
    (
        "commands",
        &[
            &["config", "doctor"],
            EDGES,
            FLOWS,
            ADAPTERS,
            SEAMS,
            SEAM_ADAPTERS,
            WORDS,
            BESIDE,
        ],
    ),
    (
        "app",
        &[
            &["config", "doctor"],
            EDGES,
            FLOWS,
            ADAPTERS,
            SEAMS,
            SEAM_ADAPTERS,
            WORDS,
            BESIDE,
        ],
    ),
    (
        "main",
        &[
            &["app", "commands", "config", "doctor"],
            EDGES,
            FLOWS,
            ADAPTERS,
            SEAMS,
            SEAM_ADAPTERS,
            WORDS,
            BESIDE,
        ],
    ),
    // Only with the feature of that name.
    (
        "testing",
        &[
            &["commands"],
            EDGES,
            FLOWS,
            ADAPTERS,
            SEAMS,
            SEAM_ADAPTERS,
            WORDS,
            BESIDE,
        ],
    ),
];

#[test]
fn no_module_imports_what_it_may_not_know() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &src, &mut files);
    assert!(files.len() > 10, "no sources in {}", src.display());

    let broken = check(&files);

    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// A file's path below `src` and its text.
type Source = (PathBuf, String);

fn collect(root: &Path, directory: &Path, files: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let name = path.strip_prefix(root).expect("below the root");
            files.push((name.to_path_buf(), text));
        }
    }
    files.sort();
}

/// One sentence for each import that breaks a rule, and one for each cycle.
fn check(files: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut edges = BTreeMap::<String, BTreeSet<String>>::new();
    let mut places = BTreeMap::new();
    for (file, text) in files {
        let module = module_of(file);
        // lib.rs is the map: it names everything and uses nothing.
        let Some(top) = module.first() else {
            continue;
        };
        let Some((from, may)) = rule(&module) else {
            broken.push(format!(
                "src/{}:1: `{top}` has no row in RULES",
                file.display()
            ));
            continue;
        };
        for (line, path) in imports(&module, text) {
            let at = format!("src/{}:{line}", file.display());
            let (Some(other), written) = (path.first(), path.join("::")) else {
                continue;
            };
            if MACROS.contains(&other.as_str()) {
                continue;
            }
            if other != top {
                edges.entry(top.clone()).or_default().insert(other.clone());
                let place = (top.clone(), other.clone());
                places.entry(place).or_insert_with(|| at.clone());
            }
            match rule(&path) {
                None if other == top => {}
                None => broken.push(format!("{at}: `{written}`: `{other}` has no row in RULES")),
                Some((to, _)) => {
                    if to != from && !may.iter().any(|group| group.contains(&to)) {
                        broken.push(format!(
                            "{at}: `{from}` may not import `{to}` (`{written}`)"
                        ));
                    }
                }
            }
        }
    }
    if let Some(cycle) = cycle(&edges) {
        let steps = cycle.windows(2).map(|pair| {
            let place = &places[&(pair[0].clone(), pair[1].clone())];
            format!("{place}: `{}` imports `{}`", pair[0], pair[1])
        });
        broken.push(format!(
            "a cycle:\n  {}",
            steps.collect::<Vec<_>>().join("\n  ")
        ));
    }
    broken
}

/// The row of the longest module that `path` begins with.
fn rule(path: &[String]) -> Option<(&'static str, &'static [&'static [&'static str]])> {
    let begins = |name: &str| {
        let mut segments = path.iter();
        name.split("::")
            .all(|s| segments.next().is_some_and(|p| p == s))
    };
    let rows = RULES.iter().filter(|(name, _)| begins(name));
    rows.max_by_key(|(name, _)| name.len()).copied()
}

/// `content/containerd/events.rs` is `content::containerd::events`; `lib.rs` is the root.
fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let segments = path.iter().map(|s| s.to_string_lossy().into_owned());
    segments.filter(|s| s != "lib" && s != "mod").collect()
}

/// Some modules that import each other in a ring, the first one repeated at the end.
fn cycle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        module: &String,
        edges: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|m| m == module) {
            let mut ring = path[start..].to_vec();
            ring.push(module.clone());
            return Some(ring);
        }
        if !done.insert(module.clone()) {
            return None;
        }
        path.push(module.clone());
        let others = edges.get(module).into_iter().flatten();
        let ring = others
            .into_iter()
            .find_map(|other| visit(other, edges, path, done));
        path.pop();
        ring
    }
    let mut done = BTreeSet::new();
    edges
        .keys()
        .find_map(|module| visit(module, edges, &mut Vec::new(), &mut done))
}

/// Every path that leads to another module of ours, from the root, with its line.
fn imports(module: &[String], text: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = without_tests(&tokens(text));
    let mut found = Vec::new();
    // The modules written out in braces that are open here, and how deep in braces each began.
    let (mut inner, mut depth) = (Vec::<(String, usize)>::new(), 0);
    let declared = tokens.windows(2).filter(|pair| pair[0].text == "mod");
    let children: BTreeSet<&str> = declared.map(|pair| pair[1].text.as_str()).collect();
    for i in 0..tokens.len() {
        let at = |offset: usize| tokens.get(i + offset).map_or("", |t| t.text.as_str());
        let before = i.checked_sub(1).map_or("", |i| tokens[i].text.as_str());
        match at(0) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.retain(|(_, began)| *began < depth + 1);
            }
            "mod" if at(2) == "{" => inner.push((at(1).to_string(), depth + 1)),
            _ => {}
        }
        if at(1) != "::" || before == "::" {
            continue;
        }
        let here = || {
            let inner = inner.iter().map(|(name, _)| name.clone());
            module.iter().cloned().chain(inner).collect::<Vec<_>>()
        };
        let (base, start) = match at(0) {
            "crate" => (Vec::new(), i + 2),
            // The binary sees the library as everybody else does.
            "peili" => (Vec::new(), i + 2),
            "self" => (here(), i + 2),
            "super" => {
                let (mut base, mut next) = (here(), i);
                while tokens.get(next).is_some_and(|t| t.text == "super") {
                    base.pop();
                    next += 2;
                }
                (base, next)
            }
            child if inner.is_empty() && children.contains(child) => (here(), i),
            _ => continue,
        };
        let mut paths = Vec::new();
        tree(&tokens, start, base, &mut paths);
        found.extend(paths);
    }
    found
}

/// Reads the rest of a path, with what it may have in braces: `a::{b, c::d}` is two paths. Returns where it ends.
fn tree(
    tokens: &[Token],
    mut i: usize,
    mut path: Vec<String>,
    paths: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let line = tokens.get(i).map_or(0, |t| t.line);
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    loop {
        if text(i) == "{" {
            i += 1;
            while !matches!(text(i), "}" | "") {
                i = tree(tokens, i, path.clone(), paths);
                // `as name`, commas, and whatever else stands between two branches.
                while !matches!(text(i), "," | "}" | "") {
                    i += 1;
                }
                if text(i) == "," {
                    i += 1;
                }
            }
            return i + 1;
        }
        if is_word(text(i)) {
            if text(i) != "self" {
                path.push(text(i).to_string());
            }
            i += 1;
        }
        if text(i) != "::" || !(is_word(text(i + 1)) || text(i + 1) == "{") {
            paths.push((line, path));
            return i;
        }
        i += 1;
    }
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single signs; without comments, strings and characters.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut tokens, mut line, mut i) = (Vec::new(), 1, 0);
    while i < chars.len() {
        let start = i;
        if at(i) == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if let Some((quote, hashes)) = raw_string(&chars[i..]) {
            i += quote + 1;
            let closes = |i: usize| at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#');
            while i < chars.len() && !closes(i) {
                i += 1;
            }
            i += 1 + hashes;
        } else if at(i) == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            // A character; else it is a lifetime.
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            if word(at(i)) {
                while word(at(i)) {
                    i += 1;
                }
            } else if at(i) == ':' && at(i + 1) == ':' {
                i += 2;
            } else {
                i += 1;
            }
            let token: String = chars[start..i].iter().collect();
            if !token.trim().is_empty() {
                tokens.push(Token { text: token, line });
            }
        }
        let read = &chars[start..i.min(chars.len())];
        line += read.iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// Where the quote of a raw string is, and its number of hashes.
fn raw_string(chars: &[char]) -> Option<(usize, usize)> {
    let prefix = match chars {
        ['r', '"' | '#', ..] => 1,
        ['b' | 'c', 'r', '"' | '#', ..] => 2,
        _ => return None,
    };
    let hashes = chars[prefix..].iter().take_while(|c| **c == '#').count();
    (chars.get(prefix + hashes) == Some(&'"')).then_some((prefix + hashes, hashes))
}

/// Takes out every item under `#[cfg(test)]`, up to its semicolon or closing brace.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if !(text(i) == "#" && text(i + 1) == "[" && text(i + 2) == "cfg" && text(i + 4) == "test")
        {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let mut depth = 0;
        let mut attribute = true;
        while i < tokens.len() {
            match text(i) {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            let ends = depth == 0 && matches!(text(i), ";" | "}");
            // A closing bracket that another attribute or the item follows ends nothing.
            attribute = attribute && text(i) != "]";
            i += 1;
            if ends && !attribute {
                break;
            }
        }
    }
    kept
}

mod the_checker {
    use super::*;

    fn checked(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter();
        let files = files.map(|(file, text)| (PathBuf::from(file), (*text).to_string()));
        check(&files.collect::<Vec<_>>())
    }

    #[test]
    fn finds_an_upward_import_with_its_file_and_line() {
        for (text, line) in [
            ("use crate::mirror::Mirror;", 1),
            (
                "\n\nuse crate::{\n    oci::Digest,\n    mirror::Mirror as M,\n};",
                5,
            ),
            ("fn f() {\n    crate::mirror::g();\n}", 2),
            ("use super::mirror::Mirror;", 1),
            (
                "mod a {\n    mod b {\n        use super::super::super::mirror;\n    }\n}",
                3,
            ),
            (
                "#[cfg(test)]\nmod tests { fn f() { [1]; } }\nuse crate::mirror;",
                3,
            ),
            ("#[cfg(test)]\nuse crate::oci;\nuse crate::mirror;", 3),
            (
                "const A: &str = r#\"\"\"#;\nconst B: char = '\"';\nuse crate::mirror;",
                3,
            ),
            (
                "fn f<'a>(x: &'a str) {}\n/* /* */ */\npub(crate) use crate::mirror;",
                3,
            ),
        ] {
            let broken = checked(&[("content.rs", text)]);

            let begin = format!("src/content.rs:{line}: `content` may not import `mirror`");
            assert_eq!(broken.len(), 1, "{text}\n{broken:?}");
            assert!(broken[0].starts_with(&begin), "{text}\n{broken:?}");
        }
    }

    #[test]
    fn finds_a_cycle() {
        // Both ways are forbidden to one of them at least, but the ring is said, too.
        let broken = checked(&[
            ("commands.rs", "use crate::hosts;"),
            ("hosts.rs", "mod toml;"),
            ("hosts/toml.rs", "\nuse crate::commands;"),
        ]);

        assert_eq!(
            broken,
            [
                "src/hosts/toml.rs:2: `hosts` may not import `commands` (`commands`)",
                "a cycle:\n  src/commands.rs:1: `commands` imports `hosts`\n  \
                 src/hosts/toml.rs:2: `hosts` imports `commands`",
            ]
        );
    }

    #[test]
    fn keeps_adapters_from_each_other_and_flows_from_adapters() {
        for (file, text) in [
            ("mirror.rs", "use crate::content::containerd::Containerd;"),
            ("routing/kad.rs", "use super::flight;"),
            ("routing/kad/records.rs", "use super::super::flight;"),
            ("content/layout.rs", "use crate::content::containerd;"),
            ("content/containerd.rs", "use crate::routing::Key;"),
            ("routing.rs", "pub mod kad;\npub use kad::Kad;"),
            ("routing.rs", "pub mod kad;\npub use self::kad::Kad;"),
            ("advertise.rs", "use crate::mirror;"),
            ("oci/digest.rs", "use crate::shutdown;"),
            ("registry.rs", "use crate::config;"),
            ("config.rs", "use crate::app;"),
            ("hosts.rs", "use crate::inflight;"),
            ("readiness.rs", "use crate::shutdown;"),
            ("content.rs", "use crate::testing::Fake;"),
            ("surprise.rs", ""),
            ("app.rs", "use crate::surprise;"),
        ] {
            assert_eq!(checked(&[(file, text)]).len(), 1, "{file}: {text}");
        }
    }

    #[test]
    fn leaves_alone_what_is_allowed() {
        for (file, text) in [
            ("lib.rs", "pub use crate::app::App;"),
            ("main.rs", "use peili::{app, commands, config};"),
            (
                "app.rs",
                "use crate::{config, content::containerd, routing::kad};",
            ),
            ("commands.rs", "use crate::config::Format;"),
            ("server.rs", "use crate::shutdown::Shutdown;"),
            ("content.rs", "use crate::oci::{Digest, Key};"),
            (
                "content/containerd.rs",
                "use super::{Blob, StoreError};\nuse crate::inflight;",
            ),
            (
                "content/containerd/events.rs",
                "use super::images;\nuse super::super::Change;",
            ),
            (
                "mirror.rs",
                "use crate::{content::ContentStore, routing::Peer};",
            ),
            (
                "content.rs",
                "//! See [`crate::testing`].\n/// And [`crate::mirror`].\nfn f() {}",
            ),
            ("content.rs", "const A: &str = \"crate::mirror\";"),
            (
                "content.rs",
                "#[cfg(test)]\nmod tests {\n    use crate::mirror;\n}",
            ),
            (
                "content.rs",
                "#[cfg(test)]\n#[path = \"x\"]\nuse crate::mirror::{a, b};",
            ),
            (
                "content.rs",
                "use serde::mirror; struct S { config: x::config::Y }",
            ),
            ("testing.rs", "use crate::mirror;"),
        ] {
            assert_eq!(checked(&[(file, text)]), [""; 0], "{file}: {text}");
        }
    }
}
