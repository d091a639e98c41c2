//! Nodes that Spegel has configured, before us or in between.

use super::*;

/// A directory as Spegel leaves it: the former content moved as it was, and files without a mark.
pub fn spegels() -> (tempfile::TempDir, Tree) {
    let (root, before) = administrators();
    let entries = disk::entries(root.path()).expect("list");
    fs::create_dir(root.path().join("_backup")).expect("mkdir");
    for entry in entries {
        let name = entry.file_name().expect("a name");
        fs::rename(&entry, root.path().join("_backup").join(name)).expect("rename");
    }
    mirrored(root.path());
    (root, before)
}

fn mirrored(root: &Path) {
    for registry in ["_default", "docker.io", "gcr.io"] {
        write(root, &format!("{registry}/hosts.toml"), SPEGELS);
    }
}

#[test]
fn what_spegel_moved_away_is_what_comes_back() {
    let (root, before) = spegels();
    let at = root.path();

    install(at, &["*"], 1);

    assert!(is_ours(at, "_default", 1));
    assert!(backup(at) == before);
    assert!(!at.join("gcr.io").exists() && !at.join("docker.io").exists());
    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn what_spegel_moved_away_counts_behind_ours_where_it_is_to() {
    let (root, before) = spegels();
    let at = root.path();

    configure(&prepending(at, &["*"], 1)).expect("configure");

    let text = read(at, "docker.io/hosts.toml").expect("ours");
    assert_eq!(ports(&text), Some(vec![1]));
    assert_eq!(parsed(&text)["server"].as_str(), Some("https://mine"));
    assert_eq!(
        read(at, "docker.io/certs/ca.crt").as_deref(),
        Some("certificate")
    );
    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn our_cleanup_leaves_a_node_alone_that_is_spegels() {
    let (root, _) = spegels();
    let installed = tree(root.path());

    let done = restore(root.path());

    assert_eq!(done, [Done::NotOurs(root.path().join("_backup"))]);
    assert!(tree(root.path()) == installed);
}

#[test]
fn a_node_goes_to_spegel_and_back_without_a_cleanup() {
    let (root, before) = administrators();
    let at = root.path();
    install(at, &["*", "https://docker.io"], 1);
    // Spegel keeps the backup and removes everything else.
    for entry in disk::entries(at).expect("list") {
        if !entry.ends_with("_backup") {
            fs::remove_dir_all(entry).expect("remove");
        }
    }
    mirrored(at);
    let spegels = tree(at);

    assert_eq!(restore(at), [Done::NotOurs(at.join("_backup"))]);
    assert!(tree(at) == spegels);

    install(at, &["*", "https://docker.io"], 2);
    assert!(is_ours(at, "docker.io", 2) && is_ours(at, "_default", 2));
    assert!(!at.join("gcr.io").exists());
    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn without_a_backup_the_cleanup_takes_only_what_is_ours() {
    let root = folder();
    let at = root.path();
    install(at, &["*"], 1);
    fs::remove_dir_all(at.join("_backup")).expect("remove");
    write(at, "docker.io/hosts.toml", SPEGELS);

    restore(at);

    assert_eq!(read(at, "docker.io/hosts.toml").as_deref(), Some(SPEGELS));
    assert!(!at.join("_default").exists());
}
