//! This node's key pair, kept across restarts.
//!
//! Other nodes know this one by its public key. With a new one at each start, every record told before would name a peer
//! that no longer exists, at an address where somebody else answers.

use std::io;
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;

use crate::private_file;

const FILE: &str = "private.key";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Never replaced silently: the file may be of another program, or of a volume that was mounted too late.
    #[error(
        "{path} is no private key ({reason}). Remove it and a new one is made at the next start; \
         other nodes then know this one under a new name",
        path = path.display()
    )]
    Broken { path: PathBuf, reason: String },
}

/// The key pair of `data_dir`, made at the first start. Without a directory, a new one each time.
pub fn load_or_create(data_dir: Option<&Path>) -> Result<Keypair, IdentityError> {
    let Some(dir) = data_dir else {
        return Ok(Keypair::generate_ed25519());
    };
    let path = dir.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => decode(&bytes, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path),
        Err(source) => Err(IdentityError::Io {
            action: "read",
            path,
            source,
        }),
    }
}

fn decode(bytes: &[u8], path: &Path) -> Result<Keypair, IdentityError> {
    let broken = |reason: String| IdentityError::Broken {
        path: path.to_path_buf(),
        reason,
    };
    if bytes.is_empty() {
        return Err(broken("it is empty".into()));
    }
    Keypair::from_protobuf_encoding(bytes).map_err(|e| broken(e.to_string()))
}

fn create(path: &Path) -> Result<Keypair, IdentityError> {
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|e| IdentityError::Broken {
            path: path.to_path_buf(),
            reason: e.to_string(),
        })?;
    private_file::create(path, &bytes).map_err(|source| IdentityError::Io {
        action: "write",
        path: path.to_path_buf(),
        source,
    })?;
    Ok(keypair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_node_keeps_its_name_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("not/there/yet");

        let first = load_or_create(Some(&data)).unwrap();
        let second = load_or_create(Some(&data)).unwrap();

        assert_eq!(first.public(), second.public());
        let mode = std::fs::metadata(data.join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1);
    }

    #[test]
    fn without_a_directory_it_has_a_new_name_each_time() {
        let [a, b] = [(); 2].map(|()| load_or_create(None).unwrap());
        assert_ne!(a.public(), b.public());
    }

    #[test]
    fn a_file_that_is_no_key_is_kept_and_named_with_the_cure() {
        for (bytes, reason) in [(&b""[..], "empty"), (b"\0\0\0", "is no private key")] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE);
            std::fs::write(&path, bytes).unwrap();

            let error = load_or_create(Some(dir.path())).unwrap_err().to_string();

            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(error.contains("Remove it"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();

        let error = load_or_create(Some(&file)).unwrap_err().to_string();

        assert!(error.contains("private.key"), "{error}");
    }
}
