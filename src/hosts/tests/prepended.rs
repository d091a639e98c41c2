//! What was there before us stays, behind ours: registries, certificates, modes, links.

use super::*;

fn hosts_of(root: &Path, directory: &str) -> Vec<String> {
    let text = read(root, &format!("{directory}/hosts.toml")).unwrap_or_default();
    toml::urls(&text).unwrap_or_default()
}

fn configured(config: &Config) -> Vec<Done> {
    configure(config).unwrap_or_else(|e| panic!("{e}"))
}

/// Registries with mirrors and certificates of an administrator's.
fn with_mirrors() -> (tempfile::TempDir, Tree) {
    let (root, _) = administrators();
    let at = root.path();
    let theirs = |name: &str| {
        format!("# {name}\nca = \"ca.crt\"\n\n# The proxy.\n[host.\"https://proxy.{name}\"]\n")
    };
    for name in ["docker.io", "ghcr.io"] {
        write(at, &format!("{name}/hosts.toml"), &theirs(name));
        write(at, &format!("{name}/ca.crt"), name);
    }
    write(at, "registry.example_5000_/hosts.toml", &theirs("registry"));
    write(at, "certificates.example/ca.crt", "certificate");
    write(at, "certificates.example/client.cert", "certificate");
    write(at, "certificates.example/client.key", "key");
    mode(&at.join("certificates.example/client.key"), 0o600);
    let before = tree(at);
    (root, before)
}

const OURS: &str = "http://127.0.0.1:1";

#[test]
fn every_registrys_own_mirrors_and_certificates_go_on_to_count_behind_ours() {
    let (root, before) = with_mirrors();
    let at = root.path();

    configured(&prepending(at, &["*"], 1));

    let proxy = |name: &str| vec![OURS.to_string(), format!("https://proxy.{name}")];
    assert_eq!(hosts_of(at, "docker.io"), proxy("docker.io"));
    assert_eq!(hosts_of(at, "ghcr.io"), proxy("ghcr.io"));
    assert_eq!(hosts_of(at, "registry.example_5000_"), proxy("registry"));
    // Through the link, as before.
    assert_eq!(hosts_of(at, "alias.example"), proxy("docker.io"));
    for directory in [
        "_default",
        "quay.io",
        "empty.example",
        "certificates.example",
    ] {
        assert!(is_ours(at, directory, 1), "{directory}");
    }
    assert_eq!(
        parsed(&read(at, "ghcr.io/hosts.toml").unwrap())["ca"],
        "ca.crt".into()
    );
    let default = parsed(&read(at, "_default/hosts.toml").unwrap());
    assert_eq!(default["server"].as_str(), Some("https://mine"));
    // containerd looks for certificates only where there is no hosts.toml.
    let certificates = parsed(&read(at, "certificates.example/hosts.toml").unwrap());
    assert_eq!(
        certificates["ca"].to_string(),
        "[\"ca.crt\"]",
        "{certificates}"
    );
    assert_eq!(
        certificates["client"].to_string(),
        "[[\"client.cert\", \"client.key\"]]"
    );
    // Every other file is where it was, the very same.
    let after = tree(at);
    for (path, file) in &before {
        if !path.ends_with("hosts.toml") && path.is_dir() {
            assert_eq!(after.get(path), Some(file), "{}", path.display());
        }
    }
    let modes = ["docker.io", "docker.io/client.key", "docker.io/hosts.toml"];
    let modes = modes.map(|path| fs::metadata(at.join(path)).unwrap().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o400, 0o600]);

    let done = configured(&prepending(at, &["*"], 1));
    assert!(tree(at) == after, "the second run changes nothing");
    assert!(
        done.iter()
            .all(|d| matches!(d, Done::Unchanged(_) | Done::LeftAlone(_))),
        "{done:?}"
    );

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn with_a_list_only_its_registries_are_touched() {
    let (root, before) = with_mirrors();
    let at = root.path();
    let listed = ["https://docker.io", "http://registry.example:5000"];

    let done = configured(&prepending(at, &listed, 1));

    let after = tree(at);
    for (path, file) in &before {
        let first = path.iter().next().unwrap();
        if first != "docker.io" && first != "registry.example_5000_" {
            assert_eq!(after.get(path), Some(file), "{}", path.display());
        }
    }
    assert!(done.contains(&Done::Kept(at.join("ghcr.io"))), "{done:?}");
    assert!(is_ours(at, "docker.io", 1));
    // containerd looks at this name first, so ours must not stand under the other.
    assert!(is_ours(at, "registry.example_5000_", 1));
    assert!(!at.join("registry.example:5000").exists());
    let text = read(at, "registry.example_5000_/hosts.toml").unwrap();
    assert_eq!(
        parsed(&text)["server"].as_str(),
        Some("http://registry.example:5000")
    );

    let again = configured(&prepending(at, &listed, 1));
    assert!(tree(at) == after);
    assert!(
        !again.iter().any(|d| matches!(d, Done::LeftAlone(_))),
        "{again:?}"
    );

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn the_choice_can_be_changed_both_ways() {
    let (root, before) = with_mirrors();
    let at = root.path();
    let every = ["*"];
    let plain = |port| configured(&config(at, &every, port));
    let prepended = |port| configured(&prepending(at, &every, port));

    plain(1);
    assert_eq!(hosts_of(at, "docker.io"), [""; 0]);

    prepended(2);
    assert_eq!(
        hosts_of(at, "docker.io"),
        ["http://127.0.0.1:2", "https://proxy.docker.io"]
    );
    assert_eq!(
        read(at, "docker.io/certs/ca.crt").as_deref(),
        Some("certificate")
    );
    let link = fs::read_link(at.join("alias.example")).expect("a link");
    assert_eq!(link, Path::new("docker.io"));

    // What is listed alone: the others have theirs back.
    configured(&prepending(at, &["https://ghcr.io"], 3));
    assert_eq!(hosts_of(at, "docker.io"), ["https://proxy.docker.io"]);
    assert_eq!(
        hosts_of(at, "ghcr.io"),
        ["http://127.0.0.1:3", "https://proxy.ghcr.io"]
    );

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn where_a_file_can_have_one_name_alone_certificates_are_copied() {
    disk::tests::CAN_LINK.set(false);
    let (root, before) = with_mirrors();
    let at = root.path();

    configured(&prepending(at, &["*"], 1));

    let key = fs::metadata(at.join("certificates.example/client.key")).unwrap();
    assert_eq!(key.mode() & 0o777, 0o600);
    assert_eq!(
        read(at, "certificates.example/client.key").as_deref(),
        Some("key")
    );
    let after = tree(at);
    configured(&prepending(at, &["*"], 1));
    assert!(tree(at) == after);

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn a_certificate_that_is_renewed_later_is_the_one_that_stays() {
    for can_link in [true, false] {
        disk::tests::CAN_LINK.set(can_link);
        let (root, before) = with_mirrors();
        let at = root.path();
        configured(&prepending(at, &["*"], 1));
        // Renewed as tools do it, by another file of that name; and one more in a folder.
        write(at, "renewed", "renewed");
        fs::rename(at.join("renewed"), at.join("ghcr.io/ca.crt")).expect("rename");
        write(at, "docker.io/certs/more.crt", "more");

        configured(&prepending(at, &["*"], 2));
        assert!(is_ours(at, "ghcr.io", 2));
        assert_eq!(read(at, "ghcr.io/ca.crt").as_deref(), Some("renewed"));

        restore(at);
        assert_eq!(read(at, "ghcr.io/ca.crt").as_deref(), Some("renewed"));
        assert_eq!(
            read(at, "ghcr.io/ca.crt.found-1").as_deref(),
            Some("ghcr.io")
        );
        assert_eq!(
            read(at, "docker.io/certs/more.crt").as_deref(),
            Some("more")
        );
        let mut after = tree(at);
        let mut before = before;
        for tree in [&mut after, &mut before] {
            tree.retain(|path, _| !path.starts_with("ghcr.io"));
            tree.remove(Path::new("docker.io/certs/more.crt"));
        }
        assert!(after == before);
    }
}

#[test]
fn an_original_that_is_corrected_in_the_backup_counts_at_the_next_run() {
    let (root, _) = with_mirrors();
    let at = root.path();
    configured(&prepending(at, &["*"], 1));
    let corrected = "[host.\"https://other\"]\n";
    write(at, "_backup/ghcr.io/hosts.toml", corrected);

    configured(&prepending(at, &["*"], 1));

    assert_eq!(hosts_of(at, "ghcr.io"), [OURS, "https://other"]);
    restore(at);
    assert_eq!(read(at, "ghcr.io/hosts.toml").as_deref(), Some(corrected));
}

#[test]
fn what_cannot_be_read_is_left_as_it_is_and_the_others_are_not() {
    let (root, _) = with_mirrors();
    let at = root.path();
    write(at, "ghcr.io/hosts.toml", "[host.");
    fs::write(at.join("quay.io/hosts.toml"), b"\xff").expect("write");
    let before = tree(at);

    let done = configured(&prepending(at, &["*"], 1));

    let unreadable: Vec<_> = done
        .iter()
        .filter_map(|done| match done {
            Done::Unmergeable(file, _) => Some(file.strip_prefix(at).unwrap().to_owned()),
            _ => None,
        })
        .collect();
    let expected = ["ghcr.io/hosts.toml", "quay.io/hosts.toml"].map(PathBuf::from);
    assert_eq!(unreadable, expected);
    assert_eq!(read(at, "ghcr.io/hosts.toml").as_deref(), Some("[host."));
    assert!(is_ours(at, "docker.io", 1));

    // It is corrected and counts.
    write(at, "ghcr.io/hosts.toml", "[host.\"https://other\"]\n");
    configured(&prepending(at, &["*"], 1));
    write(at, "ghcr.io/hosts.toml", "[host.");

    restore(at);
    let mut after = tree(at);
    let mut before = before;
    for tree in [&mut after, &mut before] {
        tree.retain(|path, _| !path.starts_with("ghcr.io"));
    }
    assert!(after == before);
}

/// Found by fuzzing: the second run took it for one that came after the first, and wrote beside it what nobody reads.
#[test]
fn what_cannot_be_read_under_containerds_other_name_is_left_each_time() {
    let (root, _) = with_mirrors();
    let at = root.path();
    write(at, "registry.example_5000_/hosts.toml", "[host.");
    let config = prepending(at, &["http://registry.example:5000"], 1);

    let first = configured(&config);
    let second = configured(&config);

    let is_left = |done: &Done| matches!(done, Done::Unmergeable(file, _) if file.ends_with("registry.example_5000_/hosts.toml"));
    assert!(first.iter().any(is_left), "{first:?}");
    assert!(second.iter().any(is_left), "{second:?}");
    assert!(!at.join("registry.example:5000").exists());

    // It is corrected and counts.
    write(
        at,
        "registry.example_5000_/hosts.toml",
        "[host.\"https://other\"]\n",
    );
    configured(&config);
    let hosts = [OURS, "https://other"].map(str::to_string);
    assert_eq!(hosts_of(at, "registry.example_5000_"), hosts);
}
