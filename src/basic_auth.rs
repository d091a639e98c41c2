//! The user name and the password that this node's mirror and its peers ask for, as a Secret mounts them.
//!
//! `configuration` writes them into hosts.toml, so that containerd sends them; the registry asks for them, and the mirror
//! sends them to peers. A Secret that changes is read again, and the pair before it goes on to open: hosts.toml has it
//! until `configuration` runs again, and kubelets bring the new one to their nodes within a minute or two, not at once.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tracing::{info, warn};

/// The header that carries them (RFC 9110, section 11.6.2). containerd sends it as it is spelt here.
pub const HEADER: &str = "Authorization";
/// What whoever lacks them is told (RFC 7617, section 2): the names are read as UTF-8.
pub const CHALLENGE: &str = "Basic realm=\"peili\", charset=\"UTF-8\"";
const FILES: [&str; 2] = ["username", "password"];
/// A Secret's files change under the process; they are looked at this often, and only when somebody asks.
const FRESH: Duration = Duration::from_secs(1);

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

/// The pair that is in force in this process, followed through the changes of its Secret.
#[derive(Debug)]
pub struct Secret {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    read: Instant,
    now: Credentials,
    /// Until this process ends: who must shut it out at once restarts.
    before: Option<Credentials>,
    /// Why the files could not be read lately; said once.
    trouble: Option<String>,
}

impl Secret {
    /// None: neither file is there, and nobody is asked. That is decided here, for as long as the process runs.
    pub fn load(directory: &Path) -> Result<Option<Self>, Error> {
        let now = load(directory)?;
        Ok(now.map(|now| Self {
            directory: directory.to_path_buf(),
            state: Mutex::new(State {
                read: Instant::now(),
                now,
                before: None,
                trouble: None,
            }),
        }))
    }

    /// What to send to peers.
    pub fn header(&self) -> String {
        self.fresh(Instant::now(), |state| state.now.header())
    }

    /// Whether a request that brought this [`HEADER`] is from one of us. The time that it takes says nothing of how much
    /// of it was right.
    pub fn accepts(&self, presented: Option<&[u8]>) -> bool {
        self.accepts_at(presented, Instant::now())
    }

    fn accepts_at(&self, presented: Option<&[u8]>, now: Instant) -> bool {
        let Some(presented) = presented.and_then(pair_in) else {
            return false;
        };
        let presented = Sha256::digest(&presented);
        self.fresh(now, |state| {
            let known = [Some(&state.now), state.before.as_ref()];
            known
                .into_iter()
                .flatten()
                .any(|known| Sha256::digest(known.pair()).ct_eq(&presented).into())
        })
    }

    fn fresh<T>(&self, now: Instant, read: impl FnOnce(&State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.read) >= FRESH {
            state.read = now;
            state.follow(load(&self.directory), &self.directory);
        }
        read(&state)
    }
}

impl State {
    /// What was read again. Files that are gone or broken open nothing to anybody: what was known goes on to count.
    fn follow(&mut self, found: Result<Option<Credentials>, Error>, directory: &Path) {
        let trouble = match found {
            Ok(Some(found)) => {
                if found != self.now {
                    info!(directory = %directory.display(), "the user name or the password has changed; the pair before goes on to open until a restart");
                    self.before = Some(std::mem::replace(&mut self.now, found));
                }
                None
            }
            Ok(None) => Some("both files are gone".to_string()),
            Err(e) => Some(e.to_string()),
        };
        if let Some(error) = trouble
            .as_ref()
            .filter(|new| Some(*new) != self.trouble.as_ref())
        {
            warn!(directory = %directory.display(), error, "the user name and the password cannot be read again; those that were read before count until a restart");
        }
        self.trouble = trouble;
    }
}

/// The `user:password` of a header, whose scheme is written in any case (RFC 7235, section 2.1).
fn pair_in(header: &[u8]) -> Option<Vec<u8>> {
    const SCHEME: usize = "Basic".len();
    let (scheme, rest) = header.split_at_checked(SCHEME)?;
    if !scheme.eq_ignore_ascii_case(b"Basic") || !rest.starts_with(b" ") {
        return None;
    }
    STANDARD.decode(rest.trim_ascii()).ok()
}

impl Credentials {
    fn pair(&self) -> String {
        format!("{}:{}", self.username, self.password)
    }

    /// What [`HEADER`] says: letters, digits and signs that need no escaping anywhere.
    pub fn header(&self) -> String {
        format!("Basic {}", STANDARD.encode(self.pair()))
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
    fn only_the_pair_opens_however_it_is_spelt() {
        let directory = secret(&[("username", "Aladdin"), ("password", "öpen: sesame")]);
        let secret = Secret::load(directory.path())
            .expect("readable")
            .expect("on");
        let encoded = |pair: &str| STANDARD.encode(pair);
        let right = encoded("Aladdin:öpen: sesame");
        for (presented, opens) in [
            (Some(secret.header()), true),
            (Some(format!("Basic {right}")), true),
            (Some(format!("bAsIC   {right} ")), true),
            (Some(format!("Basic{right}")), false),
            (Some(format!("Bearer {right}")), false),
            (Some(right.clone()), false),
            (Some("Basic".to_string()), false),
            (Some("Basic !!".to_string()), false),
            (Some("ö".to_string()), false),
            (Some(format!("Basic {}", encoded("Aladdin:"))), false),
            (
                Some(format!("Basic {}", encoded("Aladdin:öpen: sesam"))),
                false,
            ),
            (
                Some(format!("Basic {}", encoded("aladdin:öpen: sesame"))),
                false,
            ),
            (Some(String::new()), false),
            (None, false),
        ] {
            let found = secret.accepts(presented.as_ref().map(String::as_bytes));
            assert_eq!(found, opens, "{presented:?}");
        }
        assert!(!format!("{secret:?}").contains("sesame"));
        let absent = directory.path().join("absent");
        assert!(Secret::load(&absent).expect("readable").is_none());
    }

    #[test]
    fn a_secret_that_changes_is_followed_and_one_that_goes_opens_nothing() {
        let directory = secret(&[("username", "u"), ("password", "one")]);
        let path = directory.path();
        let secret = Secret::load(path).expect("readable").expect("on");
        let mut now = Instant::now();
        let mut opens = |password: &str| {
            now += FRESH;
            let header = format!("Basic {}", STANDARD.encode(format!("u:{password}")));
            secret.accepts_at(Some(header.as_bytes()), now)
        };
        let write =
            |password: &str| std::fs::write(path.join("password"), password).expect("write");
        assert!(opens("one") && !opens("two"));

        write("two");
        assert!(opens("two"), "the new pair");
        assert!(opens("one"), "hosts.toml still has it");
        write("three");
        assert!(opens("three") && opens("two"));
        assert!(!opens("one"), "one change back and no more");

        for (broken, why) in [(Some(""), "half of a pair"), (None, "nothing there")] {
            match broken {
                Some(text) => write(text),
                None => {
                    std::fs::remove_file(path.join("username")).expect("remove");
                    std::fs::remove_file(path.join("password")).expect("remove");
                }
            }
            assert!(opens("three") && !opens("") && !opens("one"), "{why}");
        }
        assert!(secret.header().ends_with(&STANDARD.encode("u:three")));
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
