//! What releases say to each other. The bytes of 0.1.0 were put together field by field from the Protocol Buffers encoding, and
//! not by this program.

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// A name and its bytes in each line. What is here stays: a release that reads or writes it otherwise is shut out by nodes that
/// have not been upgraded yet.
const RELEASE_0_1_0: &str = include_str!("0.1.0.hex");

fn bytes_of(name: &str) -> Bytes {
    let mut lines = RELEASE_0_1_0.lines();
    let hex = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = hex.unwrap_or_else(|| panic!("no {name}"));
    let byte = |place: usize| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn digest() -> Digest {
    DIGEST.parse().unwrap()
}

fn one() -> Peer {
    Peer {
        id: PeerId::new("12D3KooWOne"),
        registry: vec![
            "192.0.2.7:5000".parse().unwrap(),
            "[2001:db8::7]:5000".parse().unwrap(),
        ],
        zone: Some("zone-a".into()),
    }
}

fn two() -> Peer {
    Peer {
        id: PeerId::new("12D3KooWTwo"),
        registry: vec!["192.0.2.8:5000".parse().unwrap()],
        zone: None,
    }
}

fn standing(part: Part) -> Standing {
    Standing {
        digest: digest(),
        generation: Generation::One,
        part,
        offset: 0,
        rate: 0,
        node_rate: 0,
        free: 0,
    }
}

fn questions() -> Vec<(&'static str, Question)> {
    let doubts = [
        Doubt::Silent,
        Doubt::Refused,
        Doubt::Gone,
        Doubt::Corrupt,
        Doubt::Busy,
        Doubt::Behind,
    ];
    let wish = Wish {
        digest: digest(),
        image: format!("a.test/app@{DIGEST}"),
        generation: Generation::Two,
        offset: 1 << 20,
        doubts: doubts.map(|doubt| (two().id, doubt)).to_vec(),
        led_in_vain: true,
        is_slow: true,
    };
    let circumstances = Circumstances {
        is_takeover: true,
        image_leader: Some(one().id),
        is_descended: true,
        has_opinion: false,
    };
    let leads = Standing {
        generation: Generation::Two,
        offset: 300,
        rate: 10_000_000,
        node_rate: 20_000_000,
        free: 3,
        ..standing(Part::Leads {
            lease: 0x0123_4567_89ab_cdef,
            is_queued: true,
        })
    };
    let follows = Part::Follows {
        parent: one().id,
        is_queued: false,
    };
    vec![
        ("ask", Question::Ask(wish, circumstances)),
        (
            "report",
            Question::Report(vec![
                leads,
                standing(follows),
                standing(Part::Takes),
                standing(Part::Holds),
                standing(Part::Gone),
            ]),
        ),
        (
            "image",
            Question::Image {
                image: format!("a.test/app@{DIGEST}"),
                generation: Generation::Two,
                is_busy: true,
            },
        ),
        ("opinion", Question::Opinion(digest())),
    ]
}

fn answers() -> Vec<(&'static str, Answer)> {
    let course = Course {
        digest: digest(),
        progress: Progress {
            offset: 300,
            rate: 10_000_000,
            node_rate: 20_000_000,
        },
    };
    let holds = Standing {
        offset: 300,
        free: 1,
        ..standing(Part::Holds)
    };
    let lease = 0x0123_4567_89ab_cdef;
    vec![
        ("lead", Answer::Advice(Advice::Lead { lease })),
        (
            "follow",
            Answer::Advice(Advice::Follow {
                parent: one(),
                depth: 2,
                is_queued: true,
            }),
        ),
        (
            "wait",
            Answer::Advice(Advice::Wait {
                pause: Duration::from_millis(150),
                is_queued: true,
            }),
        ),
        ("closer", Answer::Closer(one())),
        ("descend", Answer::Descend(two())),
        ("astray", Answer::Astray),
        ("courses", Answer::Courses(vec![course])),
        ("leader", Answer::Image(Some(one().id))),
        ("nobody", Answer::Image(None)),
        ("known", Answer::Opinion(vec![(one(), holds)])),
    ]
}

#[test]
fn release_0_1_0_says_and_understands_these_bytes() {
    for (name, question) in questions() {
        assert_eq!(question.encode(), bytes_of(name), "{name}");
        assert_eq!(Question::decode(bytes_of(name)).unwrap(), question);
    }
    for (name, answer) in answers() {
        assert_eq!(answer.encode(), bytes_of(name), "{name}");
        assert_eq!(Answer::decode(bytes_of(name)).unwrap(), answer);
    }
    let lines = RELEASE_0_1_0.lines().count();
    assert_eq!(lines, questions().len() + answers().len());
}

/// Field 1000 with a number, and field 1001 with bytes.
const UNKNOWN: &[u8] = &[0xc0, 0x3e, 0x07, 0xca, 0x3e, 0x02, 0xff, 0x00];

/// A message as a later release may send it: with fields that are new, in it and in the one that it carries.
fn later(bytes: &[u8]) -> Bytes {
    let mut later = Vec::from(UNKNOWN);
    if bytes[0] & 7 == 2 && bytes[0] >> 3 != 8 && !bytes.ends_with(DIGEST.as_bytes()) {
        // A message and not a text: its key, its length in one byte or two, and what it is.
        let head = 1 + usize::from(bytes[1] >= 0x80) + 1;
        later.push(bytes[0]);
        let length = bytes.len() - head + UNKNOWN.len();
        prost::encode_length_delimiter(length, &mut later).unwrap();
        later.extend_from_slice(&bytes[head..]);
        later.extend_from_slice(UNKNOWN);
    } else {
        later.extend_from_slice(bytes);
    }
    later.extend_from_slice(UNKNOWN);
    later.into()
}

#[test]
fn fields_that_a_later_release_adds_are_passed_over() {
    for (name, question) in questions() {
        let decoded = Question::decode(later(&bytes_of(name)));
        assert_eq!(decoded.unwrap(), question, "{name}");
    }
    for (name, answer) in answers() {
        let decoded = Answer::decode(later(&bytes_of(name)));
        assert_eq!(decoded.unwrap(), answer, "{name}");
    }
}

#[test]
fn what_a_later_release_may_ask_answer_or_be_is_refused_or_taken_for_the_least() {
    // An eleventh kind of question, and of answer.
    let kind = Bytes::from_static(&[0x5a, 0x00]);
    assert!(Question::decode(kind.clone()).is_err());
    assert!(Answer::decode(kind).is_err());

    let mut doubt = DoubtMessage {
        id: "12D3KooWTwo".to_owned(),
        kind: 77,
    };
    assert_eq!(doubt.kind(), DoubtKind::Silent);
    doubt.kind = -1;
    assert_eq!(doubt.kind(), DoubtKind::Silent);

    let stands = StandingMessage {
        digest: DIGEST.to_owned(),
        part: 77,
        generation: 3,
        ..StandingMessage::default()
    };
    let read = read_standing(&stands).unwrap();
    assert_eq!((read.part, read.generation), (Part::Gone, Generation::Two));
}

#[test]
fn who_follows_and_was_sent_back_says_so() {
    for is_queued in [false, true] {
        let parent = one().id;
        let said = standing(Part::Follows { parent, is_queued });
        let message = super::standing(&said, None);
        assert_eq!(read_standing(&message), Some(said));
    }
}
