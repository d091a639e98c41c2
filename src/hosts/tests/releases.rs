//! Two installations on one node.

use super::*;

#[test]
fn a_second_release_is_refused_and_changes_nothing_and_its_cleanup_neither() {
    let (root, before) = administrators();
    let at = root.path();
    let first = Config {
        release: release("kube-system/peili"),
        ..config(at, &["*"], 1)
    };
    let second = Config {
        release: release("test/peili"),
        ..config(at, &["*"], 2)
    };
    configure(&first).expect("the first");
    let installed = tree(at);

    let error = configure(&second).expect_err("the second");

    let said = error.to_string();
    for part in [
        "--release-name [RELEASE_NAME] \"test/peili\"",
        &at.display().to_string(),
        "\"kube-system/peili\"",
        "uninstall one of them",
        "`peili cleanup --release-name=kube-system/peili`",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(tree(at) == installed);

    let done = cleanup(at, &second.release).expect("cleanup");
    let expected = Done::OfAnotherRelease(at.to_path_buf(), "kube-system/peili".to_string());
    assert_eq!(done, [expected]);
    assert!(tree(at) == installed);

    cleanup(at, &first.release).expect("cleanup");
    assert!(tree(at) == before);
    configure(&second).expect("the place is free");
    assert!(is_ours(at, "_default", 2));
}

#[test]
fn a_release_that_was_killed_in_the_midst_of_it_is_known_by_its_files() {
    let (root, before) = administrators();
    let at = root.path();
    // Dead before the manifest: that is the last file that is written.
    let steps = (1..)
        .find(|steps| {
            let (root, _) = administrators();
            let config = config(root.path(), &["*"], 1);
            disk::tests::dying_before(*steps, || configure(&config)).is_ok()
        })
        .expect("it ends");
    let first = config(at, &["*"], 1);
    disk::tests::dying_before(steps - 6, || configure(&first)).expect_err("killed");
    assert!(is_ours(at, "_default", 1));
    assert!(
        !tree(at)
            .keys()
            .any(|path| path.ends_with(".peili-manifest.json"))
    );

    let second = Config {
        release: release("other"),
        ..config(at, &["*"], 2)
    };
    let refused = configure(&second);
    assert!(matches!(refused, Err(Error::OtherRelease { .. })));

    restore(at);
    assert!(tree(at) == before);
}

#[test]
fn a_name_that_could_not_stand_in_a_file_is_refused() {
    let long = "x".repeat(254);
    for name in ["", "a b", "a\nb", "ä", "a\"b", &long] {
        let mistake = name.parse::<Release>().expect_err(name);
        assert_eq!(mistake.value, name);
        assert!(mistake.cure.contains("peili/peili"), "{mistake}");
    }
    for name in ["peili", "kube-system/peili", "a.b_c-1", &long[1..]] {
        name.parse::<Release>().unwrap_or_else(|e| panic!("{e}"));
    }
}
