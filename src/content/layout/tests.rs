use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;

use super::*;
use crate::oci::{ImageName, Key};

const EMPTY: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
/// As in the contract: users wait for it.
const SOON: Duration = Duration::from_secs(2);

fn layout(index: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(
        root.path().join(MARKER),
        r#"{"imageLayoutVersion": "1.0.0"}"#,
    )
    .unwrap();
    fs::write(root.path().join(INDEX), index).unwrap();
    root
}

fn open(root: &Path) -> Result<Layout, ConfigError> {
    let config = Config {
        path: root.to_path_buf(),
    };
    Layout::new(config, Readiness::new())
}

fn add_blob(root: &Path, text: &str) -> Digest {
    let digest = Digest::sha256(text.as_bytes());
    let path = blob_dir::blob(root, &digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    digest
}

fn index(name: &str, digest: &Digest) -> String {
    let annotations = serde_json::json!({"io.containerd.image.name": name});
    let entry = serde_json::json!({"digest": digest.as_str(), "annotations": annotations});
    serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string()
}

fn tag(name: &str) -> TagName {
    name.parse::<ImageName>().unwrap().tag.unwrap()
}

async fn until(listed: &mut BoxStream<'static, Snapshot>, key: &Key, is_there: bool) {
    let seen = async { while listed.next().await.unwrap().keys().contains(key) != is_there {} };
    let in_time = tokio::time::timeout(SOON, seen).await;
    assert!(in_time.is_ok(), "{key} should be listed: {is_there}");
}

#[test]
fn what_is_no_layout_is_refused_with_what_is_missing() {
    let root = layout(EMPTY);
    let file = root.path().join(MARKER);
    let without = |name: &str| {
        let root = layout(EMPTY);
        fs::remove_file(root.path().join(name)).unwrap();
        root
    };
    let (no_marker, no_index, later) = (without(MARKER), without(INDEX), layout(EMPTY));
    fs::write(
        later.path().join(MARKER),
        r#"{"imageLayoutVersion":"2.0.0"}"#,
    )
    .unwrap();
    for (path, said) in [
        (
            root.path().join("nowhere"),
            "nowhere is not there: make a layout there",
        ),
        (file, "is not an OCI image layout, oci-layout is missing"),
        (no_marker.path().to_path_buf(), "oci-layout is missing"),
        (no_index.path().to_path_buf(), "index.json is missing"),
        (later.path().to_path_buf(), "2.0.0"),
    ] {
        let error = open(&path).err().expect("refused").to_string();

        assert!(error.contains(said), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    assert!(open(root.path()).is_ok(), "a layout without blobs is one");
}

#[tokio::test]
async fn a_half_written_index_changes_nothing() {
    let root = layout(EMPTY);
    let manifest = add_blob(root.path(), "manifest");
    let whole = index("r.test/a:v1", &manifest);
    fs::write(root.path().join(INDEX), &whole).unwrap();
    let store = open(root.path()).unwrap();
    let mut listed = store.watch();
    let key = Key::Tag(tag("r.test/a:v1"));
    until(&mut listed, &key, true).await;

    fs::write(root.path().join(INDEX), &whole[..whole.len() / 2]).unwrap();
    let another = add_blob(root.path(), "another");

    // A listing that was made after the change still has the name.
    let after = async {
        loop {
            let keys = listed.next().await.unwrap().keys();
            assert!(keys.contains(&key));
            if keys.contains(&another.clone().into()) {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, after).await.unwrap();
    let resolved = store.resolve(&tag("r.test/a:v1")).await.unwrap();
    assert_eq!(resolved, Some(manifest.clone()));
    fs::remove_file(root.path().join(INDEX)).unwrap();
    let resolved = store.resolve(&tag("r.test/a:v1")).await.unwrap();
    assert_eq!(resolved, Some(manifest));
    fs::write(root.path().join(INDEX), EMPTY).unwrap();
    until(&mut listed, &key, false).await;
}

#[tokio::test]
async fn an_index_that_was_never_whole_is_waited_for_and_named() {
    let root = layout("{");
    let readiness = Readiness::new();
    let config = Config {
        path: root.path().to_path_buf(),
    };
    let store = Layout::new(config, readiness.clone()).unwrap();
    let mut listed = store.watch();
    let none = tokio::time::timeout(Duration::from_millis(300), listed.next()).await;
    assert!(none.is_err(), "no listing is better than an empty one");
    let awaited = readiness.awaited();
    assert!(awaited[0].contains("index.json: EOF"), "{awaited:?}");

    fs::write(root.path().join(INDEX), EMPTY).unwrap();

    let first = tokio::time::timeout(SOON, listed.next()).await.unwrap();
    assert_eq!(first, Some(Snapshot::default()));
    assert!(readiness.is_ready());
}

#[tokio::test]
async fn blobs_are_listed_whatever_they_are_and_other_files_are_not() {
    let root = layout(EMPTY);
    let store = open(root.path()).unwrap();
    let mut listed = store.watch();
    listed.next().await.unwrap();

    // The directory of blobs appears, with something else in it, then one of another algorithm.
    let blobs = blob_dir::blobs(root.path());
    fs::create_dir(&blobs).unwrap();
    fs::write(blobs.join("README"), "").unwrap();
    let small = add_blob(root.path(), "");
    until(&mut listed, &small.clone().into(), true).await;
    let hex = "0".repeat(128);
    let sha512 = blobs.join("sha512");
    fs::create_dir(&sha512).unwrap();
    fs::write(sha512.join(&hex), "unverified").unwrap();
    let long: Digest = format!("sha512:{hex}").parse().unwrap();
    until(&mut listed, &long.into(), true).await;
    let linked = Digest::sha256(b"linked");
    std::os::unix::fs::symlink(
        root.path().join(INDEX),
        blob_dir::blob(root.path(), &linked),
    )
    .unwrap();
    fs::write(blobs.join("sha256/tmp-1"), "").unwrap();
    let last = add_blob(root.path(), "last");
    until(&mut listed, &last.into(), true).await;

    let keys = store.0.list().unwrap().keys();
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert!(store.open(&linked).await.unwrap().is_none());
}

#[tokio::test]
async fn a_layout_that_took_the_place_of_another_is_followed() {
    let parent = tempfile::tempdir().unwrap();
    let (path, old) = (parent.path().join("images"), parent.path().join("old"));
    fs::rename(layout(EMPTY).keep(), &path).unwrap();
    let before = add_blob(&path, "before");
    let store = open(&path).unwrap();
    let mut listed = store.watch();
    until(&mut listed, &before.clone().into(), true).await;

    fs::rename(&path, &old).unwrap();
    fs::rename(layout(EMPTY).keep(), &path).unwrap();
    until(&mut listed, &before.into(), false).await;
    let after = add_blob(&path, "after");

    until(&mut listed, &after.into(), true).await;
}
