//! README.md's table of values, made from the comments in values.yaml, and what has to agree with other files.

use std::fmt::Write as _;

use super::*;

const BEGIN: &str = "<!-- values: made from values.yaml by `make docs` -->\n";
const END: &str = "<!-- end of values -->\n";

/// A key of values.yaml as its line and the comment above it have it.
#[derive(Debug)]
struct Row {
    path: Vec<String>,
    comment: String,
}

/// Keys in their order. Lists and maps that stand on one line are values, and so is a list below a key.
fn rows(text: &str) -> Vec<Row> {
    let (mut rows, mut above, mut path) = (
        Vec::<Row>::new(),
        String::new(),
        Vec::<(usize, String)>::new(),
    );
    for line in text.lines() {
        let word = line.trim_start();
        let indent = line.len() - word.len();
        if let Some(comment) = word.strip_prefix('#') {
            above.push_str(comment);
        } else if word.is_empty() {
            above.clear();
        } else if let Some((key, _)) = word.split_once(':').filter(|_| !word.starts_with('-')) {
            path.retain(|(other, _)| *other < indent);
            path.push((indent, key.to_owned()));
            let path = path.iter().map(|(_, key)| key.clone()).collect();
            let comment = std::mem::take(&mut above).trim().to_owned();
            rows.push(Row { path, comment });
        }
    }
    rows
}

fn table() -> String {
    let text = read("values.yaml");
    let values = yaml(&text);
    let mut table = String::from("| value | default | what it is |\n|---|---|---|\n");
    let rows = rows(&text);
    for (index, row) in rows.iter().enumerate() {
        let pointer = format!("/{}", row.path.join("/"));
        let value = values.pointer(&pointer);
        // What belongs to a map with a comment of its own, as tolerations and resources are, needs none.
        let Some(value) = value else { continue };
        let next = rows.get(index + 1);
        let is_told_below = value.is_object()
            && next.is_some_and(|next| next.path.len() > row.path.len())
            && is_ours(&row.path);
        let is_foreign = row.path.len() > 1 && !is_ours(&row.path[..row.path.len() - 1]);
        if is_told_below && row.comment.is_empty() || is_foreign {
            continue;
        }
        let default = match is_told_below {
            true => String::new(),
            false => format!("`{value}`"),
        };
        writeln!(
            table,
            "| `{}` | {default} | {} |",
            row.path.join("."),
            row.comment
        )
        .expect("a String");
    }
    table
}

/// Whether the keys below are the chart's, and not Kubernetes' own.
fn is_ours(path: &[String]) -> bool {
    const FOREIGN: [&str; 8] = [
        "podSecurityContext",
        "securityContext",
        "resources",
        "nodeSelector",
        "updateStrategy",
        "tolerations",
        "affinity",
        "updatePolicy",
    ];
    !path.iter().any(|key| FOREIGN.contains(&key.as_str()))
}

#[test]
fn the_readme_has_every_value_as_its_comment_tells_it() {
    let readme = read("README.md");
    let (head, rest) = readme.split_once(BEGIN).expect("the begin of the table");
    let (_, tail) = rest.split_once(END).expect("the end of the table");

    let made = format!("{head}{BEGIN}\n{}\n{END}{tail}", table());

    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        std::fs::write(chart().join("README.md"), &made).expect("README.md can be written");
    } else {
        assert!(
            made == readme,
            "charts/peili/README.md is not what values.yaml says; run `make docs`"
        );
    }
}

#[test]
fn the_charts_versions_are_the_programs() {
    let about = yaml(&read("Chart.yaml"));
    for key in ["version", "appVersion"] {
        assert_eq!(about[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
    assert_eq!(about["kubeVersion"], format!(">={}.0-0", KUBERNETES[0]));
}

/// Words that the schema knows and values.yaml has no default for: other spellings, and what other charts' values have.
const ONLY_IN_THE_SCHEMA: [&str; 2] = ["spegel", "global"];

fn compare(schema: &Value, values: &Value, at: &str) {
    let Some(known) = schema["properties"].as_object() else {
        return;
    };
    assert_eq!(
        schema["additionalProperties"], false,
        "{at} lets mistyped keys pass"
    );
    let values = values
        .as_object()
        .unwrap_or_else(|| panic!("{at} is no map"));
    for key in values.keys() {
        assert!(
            known.contains_key(key),
            "{at}.{key} is not in values.schema.json"
        );
    }
    for (key, schema) in known {
        match values.get(key) {
            Some(value) => compare(schema, value, &format!("{at}.{key}")),
            None => assert!(
                ONLY_IN_THE_SCHEMA.contains(&key.as_str()),
                "{at}.{key} is not in values.yaml"
            ),
        }
    }
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    compare(&schema, &yaml(&read("values.yaml")), "");
}
