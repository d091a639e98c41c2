//! By what this node's own containerd is known.
//!
//! `configuration` makes a random token once and writes it into hosts.toml as a request header; the registry finds it in
//! the same data directory and mirrors only for those who send it. So no other pod pulls through us, and a foreign
//! node's Peili that is reached by accident (a NodePort) never fetches on behalf of a containerd that is not its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::private_file;

/// The header that carries it.
pub const HEADER: &str = "x-peili-token";
/// Beside the node's identity.
const FILE: &str = "node-token";
/// 256 bits: nobody guesses it, and it needs no other protection than its file's.
const BYTES: usize = 32;
/// The file may come after the process, or change under it; it is looked at this often, and only when asked for.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing} the node's token {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the node's token {} is no token: remove it, and run `peili configuration` again",
        .0.display()
    )]
    Broken(PathBuf),
}

/// The token of `data_dir`, made if there is none yet.
pub fn load_or_create(data_dir: &Path) -> Result<String, Error> {
    let path = data_dir.join(FILE);
    if let Some(token) = read(&path)? {
        return Ok(token);
    }
    let random: [u8; BYTES] = rand::random();
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    match private_file::create(&path, token.as_bytes()) {
        Ok(()) => Ok(token),
        // Somebody was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            read(&path)?.ok_or(Error::Broken(path))
        }
        Err(source) => Err(Error::Io {
            doing: "write",
            path,
            source,
        }),
    }
}

/// The token of `data_dir`; None if there is none.
pub fn load(data_dir: &Path) -> Result<Option<String>, Error> {
    read(&data_dir.join(FILE))
}

/// None where there is no file.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Io {
                doing: "read",
                path: path.to_path_buf(),
                source,
            });
        }
    };
    let token = text.trim();
    // It becomes a header and stands in hosts.toml: nothing but what we write ourselves.
    if token.len() == 2 * BYTES && token.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(Some(token.to_string()))
    } else {
        Err(Error::Broken(path.to_path_buf()))
    }
}

/// What the registry asks of whoever wants something from it.
#[derive(Debug)]
pub struct NodeToken {
    path: PathBuf,
    /// Whether nobody is served without it, peers excepted. Then a missing file lets nobody in.
    is_required: bool,
    known: Mutex<Option<(Instant, Known)>>,
}

#[derive(Clone, Debug)]
enum Known {
    None,
    Token(String),
    /// The file cannot be used: nobody can be told from anybody, so nobody is let in.
    Unusable,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// This node's containerd; or anybody, where no token was ever made.
    Ours,
    /// Somebody else: gets what is held here, and nothing is fetched for him.
    Stranger,
    /// Somebody else, and nobody else is served.
    Refused,
}

impl NodeToken {
    pub fn new(data_dir: &Path, is_required: bool) -> Self {
        Self {
            path: data_dir.join(FILE),
            is_required,
            known: Mutex::default(),
        }
    }

    /// Judges the header that a request brought, if any.
    pub fn caller(&self, presented: Option<&[u8]>) -> Caller {
        let is_ours = match self.known() {
            Known::None => !self.is_required,
            Known::Token(token) => presented.is_some_and(|it| is_same(it, token.as_bytes())),
            Known::Unusable => false,
        };
        match (is_ours, self.is_required) {
            (true, _) => Caller::Ours,
            (false, false) => Caller::Stranger,
            (false, true) => Caller::Refused,
        }
    }

    /// What this node's own containerd sends; None where there is none, or none that can be used.
    pub fn header(&self) -> Option<String> {
        match self.known() {
            Known::Token(token) => Some(token),
            Known::None | Known::Unusable => None,
        }
    }

    /// Says at once what would otherwise be found out by a pull.
    pub fn check(&self) -> Result<(), Error> {
        read(&self.path).map(drop)
    }

    fn known(&self) -> Known {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, known)) = &*known
            && at.elapsed() < FRESH
        {
            return known.clone();
        }
        let now = match read(&self.path) {
            Ok(None) => Known::None,
            Ok(Some(token)) => Known::Token(token),
            Err(_) => Known::Unusable,
        };
        *known = Some((Instant::now(), now.clone()));
        now
    }
}

/// In a time that does not tell where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let directory = tempfile::tempdir().unwrap();

        let first = load_or_create(directory.path()).unwrap();

        assert_eq!(load_or_create(directory.path()).unwrap(), first);
        assert_eq!(first.len(), 64);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_or_create(other.path()).unwrap(), first);
    }

    #[test]
    fn who_is_who() {
        use Caller::{Ours, Refused, Stranger};
        let with = tempfile::tempdir().unwrap();
        let token = load_or_create(with.path()).unwrap();
        let without = tempfile::tempdir().unwrap();
        let wrong = "0".repeat(64);
        for (directory, is_required, presented, expected) in [
            (&with, false, Some(token.as_str()), Ours),
            (&with, false, Some(wrong.as_str()), Stranger),
            (&with, false, Some(&token[..63]), Stranger),
            (&with, false, None, Stranger),
            (&with, true, Some(token.as_str()), Ours),
            (&with, true, Some(wrong.as_str()), Refused),
            (&with, true, None, Refused),
            (&without, false, None, Ours),
            (&without, false, Some(wrong.as_str()), Ours),
            (&without, true, Some(wrong.as_str()), Refused),
        ] {
            let judge = NodeToken::new(directory.path(), is_required);
            let caller = judge.caller(presented.map(str::as_bytes));
            assert_eq!(caller, expected, "{presented:?} required: {is_required}");
        }
    }

    #[test]
    fn a_file_that_is_no_token_lets_nobody_in_and_is_named_with_the_cure() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in ["", "short", &"\"x\n".repeat(22)[..64]] {
            std::fs::write(&path, text).unwrap();

            let error = load_or_create(directory.path()).unwrap_err().to_string();

            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("remove it"), "{error}");
            let judge = NodeToken::new(directory.path(), false);
            assert_eq!(judge.caller(Some(text.as_bytes())), Caller::Stranger);
        }
    }
}
