//! What somebody says who has no secret.

use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use crate::membership::{Admitted, Members, Request};
use crate::routing::kad::Membership;

pub const WORDS: &[&str] = &["v=1", "; t=", "; n=", "; p=", "0123456789abcdef", "v=2"];

const ASKED: Request = Request {
    to: "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    method: "GET",
    path_and_query: "/v2/app/manifests/1?ns=registry.test",
    range: "",
};

fn with_secret(secret: &str) -> Arc<Members> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), secret).expect("written");
    Arc::new(Members::load(file.path()).expect("a secret"))
}

static OURS: LazyLock<Arc<Members>> = LazyLock::new(|| with_secret("the secret of this cluster"));

/// Bytes between routers, and the headers of a request and of the answer to a tag: nothing that is made without the secret
/// lets anybody in, and what cannot be read is refused without a wait.
pub fn stranger(bytes: &[u8]) {
    assert!(!Membership::believes(OURS.clone(), bytes));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let names = [ASKED.to.to_string()];
    let now = SystemTime::now();
    let admitted = OURS.admit(text.lines(), &ASKED, &names, now);
    assert!(admitted.is_err(), "{text:?}");
    let (_, asked): (String, Admitted) = OURS.request(&ASKED, now);
    for line in text.lines() {
        let is_vouched = OURS.is_vouched(line, &asked, ASKED.path_and_query, "sha256:00");
        assert!(!is_vouched, "{line:?}");
    }
}

/// A header by another secret, a header of ours for another node, and frames with a nonce, a proof and a refusal.
pub fn strangers() -> Vec<Vec<u8>> {
    let theirs = with_secret("the secret of another cluster");
    let (other, _) = theirs.request(&ASKED, SystemTime::now());
    let elsewhere = Request {
        to: "somebody else",
        ..ASKED
    };
    let (misled, _) = OURS.request(&elsewhere, SystemTime::now());
    let frame = |tag: u8, bytes: &[u8]| {
        let length = bytes.len() as u8;
        [&[0, length + 2, tag << 3 | 2, length], bytes].concat()
    };
    let nonce = frame(1, &[7; 32]);
    let proof = frame(2, &[9; 32]);
    let refused = vec![0, 2, 3 << 3, 1];
    vec![
        other.into_bytes(),
        misled.into_bytes(),
        [nonce.clone(), proof].concat(),
        [nonce.clone(), refused].concat(),
        [nonce, vec![0, 0]].concat(),
        vec![2, 1],
    ]
}
