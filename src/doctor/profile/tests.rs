use serde::Deserialize;

use super::*;

/// A file of tests/distributions: what a distribution ships, with its source.
#[derive(Deserialize)]
struct Distribution {
    name: String,
    preset: String,
    paths: Vec<String>,
    #[serde(default)]
    mounts: Vec<String>,
    #[serde(default)]
    kernel: String,
    #[serde(default)]
    selinux: String,
    os_release: Option<String>,
    /// Words of the cure for layers that are discarded.
    place: String,
    restart: String,
    /// Of containerd.
    config: String,
}

fn distributions() -> Vec<Distribution> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/distributions");
    let files = std::fs::read_dir(directory).unwrap();
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("https://"), "no source in {}", path.display());
        toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let all: Vec<_> = files.map(read).collect();
    assert_eq!(all.len(), 9);
    all
}

fn told_apart(distribution: &Distribution) -> &'static Profile {
    let mounts = distribution.mounts.iter().map(|root| Mount {
        root: root.clone(),
        point: "/content".into(),
    });
    detect(&Signs {
        paths: distribution.paths.clone(),
        mounts: mounts.collect(),
        os_release: distribution.os_release.clone(),
        kernel: distribution.kernel.clone(),
        selinux: distribution.selinux.clone(),
    })
}

#[test]
fn each_distribution_is_told_by_what_a_pod_sees_there() {
    for distribution in distributions() {
        let profile = told_apart(&distribution);

        assert_eq!(profile.name, distribution.name);
        assert_eq!(profile.preset.unwrap_or_default(), distribution.preset);
        if let Some(preset) = profile.preset {
            let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/peili");
            let file = format!("{chart}/presets/{preset}.yaml");
            assert!(std::path::Path::new(&file).exists(), "{file}");
        }
    }
}

#[test]
fn its_paths_are_those_that_it_ships_and_the_charts_preset_has_the_same() {
    for distribution in distributions() {
        let profile = told_apart(&distribution);
        let config: toml::Table = toml::from_str(&distribution.config).unwrap();
        let text = |path: &[&str]| {
            let (last, tables) = path.split_last().unwrap();
            let table = tables
                .iter()
                .try_fold(&config, |table, name| table.get(*name)?.as_table());
            table.and_then(|table| table.get(*last)?.as_str().map(str::to_string))
        };

        assert_eq!(text(&["grpc", "address"]).unwrap(), profile.socket);
        let root = text(&["root"]).unwrap();
        assert_eq!(
            format!("{root}/io.containerd.content.v1.content"),
            profile.content
        );
        let reads = text(&[
            "plugins",
            "io.containerd.cri.v1.images",
            "registry",
            "config_path",
        ]);
        if let Some(reads) = &reads {
            assert!(
                reads.split(':').any(|part| part == profile.certs_d),
                "{reads}"
            );
        }
        if let Registries::Always = profile.registries {
            assert!(reads.is_some(), "{} has no config_path", profile.name);
        }

        // What the preset leaves out is the chart's default, which is the plain one's.
        let Some(preset) = profile.preset else {
            continue;
        };
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/peili");
        let preset = std::fs::read_to_string(format!("{chart}/presets/{preset}.yaml")).unwrap();
        for (value, path, default) in [
            ("containerdSock", profile.socket, PLAIN.socket),
            (
                "containerdRegistryConfigPath",
                profile.certs_d,
                PLAIN.certs_d,
            ),
            ("containerdContentPath", profile.content, PLAIN.content),
        ] {
            let line = format!("\n  {value}: {path}\n");
            let is_said = format!("{preset}\n").contains(&line);
            let is_left_out = !preset.contains(&format!("\n  {value}:"));
            assert!(is_said || (is_left_out && path == default), "{line}");
        }
    }
}

#[test]
fn a_cure_names_the_place_the_setting_and_what_makes_it_count() {
    for distribution in distributions() {
        let profile = told_apart(&distribution);
        let name = profile.name;

        let cure = profile.keep_layers(Generation::Two);
        for said in [
            distribution.place.as_str(),
            distribution.restart.as_str(),
            "[plugins.\"io.containerd.cri.v1.images\"]",
            "discard_unpacked_layers = false",
        ] {
            assert!(cure.contains(said), "{name}: {said}\n{cure}");
        }
        assert!(!cure.contains("grpc.v1.cri"), "{cure}");
        let cure = profile.keep_layers(Generation::One);
        assert!(
            cure.contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd]"),
            "{cure}"
        );

        // Elsewhere than the distribution reads: one of the two must move.
        let cure = profile.config_path("/srv/certs.d", Generation::Two);
        assert!(
            cure.contains("containerd-registry-config-path") && cure.contains(profile.certs_d),
            "{name}: {cure}"
        );
        assert!(
            !profile
                .config_path(profile.certs_d, Generation::Two)
                .is_empty()
        );
    }
}

#[test]
fn where_the_version_is_not_known_both_names_of_the_plugin_are_told() {
    let cure = PLAIN.keep_layers(Generation::Unknown);

    assert!(
        cure.contains("cri.v1.images")
            && cure
                .contains("(containerd 1.x: [plugins.\"io.containerd.grpc.v1.cri\".containerd])"),
        "{cure}"
    );
    for (version, generation) in [
        (Some("1.6.20~ds1"), Generation::One),
        (Some("v2.1.9"), Generation::Two),
        (Some("2.1.9+unknown"), Generation::Two),
        (Some("unknown"), Generation::Unknown),
        (None, Generation::Unknown),
    ] {
        assert_eq!(Generation::of(version), generation, "{version:?}");
    }
}
