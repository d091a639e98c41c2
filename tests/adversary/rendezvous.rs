//! Meeting points and participants that mean harm: pulls go on, no later than the deadlines that are written down.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use peili::oci::Digest;
use peili::routing::bootstrap::Bootstrap;
use peili::routing::kad;
use peili::routing::messenger::Messenger as _;
use peili::routing::messenger::{Call, Meeting};
use peili::testing::conformance::routing::eventually;
use prost::Message as _;

use crate::addresses::{FORBIDDEN, place, traps};
use crate::nodes::{Node, config};
use crate::registry::{Hostile, Says};
use crate::whole::{Peili, REGISTRY};

/// docs/architecture.md: from the request to the first byte or the 404, where others are getting it.
const LIMIT: Duration = Duration::from_secs(12);
/// The machine is busy.
const LATE: Duration = Duration::from_secs(3);

// `/peili/flight/1`, as far as it is needed here.

#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(message, optional, tag = "1")]
    ask: Option<Asked>,
    #[prost(message, optional, tag = "2")]
    report: Option<Report>,
    #[prost(string, optional, tag = "4")]
    opinion: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Report {
    #[prost(message, repeated, tag = "1")]
    standings: Vec<Standing>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Standing {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int32, tag = "3")]
    part: i32,
    #[prost(fixed64, tag = "4")]
    lease: u64,
    #[prost(bool, tag = "5")]
    is_queued: bool,
    #[prost(uint64, tag = "7")]
    offset: u64,
    #[prost(uint64, tag = "8")]
    rate: u64,
    #[prost(uint64, tag = "9")]
    node_rate: u64,
    #[prost(uint32, tag = "10")]
    free: u32,
    #[prost(message, optional, tag = "11")]
    node: Option<Named>,
}

const LEADS: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(fixed64, optional, tag = "1")]
    lead: Option<u64>,
    #[prost(message, optional, tag = "2")]
    follow: Option<Follow>,
    #[prost(message, optional, tag = "3")]
    wait: Option<Wait>,
    #[prost(message, optional, tag = "4")]
    closer: Option<Named>,
    #[prost(message, optional, tag = "5")]
    descend: Option<Named>,
    #[prost(message, optional, tag = "9")]
    opinion: Option<Report>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Follow {
    #[prost(message, optional, tag = "1")]
    parent: Option<Named>,
    #[prost(uint32, tag = "2")]
    depth: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wait {
    #[prost(uint32, tag = "1")]
    pause_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    registry: Vec<String>,
}

fn named(registry: &[String]) -> Named {
    Named {
        id: libp2p::PeerId::random().to_base58(),
        registry: registry.to_vec(),
    }
}

/// To what is no question for a parent: who answers that with noise is passed over before he is asked.
fn beside() -> Answer {
    Answer {
        lead: Some(7),
        ..Answer::default()
    }
}

/// A router of ours whose meeting point is not: it answers whatever it is asked.
struct Desk {
    node: Node,
    questions: Arc<Mutex<usize>>,
}

impl Desk {
    async fn at(
        ip: &str,
        first: &Peili,
        answers: impl Fn(&Call, Question) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let ip = ip.parse().unwrap();
        let mut node = Node::with(kad::Config {
            bootstrap: Some(Bootstrap::Static(vec![first.router()])),
            registry_port: REGISTRY,
            ..config(ip, (ip, 0).into())
        })
        .await;
        let mut calls = node.calls.take().unwrap();
        let questions = Arc::new(Mutex::new(0));
        let count = Arc::clone(&questions);
        tokio::spawn(async move {
            while let Some(call) = calls.recv().await {
                let question = Question::decode(call.message.clone()).unwrap_or_default();
                *count.lock().unwrap() += usize::from(question.ask.is_some());
                let bytes = match answers(&call, question) {
                    Some(answer) => answer.encode_to_vec().into(),
                    None => Bytes::from_static(b"\xff\xff\xff"),
                };
                let _ = call.answer.send(bytes);
            }
        });
        Self { node, questions }
    }

    fn questions(&self) -> usize {
        *self.questions.lock().unwrap()
    }
}

/// Contents that meet at this node, as `asker` sees it, in no order.
async fn contents(asker: &Peili, desk: &Node, name: &str, count: usize) -> Vec<Digest> {
    let mut found = Vec::new();
    for n in 0.. {
        let digest = Digest::sha256(format!("{name} {n}").as_bytes());
        let meeting = Meeting::Content(digest.clone());
        let closest = asker.node.kad.closest(&meeting).await;
        if closest
            .first()
            .is_some_and(|it| it.id == *desk.kad.peer_id())
        {
            found.push(digest);
        }
        if found.len() == count {
            break;
        }
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    WaitForEver,
    NobodysParents,
    DeadParents,
    LeadAll,
    Noise,
    CloserInCircles,
    DescendForEver,
}

const HARMS: [(Harm, Duration); 7] = [
    (Harm::WaitForEver, LIMIT),
    // Whoever names parents of this kind alone is passed over.
    (Harm::NobodysParents, Duration::from_secs(3)),
    (Harm::DeadParents, LIMIT),
    (Harm::LeadAll, Duration::from_secs(3)),
    (Harm::Noise, Duration::from_secs(3)),
    (Harm::CloserInCircles, Duration::from_secs(3)),
    (Harm::DescendForEver, Duration::from_secs(3)),
];

#[test]
fn a_meeting_point_that_means_harm_delays_a_pull_and_sends_nobody_where_no_node_is() {
    let Some(place) = place() else { return };
    place.run(async || {
        let traps = traps().await;
        let node = Peili::start("10.9.0.1", None).await;
        let harms: Arc<Mutex<Vec<(String, Harm)>>> = Arc::default();
        let known = Arc::clone(&harms);
        let desk = Desk::at("10.9.0.3", &node, move |_, question| {
            let Some(Asked { digest }) = question.ask else {
                return Some(beside());
            };
            let harms = known.lock().unwrap();
            let (_, harm) = harms.iter().find(|(of, _)| *of == digest)?;
            let forbidden =
                FORBIDDEN.map(|ip| std::net::SocketAddr::new(ip.parse().unwrap(), REGISTRY));
            let more = [
                "169.254.169.254:80",
                "0.0.0.0:5907",
                "[fe80::1]:5907",
                "10.9.0.1:5907",
                "10.9.0.9:80",
            ];
            let nobodys: Vec<String> = forbidden
                .iter()
                .map(ToString::to_string)
                .chain(more.map(String::from))
                .collect();
            let follow = |registry: &[String]| Follow {
                parent: Some(named(registry)),
                depth: 0,
            };
            let mut answer = Answer::default();
            match harm {
                Harm::WaitForEver => answer.wait = Some(Wait { pause_ms: u32::MAX }),
                Harm::NobodysParents => {
                    let n = rand::random_range(0..nobodys.len() - 5);
                    answer.follow = Some(follow(&nobodys[n..n + 5]));
                }
                Harm::DeadParents => answer.follow = Some(follow(&["10.9.0.77:5907".into()])),
                Harm::LeadAll => answer.lead = Some(7),
                Harm::Noise => return None,
                Harm::CloserInCircles => answer.closer = Some(named(&["10.9.0.77:5907".into()])),
                Harm::DescendForEver => answer.descend = Some(named(&["10.9.0.77:5907".into()])),
            }
            Some(answer)
        })
        .await;
        // Each harm has an asker of its own, who passes nobody over for another's sake.
        let asked = HARMS.iter().zip(1..).map(async |((harm, limit), n)| {
            let asker = Peili::start(&format!("10.9.1.{n}"), Some(&node.router())).await;
            let name = format!("{harm:?}");
            let digest = contents(&asker, &desk.node, &name, 1).await.remove(0);
            harms.lock().unwrap().push((digest.to_string(), *harm));
            let before = desk.questions();
            let answer = asker.blob(&digest).await;
            assert_eq!(answer.status, 404, "{harm:?}: {}", answer.head);
            assert!(answer.took < *limit + LATE, "{harm:?}: {:?}", answer.took);
            assert!(desk.questions() > before, "{harm:?}: nobody asked");
            (*harm, answer.took)
        });
        let took = join_all(asked).await;
        println!("{took:?}");
        assert_eq!(traps.knocks(), []);
    });
}

/// One after the other, so that each is asked about.
#[test]
fn who_names_parents_that_are_nowhere_is_passed_over_within_a_moment() {
    let Some(place) = place() else { return };
    place.run(async || {
        let traps = traps().await;
        let node = Peili::start("10.9.0.1", None).await;
        let desk = Desk::at("10.9.0.3", &node, |_, question| {
            if question.ask.is_none() {
                return Some(beside());
            }
            let at = [
                "127.0.0.1:5907",
                "169.254.169.254:5907",
                "169.254.169.254:80",
                "10.9.0.1:5907",
            ];
            let follow = Follow {
                parent: Some(named(&at.map(String::from))),
                depth: 0,
            };
            Some(Answer {
                follow: Some(follow),
                ..Answer::default()
            })
        })
        .await;
        node.node.knows(1).await;
        let digest = contents(&node, &desk.node, "nowhere", 1).await.remove(0);

        let answer = node.blob(&digest).await;

        assert_eq!(answer.status, 404, "{}", answer.head);
        assert!(answer.took < Duration::from_secs(2), "{:?}", answer.took);
        assert!((2..10).contains(&desk.questions()), "{}", desk.questions());
        assert_eq!(traps.knocks(), []);
    });
}

#[tokio::test]
async fn who_says_that_he_leads_and_brings_nothing_is_waited_for_as_long_as_is_written_and_no_longer()
 {
    let node = Peili::start("127.0.9.81", None).await;
    let honest = Peili::start("127.0.9.82", Some(&node.router())).await;
    // He is further than everybody, faster than everybody, and his registry says nothing.
    let _silent = Hostile::at("127.0.9.83:5907", Says::AndStalls(Vec::new())).await;
    let liar = Desk::at("127.0.9.83", &node, |_, _| None).await;
    node.node.knows(2).await;
    let digest = contents(&node, &honest.node, "leads", 1).await.remove(0);
    let report = Question {
        report: Some(Report {
            standings: vec![Standing {
                digest: digest.to_string(),
                part: LEADS,
                lease: 7,
                is_queued: true,
                offset: u64::MAX,
                rate: u64::MAX,
                node_rate: u64::MAX,
                free: u32::MAX,
                node: None,
            }],
        }),
        ..Question::default()
    };
    let report = Bytes::from(report.encode_to_vec());
    let reports = async {
        loop {
            let to = honest.node.kad.peer_id();
            let said = liar
                .node
                .kad
                .call(to, report.clone(), Duration::from_secs(1));
            let _ = said.await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let pull = async {
        // From when on it is believed.
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.blob(&digest).await
    };

    let answer = tokio::select! {
        never = reports => never,
        answer = pull => answer,
    };

    assert_eq!(answer.status, 404, "{}", answer.head);
    assert!(answer.took < LIMIT + LATE, "{:?}", answer.took);
    eventually("others are served", async || {
        let layer = honest.holds(&b"a layer"[..]).await;
        (node.blob(&layer).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn opinions_of_a_liar_send_nobody_to_him_for_ever() {
    let node = Peili::start("127.0.9.91", None).await;
    let honest = Peili::start("127.0.9.92", Some(&node.router())).await;
    // Whoever asks what he thinks is told that others lead, who are nobody.
    let liar = Desk::at("127.0.9.93", &node, |_, question| {
        let digest = question.opinion?;
        let standing = |registry: &str| Standing {
            digest: digest.clone(),
            part: LEADS,
            lease: 1,
            node: Some(named(&[registry.to_string()])),
            ..Standing::default()
        };
        let standings = [
            "169.254.169.254:5907",
            "10.9.0.1:5907\n",
            "127.0.9.200:5907",
        ];
        Some(Answer {
            opinion: Some(Report {
                standings: standings.map(standing).into(),
            }),
            ..Answer::default()
        })
    })
    .await;
    node.node.knows(2).await;
    let digest = contents(&node, &honest.node, "opinions", 1).await.remove(0);

    let answer = node.blob(&digest).await;

    assert_eq!(answer.status, 404, "{}", answer.head);
    assert!(answer.took < LIMIT + LATE, "{:?}", answer.took);
    drop(liar);
}
