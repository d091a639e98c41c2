//! The file of the secrets: one per line, the first proves and all verify.

use std::io::{self, Read as _};
use std::path::Path;

use super::Error;

/// In bytes. Half of what `openssl rand -hex 16` prints: whoever sees a proof can try secrets at home.
pub const MIN_BYTES: usize = 16;
/// Two while one is being replaced; each costs an HMAC for every stranger.
pub const MAX_SECRETS: usize = 8;
/// What is longer is another file. In bytes.
const MAX_FILE: u64 = 64 << 10;

pub(super) fn read(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Io {
        path: path.to_path_buf(),
        source,
    };
    // A pipe would be waited for until somebody writes into it. A Secret's file is a link to one.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no file")));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    parse(&bytes).map_err(|(line, reason)| Error::Unusable {
        path: path.to_path_buf(),
        line,
        reason,
    })
}

/// What is wrong, and in which line. Says nothing of what stands there.
type Mistake = (Option<usize>, String);

fn parse(bytes: &[u8]) -> Result<Vec<String>, Mistake> {
    if bytes.len() as u64 > MAX_FILE {
        return Err((None, format!("has more than {MAX_FILE} bytes")));
    }
    let mut secrets: Vec<String> = Vec::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        let Ok(line) = std::str::from_utf8(line) else {
            return Err((Some(number), "is no text (UTF-8)".into()));
        };
        let secret = line.trim();
        if secret.is_empty() || secret.starts_with('#') {
            continue;
        }
        if secret.len() < MIN_BYTES {
            let reason = format!(
                "has a secret of {} bytes, and at least {MIN_BYTES} are needed",
                secret.len()
            );
            return Err((Some(number), reason));
        }
        if secrets.iter().any(|known| known == secret) {
            return Err((Some(number), "repeats a secret from above".into()));
        }
        if secrets.len() == MAX_SECRETS {
            let reason = format!("is one secret more than the {MAX_SECRETS} that are allowed");
            return Err((Some(number), reason));
        }
        secrets.push(secret.to_string());
    }
    match secrets.is_empty() {
        true => Err((None, "has no secret in it".into())),
        false => Ok(secrets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "a second secret, with spaces";

    #[test]
    fn one_secret_stands_in_each_line_without_what_editors_put_around_it() {
        for text in [
            format!("{ONE}\n{TWO}\n"),
            format!("# old below\n\n  {ONE}\t\r\n{TWO}"),
            format!("{ONE}\n#{TWO}\n{TWO}\n#\n"),
        ] {
            let secrets = parse(text.as_bytes()).expect(&text);

            assert_eq!(secrets, [ONE, TWO], "{text:?}");
        }
    }

    #[test]
    fn a_mistake_is_named_by_its_line_and_no_secret_is_told() {
        let nine: Vec<String> = (0..9).map(|n| format!("{ONE}{n}")).collect();
        for (text, line, reason) in [
            (String::new(), None, "no secret"),
            ("# nothing\n\n".into(), None, "no secret"),
            (format!("{ONE}\n\nshort one\n"), Some(3), "9 bytes"),
            (format!("{ONE}\n{ONE}\n"), Some(2), "repeats"),
            (nine.join("\n"), Some(9), "8 that are allowed"),
            ("x".repeat(70_000), None, "65536 bytes"),
        ] {
            let (at, why) = parse(text.as_bytes()).expect_err(reason);

            assert_eq!(at, line, "{why}");
            assert!(why.contains(reason), "{why}");
            assert!(!why.contains("short one") && !why.contains(ONE), "{why}");
        }
        assert_eq!(
            parse(b"0123456789abcdef\n\xff\n").expect_err("binary").0,
            Some(2)
        );
    }
}
