//! The bill of materials: every package that is compiled into the program, as CycloneDX 1.5 has it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// What `cargo tree` says of the packages that this one needs to run on `triple`, its tests' and its build's left out.
/// (`cargo metadata` names optional ones, too, that no feature asks for.)
pub fn of_materials(triple: &str) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = [
        "tree", "--locked", "--edges", "normal", "--prefix", "depth", "--format", "|{p}|{l}",
    ];
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--target", triple])
        .output()?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    bill(&String::from_utf8(output.stdout)?)
}

/// One line for each package below another: `2|bytes v1.12.1|MIT`, or `2|bytes v1.12.1|MIT (*)` when it was there before.
fn bill(tree: &str) -> Result<Value> {
    let mut components: BTreeMap<String, Value> = BTreeMap::new();
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut above: Vec<String> = Vec::new();
    for line in tree.lines() {
        let mut parts = line.splitn(3, '|');
        let (Some(depth), Some(package), Some(licence)) =
            (parts.next(), parts.next(), parts.next())
        else {
            bail!("cargo tree: {line:?}");
        };
        let mut words = package.split(' ');
        let (name, version) = (words.next(), words.next());
        let (name, version) = name.zip(version).with_context(|| package.to_owned())?;
        let version = version.trim_start_matches('v');
        let url = format!("pkg:cargo/{name}@{version}");
        above.truncate(depth.parse().with_context(|| line.to_owned())?);
        if let Some(parent) = above.last() {
            needs.entry(parent.clone()).or_default().insert(url.clone());
        }
        above.push(url.clone());
        needs.entry(url.clone()).or_default();
        let licence = licence.trim_end_matches("(*)").trim();
        components.entry(url.clone()).or_insert_with(|| {
            json!({
                "type": if above.len() == 1 { "application" } else { "library" },
                "bom-ref": url,
                "name": name,
                "version": version,
                "purl": url,
                "licenses": [{"expression": licence}],
            })
        });
    }
    let root = above.first().context("cargo tree says nothing")?;
    let own = components.remove(root);
    let needs = needs
        .iter()
        .map(|(url, below)| json!({"ref": url, "dependsOn": below}));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": own},
        "components": components.values().collect::<Vec<_>>(),
        "dependencies": needs.collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_is_named_and_what_tests_need_is_not() {
        let bill = of_materials("x86_64-unknown-linux-gnu").unwrap();

        let names: BTreeSet<&str> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|component| component["name"].as_str().unwrap())
            .collect();
        for needed in ["libp2p", "tokio", "axum", "ring"] {
            assert!(names.contains(needed), "{needed}");
        }
        for other in ["tar", "flate2", "rcgen", "windows-sys"] {
            assert!(!names.contains(other), "{other}");
        }
        assert_eq!(
            bill["metadata"]["component"]["version"],
            env!("CARGO_PKG_VERSION")
        );
        let purl = bill["metadata"]["component"]["purl"].as_str().unwrap();
        assert!(purl.starts_with("pkg:cargo/peili@"), "{purl}");
    }
}
