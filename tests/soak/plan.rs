//! What is done and in which order: a pure function of a seed.
//!
//! Steps are dealt like cards: a deck has each kind as often as it should come, shuffled, so that the shortest run has them all
//! and none has to hope for chance. What a step is about (nodes, images, moments) is drawn with it.

use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

pub const NODES: usize = 4;
/// Their Peilis run from the beginning to the end, so that what they keep has time to grow.
pub const STEADY: Range<usize> = 0..2;
/// Images of one version each, and a last one whose tag moves.
pub const IMAGES: usize = 8;
pub const MOVING: usize = IMAGES - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Tag,
    /// That of the newest version.
    Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    pub node: usize,
    pub image: usize,
    pub by: By,
    /// It is removed first.
    pub anew: bool,
}

/// What happens to a node while others, or it itself, pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    PeiliKilled,
    PeiliRestarted,
    ContainerdKilled,
    ContainerdRestarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Doctor,
    Metrics,
    /// The debug page, its JSON, and streams of events that are left open and dropped.
    Pages,
    Find(usize),
    /// `peili pull`.
    Trial(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All at once.
    Pull(Vec<Pull>),
    Disturbed {
        pulls: Vec<Pull>,
        who: usize,
        what: Disturbance,
        after: Duration,
    },
    Remove {
        node: usize,
        image: usize,
    },
    /// From an archive, without a registry.
    Import {
        node: usize,
        image: usize,
    },
    /// The moving tag gets a new digest, and these nodes pull it at once when nobody has it.
    Push {
        crowd: Vec<usize>,
    },
    /// The registry refuses connections meanwhile.
    Outage(Vec<Pull>),
    Ask {
        node: usize,
        question: Question,
    },
    /// Clients of every port that say half of what they should, and whose machine is gone then.
    Vanish {
        node: usize,
        clients: usize,
    },
    /// Clients that leave in mid-body, of what the node holds and of what it gets from others.
    Leave {
        node: usize,
        image: usize,
        clients: usize,
    },
    /// A pull that its kubelet gives up.
    GiveUp {
        pull: Pull,
        after: Duration,
    },
}

/// The steps of a seed, without an end.
pub struct Plan {
    rng: StdRng,
    deck: Vec<Step>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            deck: Vec::new(),
        }
    }

    /// One of each kind, and more of what nodes do most.
    pub fn deck(&mut self) -> Vec<Step> {
        let rng = &mut self.rng;
        let mut deck = Vec::new();
        for _ in 0..6 {
            deck.push(Step::Pull(pulls(rng, 1..5)));
        }
        for what in [
            Disturbance::PeiliKilled,
            Disturbance::PeiliRestarted,
            Disturbance::ContainerdKilled,
            Disturbance::ContainerdRestarted,
        ] {
            let who = match what {
                Disturbance::PeiliKilled | Disturbance::PeiliRestarted => {
                    rng.random_range(STEADY.end..NODES)
                }
                _ => rng.random_range(0..NODES),
            };
            let mut pulls = pulls(rng, 2..5);
            for pull in &mut pulls {
                pull.anew = true;
            }
            let after = moment(rng);
            deck.push(Step::Disturbed {
                pulls,
                who,
                what,
                after,
            });
        }
        for _ in 0..3 {
            let (node, image) = (node(rng), image(rng));
            deck.push(Step::Remove { node, image });
        }
        for _ in 0..2 {
            // What is imported under a tag that moves would be another's version of it.
            let (node, image) = (node(rng), rng.random_range(0..MOVING));
            deck.push(Step::Import { node, image });
        }
        let mut crowd: Vec<usize> = (0..NODES).collect();
        crowd.shuffle(rng);
        crowd.truncate(rng.random_range(2..=NODES));
        deck.push(Step::Push { crowd });
        deck.push(Step::Outage(pulls(rng, 2..5)));
        let questions = [
            Question::Doctor,
            Question::Metrics,
            Question::Pages,
            Question::Find(image(rng)),
            Question::Trial(image(rng)),
        ];
        for question in questions {
            let node = node(rng);
            deck.push(Step::Ask { node, question });
        }
        let (at, clients) = (node(rng), rng.random_range(6..16));
        deck.push(Step::Vanish { node: at, clients });
        for _ in 0..2 {
            let (node, image) = (node(rng), image(rng));
            let clients = rng.random_range(1..9);
            deck.push(Step::Leave {
                node,
                image,
                clients,
            });
        }
        let pull = Pull {
            anew: true,
            ..a_pull(rng)
        };
        let after = moment(rng);
        deck.push(Step::GiveUp { pull, after });
        deck.shuffle(rng);
        deck
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = self.deck();
            self.deck.reverse();
        }
        self.deck.pop()
    }
}

fn node(rng: &mut StdRng) -> usize {
    rng.random_range(0..NODES)
}

fn image(rng: &mut StdRng) -> usize {
    rng.random_range(0..IMAGES)
}

fn a_pull(rng: &mut StdRng) -> Pull {
    Pull {
        node: node(rng),
        image: image(rng),
        by: *[By::Tag, By::Digest].choose(rng).expect("two"),
        // Else most would find everything there.
        anew: rng.random_bool(0.7),
    }
}

/// A pull each of other nodes, of few images, so that some of them are after the same.
fn pulls(rng: &mut StdRng, how_many: Range<usize>) -> Vec<Pull> {
    let mut nodes: Vec<usize> = (0..NODES).collect();
    nodes.shuffle(rng);
    nodes.truncate(rng.random_range(how_many));
    let about = [image(rng), image(rng)];
    nodes
        .into_iter()
        .map(|node| Pull {
            node,
            image: *about.choose(rng).expect("two"),
            ..a_pull(rng)
        })
        .collect()
}

/// Within what a pull takes here, from its first request to its last byte.
fn moment(rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.random_range(0..500))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn kind(step: &Step) -> String {
        let name = |debug: String| {
            let end = debug.find([' ', '(']).unwrap_or(debug.len());
            debug[..end].to_owned()
        };
        match step {
            Step::Disturbed { what, .. } => name(format!("{what:?}")),
            Step::Ask { question, .. } => name(format!("{question:?}")),
            step => name(format!("{step:?}")),
        }
    }

    fn all_pulls(step: &Step) -> Vec<&Pull> {
        match step {
            Step::Pull(pulls) | Step::Outage(pulls) | Step::Disturbed { pulls, .. } => {
                pulls.iter().collect()
            }
            Step::GiveUp { pull, .. } => vec![pull],
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_seed_is_a_plan_and_another_seed_another() {
        let first = |seed| Plan::new(seed).take(1000).collect::<Vec<_>>();

        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
    }

    #[test]
    fn every_deck_has_every_kind_of_step_and_no_two_decks_are_alike() {
        let mut plan = Plan::new(1);
        let decks: Vec<Vec<Step>> = (0..50).map(|_| plan.deck()).collect();

        let kinds = |deck: &Vec<Step>| deck.iter().map(kind).collect::<BTreeSet<_>>();
        for deck in &decks {
            assert_eq!(kinds(deck), kinds(&decks[0]));
        }
        assert_eq!(kinds(&decks[0]).len(), 17, "{:?}", kinds(&decks[0]));
        assert!(decks.windows(2).all(|two| two[0] != two[1]));
    }

    #[test]
    fn the_steady_keep_their_peili_and_every_node_and_image_has_its_turn() {
        let steps: Vec<Step> = Plan::new(3).take(2000).collect();

        for step in &steps {
            if let Step::Disturbed { who, what, .. } = step
                && matches!(what, Disturbance::PeiliKilled | Disturbance::PeiliRestarted)
            {
                assert!(!STEADY.contains(who) && *who < NODES);
            }
            let mut nodes = BTreeSet::new();
            assert!(
                all_pulls(step).iter().all(|pull| nodes.insert(pull.node)),
                "a node pulls one thing at a time: {step:?}"
            );
        }
        let pulls: Vec<&Pull> = steps.iter().flat_map(all_pulls).collect();
        for node in 0..NODES {
            for image in 0..IMAGES {
                for by in [By::Tag, By::Digest] {
                    let it = |p: &&&Pull| (p.node, p.image, p.by) == (node, image, by);
                    assert!(pulls.iter().any(|p| it(&p)), "{node} {image} {by:?}");
                }
            }
        }
        assert!(
            steps
                .iter()
                .all(|s| !matches!(s, Step::Import { image, .. } if *image == MOVING))
        );
    }
}
