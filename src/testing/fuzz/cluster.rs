//! What other nodes say.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::oci::Digest;
use crate::routing::bootstrap::http::{self, MAX_ADDRESSES};
use crate::routing::bootstrap::parse_address;
use crate::routing::flight::table::Circumstances;
use crate::routing::flight::wire::{Answer, Question};
use crate::routing::rendezvous::{
    Advice, Course, Doubt, Generation, Part, Progress, Standing, Wish,
};
use crate::routing::{Peer, PeerId};

pub const BOOTSTRAP_WORDS: &[&str] = &[
    "[{\"ID\":\"",
    "\"Addrs\":[",
    "/ip4/10.0.0.7/tcp/5001",
    "/ip6/2001:db8::7/tcp/5001",
    "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
    "/dns4/evil.example/tcp/1",
    "null",
    "}]",
];

/// What `/id` is answered: addresses that can be dialled, no more than are wanted, and the same when they are told again.
pub fn bootstrap(bytes: &[u8]) {
    let Ok(addresses) = http::read(bytes) else {
        return;
    };
    assert!(addresses.len() <= MAX_ADDRESSES);
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    for (text, address) in texts.iter().zip(&addresses) {
        assert_eq!(parse_address(text).as_ref(), Ok(address), "{text}");
    }
    let again = json!([{"ID": "", "Addrs": texts}]).to_string();
    let again = http::read(again.as_bytes()).expect("what we tell");
    assert_eq!(again, addresses);
}

/// A message of the meeting points, asked or answered: read, written and read again it is the same, and a name in it is one
/// that may stand in a line of the log.
pub fn message(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(question) = Question::decode(bytes.clone()) {
        let written = question.encode();
        let again = Question::decode(written.clone()).expect("what we write");
        assert_eq!(again, question);
        assert_eq!(again.encode(), written);
    }
    if let Ok(answer) = Answer::decode(bytes) {
        if let Answer::Advice(Advice::Follow { parent, .. }) = &answer {
            let texts = [
                parent.id.as_str(),
                parent.zone.as_deref().unwrap_or_default(),
            ];
            let is_line = |text: &str| text.len() <= 128 && !text.contains(char::is_control);
            assert!(texts.into_iter().all(is_line), "{texts:?}");
        }
        let written = answer.encode();
        let again = Answer::decode(written.clone()).expect("what we write");
        assert_eq!(again, answer);
        assert_eq!(again.encode(), written);
    }
}

/// One message of each kind.
pub fn messages() -> Vec<Vec<u8>> {
    let digest = Digest::sha256(b"layer");
    let image = format!("registry.test:5000/app@{digest}");
    let peer = Peer {
        id: PeerId::new("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"),
        registry: vec![([10, 0, 0, 7], 5000).into()],
        zone: Some("eu-west-1a".into()),
    };
    let parts = [
        Part::Leads {
            lease: 7,
            is_queued: true,
        },
        Part::Follows {
            parent: peer.id.clone(),
            is_queued: true,
        },
        Part::Takes,
        Part::Holds,
        Part::Gone,
    ];
    let standing = |part| Standing {
        digest: digest.clone(),
        generation: Generation::Two,
        part,
        offset: 1 << 20,
        rate: 20_000_000,
        node_rate: 30_000_000,
        free: 2,
    };
    let standings: Vec<Standing> = parts.into_iter().map(standing).collect();
    let doubts = [Doubt::Refused, Doubt::Behind, Doubt::Silent];
    let wish = Wish {
        digest: digest.clone(),
        image: image.clone(),
        generation: Generation::One,
        offset: 5,
        doubts: doubts.map(|doubt| (peer.id.clone(), doubt)).into(),
        led_in_vain: true,
        is_slow: true,
    };
    let course = Course {
        digest: digest.clone(),
        progress: Progress {
            offset: 1,
            rate: 2,
            node_rate: 3,
        },
    };
    let advice = [
        Advice::Lead { lease: 9 },
        Advice::Follow {
            parent: peer.clone(),
            depth: 2,
            is_queued: false,
        },
        Advice::Wait {
            pause: Duration::from_millis(400),
            is_queued: true,
        },
    ];
    let questions = [
        Question::Ask(wish, Circumstances::default()),
        Question::Report(standings.clone()),
        Question::Image {
            image,
            generation: Generation::Two,
            is_busy: true,
        },
        Question::Opinion(digest),
    ];
    let told = standings.into_iter().map(|it| (peer.clone(), it));
    let answers = advice.into_iter().map(Answer::Advice).chain([
        Answer::Closer(peer.clone()),
        Answer::Descend(peer.clone()),
        Answer::Astray,
        Answer::Courses(vec![course]),
        Answer::Image(Some(peer.id.clone())),
        Answer::Image(None),
        Answer::Opinion(told.collect()),
    ]);
    let questions = questions.iter().map(Question::encode);
    let written = questions.chain(answers.map(|answer| answer.encode()));
    written.map(|bytes| bytes.to_vec()).collect()
}
