//! What is mounted where in this process's world (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What of its file system is mounted: of a bind mount, the path there. Ends with `//deleted` once that is gone.
    pub root: String,
    pub point: PathBuf,
}

/// All lines that can be read.
pub fn parse(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        Some(Mount {
            root: unescaped(root),
            point: unescaped(point).into(),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The mount at exactly this path; the last one is on top.
pub fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.point == path)
}

impl Mount {
    /// Whether what was mounted has been removed since, as a socket is by containerd's restart.
    pub fn is_stale(&self) -> bool {
        self.root.ends_with("//deleted")
    }
}

/// Space, tab, line feed and backslash are written as `\040` and so on.
fn unescaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
61 25 0:24 /k3s/containerd /run/k3s/containerd rw,nosuid - tmpfs tmpfs rw,size=1
62 25 0:24 /containerd/containerd.sock//deleted /run/containerd/containerd.sock rw - tmpfs tmpfs rw
63 25 0:24 /a\\040b /mnt/c\\134d rw master:1 - tmpfs tmpfs rw
short
";

    #[test]
    fn a_mount_is_found_by_its_place_and_one_whose_file_has_gone_says_so() {
        let mounts = parse(MOUNTS);
        assert_eq!(mounts.len(), 4);
        let find = |path: &str| at(&mounts, Path::new(path));

        let directory = find("/run/k3s/containerd").expect("the directory");
        assert_eq!(directory.root, "/k3s/containerd");
        assert!(!directory.is_stale());
        let socket = find("/run/containerd/containerd.sock").expect("the file");
        assert!(socket.is_stale());
        assert_eq!(find("/mnt/c\\d").expect("unescaped").root, "/a b");
        assert_eq!(find("/run/k3s/containerd/containerd.sock"), None);
    }
}
