//! An OCI image layout that changes as skopeo changes one: every file is written beside its place and renamed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::image::{Image, descriptor};

const NAME: &str = "io.containerd.image.name";
/// Longer blobs are layers and name no others.
const MAX_MANIFEST: u64 = 1 << 20;

pub struct Layout {
    dir: PathBuf,
    /// The entries of index.json.
    entries: Mutex<Vec<Value>>,
}

impl Layout {
    /// An empty one in `dir`, which is made.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        let this = Self {
            dir: dir.to_owned(),
            entries: Mutex::default(),
        };
        this.write("index.json", index(&[]).as_bytes())?;
        let marker = json!({"imageLayoutVersion": "1.0.0"}).to_string();
        this.write("oci-layout", marker.as_bytes())?;
        Ok(this)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn index(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    pub fn path_of(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    pub fn holds(&self, digest: &str) -> bool {
        self.path_of(digest).is_file()
    }

    /// All blobs of an image, for all platforms, and then its name.
    pub fn add(&self, image: &Image) -> Result<()> {
        let blobs = image.blobs().chain(image.manifests()).chain(&image.index);
        for blob in blobs {
            self.add_blob(&blob.digest, &fs::read(&blob.file)?)?;
        }
        self.name(&image.reference(), descriptor(image.top()))
    }

    /// As [`Layout::add`], without a second copy of any byte: the image's files must lie on the same file system.
    pub fn add_linked(&self, image: &Image) -> Result<()> {
        let blobs = image.blobs().chain(image.manifests()).chain(&image.index);
        for blob in blobs.filter(|blob| !self.holds(&blob.digest)) {
            fs::hard_link(&blob.file, self.path_of(&blob.digest))?;
        }
        self.name(&image.reference(), descriptor(image.top()))
    }

    pub fn add_blob(&self, digest: &str, bytes: &[u8]) -> Result<()> {
        self.write(&format!("blobs/{}", digest.replace(':', "/")), bytes)
    }

    /// Gives a name to what `descriptor` speaks of.
    pub fn name(&self, reference: &str, mut descriptor: Value) -> Result<()> {
        descriptor["annotations"] = json!({ NAME: reference });
        self.change(|entries| entries.push(descriptor))
    }

    pub fn name_again(&self, reference: &str, another: &str) -> Result<()> {
        let entries = self.entries.lock().unwrap().clone();
        let entry = entries.into_iter().find(|entry| is_named(entry, reference));
        self.name(another, entry.context("no such name")?)
    }

    /// Removes a name, and then the blobs that no other name leads to.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let blobs = |named: bool| {
            let entries = self.entries.lock().unwrap();
            let entries = entries.iter().filter(|e| is_named(e, reference) == named);
            let mut found = BTreeSet::new();
            entries.for_each(|entry| self.collect(entry, &mut found));
            found
        };
        let (gone, kept) = (blobs(true), blobs(false));
        self.change(|entries| entries.retain(|entry| !is_named(entry, reference)))?;
        for digest in gone.difference(&kept) {
            fs::remove_file(self.path_of(digest))?;
        }
        Ok(())
    }

    /// Whatever is called `digest` in `json`, and in the blobs that it leads to.
    fn collect(&self, json: &Value, found: &mut BTreeSet<String>) {
        match json {
            Value::Array(items) => items.iter().for_each(|item| self.collect(item, found)),
            Value::Object(fields) => {
                fields.values().for_each(|item| self.collect(item, found));
                let digest = fields.get("digest").and_then(Value::as_str);
                let Some(digest) = digest.filter(|digest| found.insert((*digest).to_owned()))
                else {
                    return;
                };
                let path = self.path_of(digest);
                let is_short = fs::metadata(&path).is_ok_and(|m| m.len() <= MAX_MANIFEST);
                let text = is_short.then(|| fs::read(path).ok()).flatten();
                let json = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                if let Some(json) = json {
                    self.collect(&json, found);
                }
            }
            _ => {}
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
        let mut entries = self.entries.lock().unwrap();
        change(&mut entries);
        self.write("index.json", index(&entries).as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let file = NamedTempFile::with_prefix_in(".new-", path.parent().context("a file")?)?;
        fs::write(file.path(), bytes)?;
        file.persist(path)?;
        Ok(())
    }
}

fn index(entries: &[Value]) -> String {
    json!({"schemaVersion": 2, "manifests": entries}).to_string()
}

fn is_named(entry: &Value, reference: &str) -> bool {
    entry["annotations"][NAME] == reference
}
