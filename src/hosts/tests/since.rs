//! What is changed after the installation, by whomever, is his.

use super::*;

fn edited(root: &Path, directory: &str) -> Done {
    Done::Edited(root.join(directory).join("hosts.toml"))
}

#[test]
fn what_was_there_before_us_comes_back_byte_for_byte() {
    let (root, before) = administrators();
    let at = root.path();

    install(at, &["*", "https://docker.io", "https://ghcr.io"], 1);

    for directory in ["_default", "docker.io", "ghcr.io"] {
        assert!(is_ours(at, directory, 1), "{directory}");
        let meta = fs::metadata(at.join(directory).join("hosts.toml")).expect("stat");
        assert_eq!(meta.mode() & 0o777, 0o644);
    }
    assert!(!at.join("quay.io").exists());
    assert!(backup(at) == before);

    restore(at);

    assert!(tree(at) == before);
    assert_eq!(restore(at), []);
    assert!(tree(at) == before);
}

#[test]
fn the_second_run_changes_nothing() {
    let (root, _) = administrators();
    install(root.path(), &["*", "https://docker.io"], 1);
    let after = tree(root.path());

    let done = install(root.path(), &["*", "https://docker.io"], 1);

    assert!(tree(root.path()) == after);
    assert!(
        done.iter().all(|done| matches!(done, Done::Unchanged(_))),
        "{done:?}"
    );
}

#[test]
fn a_registry_that_is_no_longer_mirrored_loses_our_file_only() {
    let (root, before) = administrators();
    let at = root.path();
    install(at, &["https://a.example", "https://b.example"], 1);
    write(at, "b.example/ca.crt", "certificate");

    install(at, &["*"], 2);

    assert!(!at.join("a.example").exists());
    assert_eq!(read(at, "b.example/hosts.toml"), None);
    assert!(read(at, "b.example/ca.crt").is_some());

    restore(at);

    let mut after = tree(at);
    after.retain(|path, _| !path.starts_with("b.example"));
    assert!(after == before);
}

#[test]
fn what_an_administrator_adds_later_survives_every_start_and_the_cleanup() {
    let (root, _) = administrators();
    let at = root.path();
    let registries = ["*", "https://docker.io"];
    install(at, &registries, 1);
    write(at, "later.example/hosts.toml", "later");
    write(at, "docker.io/ca.crt", "later");

    let done = install(at, &registries, 2);

    assert!(done.contains(&Done::LeftAlone(at.join("later.example"))));
    assert!(is_ours(at, "docker.io", 2));
    for _ in 0..2 {
        assert_eq!(
            read(at, "later.example/hosts.toml").as_deref(),
            Some("later")
        );
        assert_eq!(read(at, "docker.io/ca.crt").as_deref(), Some("later"));
        restore(at);
    }
    assert_eq!(read(at, "docker.io/hosts.toml").as_deref(), Some(FOREIGN));
}

#[test]
fn what_an_administrator_edits_later_stays_in_its_place_and_the_original_beside_it() {
    let (root, _) = administrators();
    let at = root.path();
    let registries = ["*", "https://docker.io", "https://ghcr.io"];
    install(at, &registries, 1);
    // In ours, in place of ours, and what looks like Spegel's.
    let text = read(at, "docker.io/hosts.toml").unwrap() + "[host.\"https://mine\"]\n";
    write(at, "docker.io/hosts.toml", &text);
    write(at, "_default/hosts.toml", "later");
    write(at, "ghcr.io/hosts.toml", SPEGELS);

    for port in [1, 2] {
        let done = install(at, &registries, port);
        for directory in ["_default", "docker.io", "ghcr.io"] {
            assert!(done.contains(&edited(at, directory)), "{done:?}");
        }
        assert_eq!(read(at, "docker.io/hosts.toml"), Some(text.clone()));
    }
    let done = restore(at);

    for directory in ["_default", "docker.io", "ghcr.io"] {
        assert!(done.contains(&edited(at, directory)), "{done:?}");
    }
    let read = |file: &str| read(at, file);
    assert_eq!(read("docker.io/hosts.toml"), Some(text));
    assert_eq!(
        read("docker.io/hosts.toml.found-1").as_deref(),
        Some(FOREIGN)
    );
    assert_eq!(
        read("docker.io/certs/ca.crt").as_deref(),
        Some("certificate")
    );
    assert_eq!(read("_default/hosts.toml").as_deref(), Some("later"));
    assert_eq!(
        read("_default/hosts.toml.found-1").as_deref(),
        Some(FOREIGN)
    );
    assert_eq!(read("ghcr.io/hosts.toml").as_deref(), Some(SPEGELS));
    assert!(!at.join("_backup").exists());
}

#[test]
fn a_file_that_is_removed_with_its_directory_is_written_again_and_an_edited_one_is_given_up_so() {
    let (root, before) = administrators();
    let at = root.path();
    install(at, &["https://docker.io", "https://ghcr.io"], 1);
    fs::remove_dir_all(at.join("docker.io")).expect("remove");
    // Whoever takes the file alone wants the registry as it is without it.
    fs::remove_file(at.join("ghcr.io/hosts.toml")).expect("remove");

    let done = install(at, &["https://docker.io", "https://ghcr.io"], 1);

    assert!(is_ours(at, "docker.io", 1));
    assert!(done.contains(&edited(at, "ghcr.io")), "{done:?}");
    fs::remove_dir(at.join("ghcr.io")).expect("remove");
    install(at, &["https://docker.io", "https://ghcr.io"], 1);
    assert!(is_ours(at, "ghcr.io", 1));
    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn a_registry_that_is_mirrored_from_now_on_is_so_whatever_somebody_added_there() {
    let (root, before) = administrators();
    let at = root.path();
    install(at, &["*"], 1);
    write(at, "quay.io/hosts.toml", "younger");

    install(at, &["*", "https://quay.io"], 1);

    assert!(is_ours(at, "quay.io", 1));
    restore(at);
    assert_eq!(read(at, "quay.io/hosts.toml").as_deref(), Some("younger"));
    assert_eq!(
        read(at, "quay.io.found-1/hosts.toml").as_deref(),
        Some(SPEGELS)
    );
    let mut after = tree(at);
    let mut before = before;
    for tree in [&mut after, &mut before] {
        tree.retain(|path, _| !path.to_string_lossy().starts_with("quay.io"));
    }
    assert!(after == before);
}

#[test]
fn a_directory_that_was_not_there_is_made_and_is_left_empty() {
    let root = folder();
    let certs_d = root.path().join("containerd/certs.d");

    install(&certs_d, &["*"], 1);
    assert!(is_ours(&certs_d, "_default", 1));

    restore(&certs_d);
    assert!(tree(&certs_d).is_empty());
    assert_eq!(restore(&root.path().join("absent")), []);
}

#[test]
fn two_processes_do_not_change_the_same_directory() {
    let root = folder();
    let _other = disk::lock(root.path()).expect("lock");

    let configured = configure(&config(root.path(), &["*"], 1));
    assert!(matches!(configured, Err(Error::Busy(_))));
    let cleaned_up = cleanup(root.path(), &release("peili"));
    assert!(matches!(cleaned_up, Err(Error::Busy(_))));
}
