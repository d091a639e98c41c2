//! The user name and the password that this node's mirror and its peers ask for, as a Secret mounts them.
//!
//! `configuration` writes them into hosts.toml, so that containerd sends them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The header that carries them (RFC 9110, section 11.6.2). containerd sends it as it is spelt here.
pub const HEADER: &str = "Authorization";
const FILES: [&str; 2] = ["username", "password"];

/// What is asked for (RFC 7617).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} {reason}: {} and {} in {} are the Secret's two keys; with neither there is no basic auth",
        path.display(), FILES[0], FILES[1], path.parent().unwrap_or(path).display()
    )]
    Unusable { path: PathBuf, reason: &'static str },
}

/// None: neither file is there, and nobody asks.
pub fn load(directory: &Path) -> Result<Option<Credentials>, Error> {
    let [username, password] = FILES.map(|name| directory.join(name));
    let unusable = |path: &Path, reason| {
        let path = path.to_path_buf();
        Err(Error::Unusable { path, reason })
    };
    match (read(&username)?, read(&password)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => unusable(&username, "is not there, and the password is"),
        (Some(_), None) => unusable(&password, "is not there, and the user name is"),
        (Some(name), _) if name.is_empty() => unusable(&username, "is empty"),
        // RFC 7617, section 2: the colon ends it.
        (Some(name), _) if name.contains(':') => unusable(&username, "has a colon in it"),
        (_, Some(word)) if word.is_empty() => unusable(&password, "is empty"),
        (Some(username), Some(password)) => Ok(Some(Credentials { username, password })),
    }
}

/// None where there is no file. Editors end it with a line break, which no browser could type.
fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_string())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}

impl Credentials {
    /// What [`HEADER`] says: letters, digits and signs that need no escaping anywhere.
    pub fn header(&self) -> String {
        let Self { username, password } = self;
        format!(
            "Basic {}",
            STANDARD.encode(format!("{username}:{password}"))
        )
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("tempdir");
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).expect("write");
        }
        directory
    }

    #[test]
    fn both_files_make_the_header_and_none_makes_none() {
        // RFC 7617, section 2, has this pair as its example.
        let both = secret(&[("username", "Aladdin\n"), ("password", "open sesame\n")]);

        let credentials = load(both.path()).expect("readable").expect("both");

        assert_eq!(credentials.header(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{credentials:?}").contains("sesame"));
        assert_eq!(load(secret(&[]).path()).expect("readable"), None);
        assert_eq!(load(&both.path().join("absent")).expect("readable"), None);
    }

    #[test]
    fn half_a_pair_is_refused_with_the_file_the_reason_and_the_cure() {
        for (files, file, reason) in [
            (&[("username", "a")][..], "password", "is not there"),
            (&[("password", "a")], "username", "is not there"),
            (
                &[("username", "a:b"), ("password", "a")],
                "username",
                "colon",
            ),
            (
                &[("username", "\n"), ("password", "a")],
                "username",
                "empty",
            ),
            (&[("username", "a"), ("password", "")], "password", "empty"),
        ] {
            let directory = secret(files);

            let error = load(directory.path()).expect_err(reason).to_string();

            let path = directory.path().join(file).display().to_string();
            assert!(error.starts_with(&path), "{error}");
            assert!(
                error.contains(reason) && error.contains("neither"),
                "{error}"
            );
        }
    }
}
