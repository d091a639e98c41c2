//! A process that is killed before any of its steps: the old configuration stands or the new one, and both functions go
//! on from there.

use super::disk::tests::{CAN_EXCHANGE, CAN_LINK, dying_before};
use super::spegel::spegels;
use super::*;

type Fresh = fn() -> (tempfile::TempDir, Tree);
type Work = fn(&Path) -> Result<Vec<Done>, Error>;

const REGISTRIES: [&str; 3] = ["*", "https://docker.io", "https://ghcr.io"];
const DIRECTORIES: [&str; 3] = ["_default", "docker.io", "ghcr.io"];

/// Kills `work` before each of its steps in turn, until it lives to its end; each time on a fresh directory.
fn killed_at_each_step(
    fresh: impl Fn() -> (tempfile::TempDir, Tree),
    work: impl Fn(&Path) -> Result<Vec<Done>, Error>,
    check: impl Fn(&Path, Tree),
) {
    for steps in 0.. {
        let (root, before) = fresh();
        let finished = dying_before(steps, || work(root.path())).is_ok();
        check(root.path(), before);
        if finished {
            assert!(steps > 10, "the work was no work: {steps} steps");
            return;
        }
    }
}

fn new(root: &Path) -> Result<Vec<Done>, Error> {
    configure(&config(root, &REGISTRIES, 2))
}

fn new_before_theirs(root: &Path) -> Result<Vec<Done>, Error> {
    configure(&prepending(root, &REGISTRIES, 2))
}

fn cleaned_up(root: &Path) -> Result<Vec<Done>, Error> {
    cleanup(root, &release("peili"))
}

/// Whatever containerd may meet while we work is whole: what was there, or one of ours with all that it names.
fn assert_whole(root: &Path, before: &Tree, ports: &[u16]) {
    for directory in DIRECTORIES {
        let file = Path::new(directory).join("hosts.toml");
        let found = fs::read(root.join(&file)).ok();
        let is_old = found.as_ref() == before.get(&file).map(|(_, _, bytes)| bytes);
        let is_spegels = found.as_deref() == Some(SPEGELS.as_bytes());
        let is_new = ports.iter().any(|port| is_ours(root, directory, *port));
        assert!(is_old || is_spegels || is_new, "{directory}: {found:?}");
        let text = found.map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
        // His, or his behind ours.
        let is_theirs = text.is_some_and(|text| text.contains("https://mine"));
        if is_theirs && directory == "docker.io" {
            let certificate = read(root, "docker.io/certs/ca.crt");
            assert_eq!(certificate.as_deref(), Some("certificate"));
            let key = fs::metadata(root.join("docker.io/client.key")).expect("the key");
            assert_eq!(key.mode() & 0o777, 0o400);
        }
    }
}

fn comes_back(root: &Path, before: &Tree) {
    // Where it was killed before it did anything, a node is still Spegel's.
    if cleaned_up(root).expect("cleanup") == [Done::NotOurs(root.join("_backup"))] {
        new(root).expect("configure");
        cleaned_up(root).expect("cleanup");
    }
    assert!(tree(root) == *before);
}

#[test]
fn an_install_killed_at_any_step_has_the_old_or_the_new_file_and_can_be_cleaned_up() {
    for fresh in [administrators as Fresh, spegels] {
        for work in [new as Work, new_before_theirs] {
            killed_at_each_step(fresh, work, |root, before| {
                assert_whole(root, &before, &[2]);

                comes_back(root, &before);
            });
        }
    }
}

#[test]
fn an_install_killed_at_any_step_is_finished_by_the_next() {
    for fresh in [administrators as Fresh, spegels] {
        for work in [new as Work, new_before_theirs] {
            killed_at_each_step(fresh, work, |root, before| {
                work(root).expect("configure again");

                for directory in DIRECTORIES {
                    assert!(is_ours(root, directory, 2), "{directory}");
                }
                let finished = tree(root);
                work(root).expect("and again");
                assert!(tree(root) == finished);
                comes_back(root, &before);
            });
        }
    }
}

fn installed() -> (tempfile::TempDir, Tree) {
    let (root, before) = administrators();
    install(root.path(), &["*", "https://docker.io"], 1);
    (root, before)
}

fn installed_before_theirs() -> (tempfile::TempDir, Tree) {
    let (root, before) = administrators();
    configure(&prepending(root.path(), &["*"], 1)).expect("configure");
    (root, before)
}

#[test]
fn an_update_killed_at_any_step_has_the_old_or_the_new_file_and_can_be_cleaned_up() {
    for fresh in [installed as Fresh, installed_before_theirs] {
        for work in [new as Work, new_before_theirs] {
            killed_at_each_step(fresh, work, |root, before| {
                assert_whole(root, &before, &[1, 2]);

                comes_back(root, &before);
            });
        }
    }
}

#[test]
fn a_cleanup_killed_at_any_step_has_the_new_or_the_old_file_and_is_finished_by_the_next() {
    for fresh in [installed as Fresh, installed_before_theirs] {
        killed_at_each_step(fresh, cleaned_up, |root, before| {
            assert_whole(root, &before, &[1]);

            comes_back(root, &before);
        });
        // And by an install, when the operator has thought better of it.
        for work in [new as Work, new_before_theirs] {
            killed_at_each_step(fresh, cleaned_up, |root, before| {
                work(root).expect("configure");
                for directory in DIRECTORIES {
                    assert!(is_ours(root, directory, 2), "{directory}");
                }
                comes_back(root, &before);
            });
        }
    }
}

#[test]
fn what_was_changed_since_is_lost_by_no_kill() {
    let fresh = || {
        let (root, before) = installed_before_theirs();
        write(root.path(), "later.example/hosts.toml", "later");
        write(root.path(), "_default/hosts.toml", "edited");
        write(root.path(), "renewed", "renewed");
        let certificate = root.path().join("docker.io/certs/ca.crt");
        fs::rename(root.path().join("renewed"), certificate).expect("rename");
        (root, before)
    };
    let is_all_there = |root: &Path| {
        let read = |file: &str| read(root, file);
        assert_eq!(read("_default/hosts.toml").as_deref(), Some("edited"));
        assert_eq!(read("later.example/hosts.toml").as_deref(), Some("later"));
        assert_eq!(read("docker.io/certs/ca.crt").as_deref(), Some("renewed"));
    };
    for work in [new_before_theirs as Work, cleaned_up] {
        killed_at_each_step(fresh, work, |root, _| {
            is_all_there(root);
            cleaned_up(root).expect("cleanup");
            is_all_there(root);
            let read = |file: &str| read(root, file);
            assert_eq!(
                read("_default/hosts.toml.found-1").as_deref(),
                Some(FOREIGN)
            );
            assert_eq!(
                read("docker.io/certs/ca.crt.found-1").as_deref(),
                Some("certificate")
            );
        });
    }
}

#[test]
fn where_names_cannot_be_exchanged_nor_files_have_two_a_kill_at_any_step_still_loses_nothing() {
    CAN_EXCHANGE.set(false);
    CAN_LINK.set(false);
    for work in [new as Work, new_before_theirs] {
        for fresh in [
            administrators as Fresh,
            spegels,
            installed,
            installed_before_theirs,
        ] {
            killed_at_each_step(fresh, work, |root, before| comes_back(root, &before));
            killed_at_each_step(fresh, work, |root, before| {
                work(root).expect("configure");
                comes_back(root, &before);
            });
        }
    }
    for fresh in [installed as Fresh, installed_before_theirs] {
        killed_at_each_step(fresh, cleaned_up, |root, before| comes_back(root, &before));
    }
}
