//! What the files of this folder share: a directory as an administrator has it, and a look at it.

mod existing;
mod killed;
mod names;
mod prepended;
mod releases;
mod rendered;
mod since;
mod spegel;
mod upstream;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

const FOREIGN: &str = "server = \"https://mine\"\n";
const SPEGELS: &str =
    "[host.'http://192.0.2.7:30020']\ncapabilities = ['pull']\ndial_timeout = '200ms'\n";

/// In memory: some tests wait for the disk some thousand times, and there is no power to be lost.
fn folder() -> tempfile::TempDir {
    const MEMORY: &str = "/dev/shm";
    let builder = tempfile::Builder::new();
    let made = match Path::new(MEMORY).is_dir() {
        true => builder.tempdir_in(MEMORY),
        false => builder.tempdir(),
    };
    made.expect("tempdir")
}

/// Everything about a tree: kind, mode, inode and bytes of each entry.
type Tree = BTreeMap<PathBuf, (u32, u64, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = disk::entries(root).expect("list");
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().expect("stat");
        let bytes = if meta.is_symlink() {
            let target = fs::read_link(&path).expect("readlink");
            target.into_os_string().into_encoded_bytes()
        } else if meta.is_dir() {
            pending.extend(disk::entries(&path).expect("list"));
            Vec::new()
        } else {
            fs::read(&path).expect("read")
        };
        let name = path.strip_prefix(root).expect("below the root");
        tree.insert(name.to_path_buf(), (meta.mode(), meta.ino(), bytes));
    }
    tree
}

/// What was moved away, without what we say of it.
fn backup(root: &Path) -> Tree {
    let mut tree = tree(&root.join("_backup"));
    tree.remove(Path::new(".peili-manifest.json"));
    tree
}

fn write(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    fs::write(path, text).expect("write");
}

fn read(root: &Path, file: &str) -> Option<String> {
    fs::read_to_string(root.join(file)).ok()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// What an administrator may have: certificates, modes, links, a stray file, an empty directory.
fn administrators() -> (tempfile::TempDir, Tree) {
    let root = folder();
    let at = root.path();
    write(at, "docker.io/hosts.toml", FOREIGN);
    write(at, "docker.io/certs/ca.crt", "certificate");
    write(at, "docker.io/client.key", "key");
    write(at, "quay.io/hosts.toml", SPEGELS);
    write(at, "_default/hosts.toml", FOREIGN);
    write(at, "README", "mine");
    mode(&at.join("docker.io/hosts.toml"), 0o600);
    mode(&at.join("docker.io/client.key"), 0o400);
    mode(&at.join("docker.io"), 0o700);
    fs::create_dir(at.join("empty.example")).expect("mkdir");
    symlink("docker.io", at.join("alias.example")).expect("symlink");
    symlink("nowhere", at.join("dangling.example")).expect("symlink");
    let before = tree(at);
    (root, before)
}

/// Two releases of a chart differ in a target's port, say.
fn config(root: &Path, registries: &[&str], port: u16) -> Config {
    Config {
        directory: root.to_path_buf(),
        release: release("peili"),
        registries: Registry::list(registries).expect("registries"),
        targets: Targets::list(&[format!("http://127.0.0.1:{port}")]).expect("targets"),
        tags: TagResolution::default(),
        prepend_existing: false,
        headers: Vec::new(),
        containerd: None,
        node_ips: Vec::new(),
    }
}

fn prepending(root: &Path, registries: &[&str], port: u16) -> Config {
    Config {
        prepend_existing: true,
        ..config(root, registries, port)
    }
}

fn release(name: &str) -> Release {
    name.parse().expect("a name")
}

fn install(root: &Path, registries: &[&str], port: u16) -> Vec<Done> {
    configure(&config(root, registries, port)).unwrap_or_else(|e| panic!("{e}"))
}

fn restore(root: &Path) -> Vec<Done> {
    cleanup(root, &release("peili")).unwrap_or_else(|e| panic!("{e}"))
}

/// Of our host tables' targets; None: the file is not ours.
fn ports(text: &str) -> Option<Vec<u16>> {
    let mark = mark::Mark::read(text)?;
    let urls = toml::urls(text).expect("tables");
    let ports = urls.iter().take(mark.hosts).map(|url| {
        let port = url.rsplit_once(':').expect("a port").1;
        port.split('/').next().unwrap().parse().expect("a port")
    });
    Some(ports.collect())
}

fn is_ours(root: &Path, directory: &str, port: u16) -> bool {
    let text = read(root, &format!("{directory}/hosts.toml"));
    text.is_some_and(|text| ports(&text).is_some_and(|ports| ports.contains(&port)))
}

fn parsed(text: &str) -> ::toml::Table {
    text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"))
}
