//! Situations, and what is said in them.

use rand::SeedableRng;

use super::*;
use crate::routing::rendezvous::Doubt;

const MIB: u64 = 1 << 20;

/// A meeting point, and a clock that tests turn by hand.
struct World {
    table: Table,
    now: Instant,
}

fn peer(name: &str) -> Peer {
    Peer {
        id: PeerId::new(name),
        registry: vec![([10, 0, 0, 1], 5000).into()],
        zone: None,
    }
}

fn in_zone(name: &str, zone: &str) -> Peer {
    Peer {
        zone: Some(zone.into()),
        ..peer(name)
    }
}

fn layer() -> Digest {
    Digest::sha256(b"layer")
}

fn wish(offset: u64) -> Wish {
    Wish {
        digest: layer(),
        image: "registry.test/app".to_string(),
        generation: Generation::One,
        offset,
        doubts: Vec::new(),
        led_in_vain: false,
        is_slow: false,
    }
}

fn standing(part: Part, offset: u64) -> Standing {
    Standing {
        digest: layer(),
        generation: Generation::One,
        part,
        offset,
        rate: 10 * MIB,
        node_rate: 10 * MIB,
        free: FANOUT,
    }
}

fn leads(offset: u64) -> Standing {
    let is_queued = false;
    standing(
        Part::Leads {
            lease: 1,
            is_queued,
        },
        offset,
    )
}

fn follows(parent: &str, offset: u64) -> Standing {
    let (parent, is_queued) = (PeerId::new(parent), false);
    standing(Part::Follows { parent, is_queued }, offset)
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            table: Table::new(peer("me"), now, StdRng::seed_from_u64(7)),
            now,
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn ask_with(&mut self, who: &Peer, wish: &Wish, circumstances: Circumstances) -> Said {
        let circumstances = Circumstances {
            has_opinion: true,
            ..circumstances
        };
        self.table.ask(who, wish, &circumstances, self.now)
    }

    fn ask(&mut self, who: &str, wish: &Wish) -> Said {
        self.ask_with(&peer(who), wish, Circumstances::default())
    }

    fn report(&mut self, who: &str, standing: Standing) -> Vec<Course> {
        self.table.report(&peer(who), &[standing], self.now)
    }

    /// As the reporters of these nodes would, until `millis` have passed.
    fn pass_reporting(&mut self, millis: u64, standings: &[(&str, Standing)]) {
        for _ in 0..millis / 250 {
            self.pass(250);
            for (who, standing) in standings {
                self.report(who, standing.clone());
            }
        }
    }
}

/// `Some(name)`: follow it.
fn parent(said: &Said) -> Option<&str> {
    match said {
        Said::Advice(Advice::Follow { parent, .. }) => Some(parent.id.as_str()),
        _ => None,
    }
}

fn is_lead(said: &Said) -> bool {
    matches!(said, Said::Advice(Advice::Lead { .. }))
}

fn is_wait(said: &Said) -> bool {
    matches!(said, Said::Advice(Advice::Wait { .. }))
}

#[test]
fn who_has_not_said_where_it_is_is_nobodys_parent() {
    let mut world = World::new();
    let nowhere = Peer {
        registry: Vec::new(),
        ..peer("leader")
    };
    world.table.report(&nowhere, &[leads(MIB)], world.now);
    let said = world.ask("child", &wish(0));
    assert!(
        matches!(said, Said::Advice(Advice::Wait { .. })),
        "{said:?}"
    );

    // Its next report comes after it has.
    world.report("leader", leads(2 * MIB));
    match world.ask("child", &wish(0)) {
        Said::Advice(Advice::Follow { parent, .. }) => assert_eq!(parent, peer("leader")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_nothing_known_others_are_asked_first() {
    let mut world = World::new();
    let (now, who) = (world.now, peer("a"));
    let said = world
        .table
        .ask(&who, &wish(0), &Circumstances::default(), now);
    assert_eq!(said, Said::AskOthers);
}

#[test]
fn the_first_leads_and_the_others_follow_in_a_tree() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("n0", &wish(0))));
    let mut children: HashMap<String, u32> = HashMap::new();
    for n in 1..40 {
        let said = world.ask(&format!("n{n}"), &wish(0));
        let parent = parent(&said).unwrap_or_else(|| panic!("{n}: {said:?}"));
        *children.entry(parent.to_string()).or_default() += 1;
    }
    assert!(
        children.values().all(|children| *children <= FANOUT),
        "{children:?}"
    );
    assert_eq!(children["n0"], FANOUT);
}

#[test]
fn who_has_it_comes_before_who_is_getting_it() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.report("a", leads(50 * MIB));
    world.report("h", standing(Part::Holds, 100 * MIB));
    assert_eq!(parent(&world.ask("b", &wish(0))), Some("h"));
}

#[test]
fn whoever_leads_and_asks_again_leads() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.report("a", leads(5 * MIB));
    world.pass(100);
    assert!(is_lead(&world.ask("a", &wish(5 * MIB))));
}

#[test]
fn a_leader_that_says_it_got_nothing_is_replaced_at_once_and_does_not_lead_again_at_once() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"));
    world.pass(60);
    world.report("a", standing(Part::Gone, 0));

    let again = Wish {
        led_in_vain: true,
        ..wish(0)
    };
    assert!(is_wait(&world.ask("a", &again)));
    assert!(is_lead(&world.ask("b", &wish(0))));
    assert_eq!(parent(&world.ask("a", &again)), Some("b"));
}

#[test]
fn who_led_in_vain_leads_again_when_nobody_else_wants_it() {
    let mut world = World::new();
    let again = Wish {
        led_in_vain: true,
        ..wish(0)
    };
    assert!(is_wait(&world.ask("a", &again)));
    world.pass(500);
    assert!(is_wait(&world.ask("a", &again)));
    world.pass(500);
    assert!(is_lead(&world.ask("a", &again)));
}

/// A registry that is silent: its leader's mirror says so four times a second.
#[test]
fn a_silent_registry_is_asked_again_and_not_by_all_at_once() {
    let mut world = World::new();
    let names: Vec<String> = (0..40).map(|n| format!("n{n:02}")).collect();
    let mut leading: Vec<&String> = Vec::new();
    let mut asked_at: Vec<u64> = Vec::new();
    let begin = world.now;
    for _ in 0..56 {
        for name in &names {
            if leading.contains(&name) {
                world.report(name, leads(0));
            } else if is_lead(&world.ask(name, &wish(0))) {
                leading.push(name);
                asked_at.push((world.now - begin).as_millis() as u64 / 250 * 250);
            }
        }
        world.pass(250);
    }
    let by = |millis: u64| asked_at.iter().filter(|at| **at < millis).count();
    let counts: Vec<usize> = [1999, 3999, 5999, 7999, 9999, 12_999].map(by).to_vec();
    assert_eq!(counts, [1, 2, 4, 8, 16, 40]);
    assert_eq!(leading[..2], [&names[0], &names[1]]);
}

#[test]
fn one_that_grows_is_waited_for_however_slowly_it_does() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    for step in 1..20 {
        assert!(!is_lead(&world.ask("b", &wish(0))), "{step}");
        for _ in 0..7 {
            world.pass(250);
            world.report("a", leads(step * MIB));
            world.report("b", follows("a", 0));
        }
    }
}

#[test]
fn a_leader_that_is_far_behind_is_not_waited_for() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("front", &wish(0))));
    assert!(!is_lead(&world.ask("b", &wish(0))));
    let stuck = leads(90 * MIB);
    world.report("front", stuck.clone());
    // Another leads since a while, and grows.
    let mut behind = 20 * MIB;
    for step in 0..8 {
        world.pass(250);
        behind += MIB;
        let slow = Standing {
            rate: 4 * MIB,
            ..leads(behind)
        };
        world.report("behind", slow);
        world.report("front", stuck.clone());
        world.report("b", follows("front", 90 * MIB));
        let said = world.ask("b", &wish(90 * MIB));
        assert!(!is_lead(&said), "{step}");
    }
    world.pass(250);
    world.report("behind", leads(behind + MIB));
    world.report("front", stuck);
    assert!(is_lead(&world.ask("b", &wish(90 * MIB))));
}

/// A holder that is gone since, as one that discards its layers; a leader behind a wall.
#[test]
fn whoever_can_reach_nobody_leads_after_a_while() {
    for standing in [standing(Part::Holds, 100 * MIB), leads(50 * MIB)] {
        let mut world = World::new();
        let is_holder = standing.part == Part::Holds;
        world.report("a", standing.clone());
        assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"));
        let doubts = vec![(PeerId::new("a"), Doubt::Gone)];
        let said = world.ask("b", &Wish { doubts, ..wish(0) });
        // Nobody else has it, or one who leads is there.
        assert_eq!(is_lead(&said), is_holder, "{said:?}");
        for step in 0..7 {
            world.pass(250);
            world.report("a", standing.clone());
            if !is_holder {
                assert!(!is_lead(&world.ask("b", &wish(0))), "{step}");
            }
        }
        world.pass(250);
        world.report("a", standing);
        assert!(is_lead(&world.ask("b", &wish(0))));
    }
}

#[test]
fn who_comes_late_to_a_silence_takes_its_place_in_the_line() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.pass_reporting(9000, &[("a", leads(0))]);
    for n in 0..5 {
        let said = world.ask(&format!("late{n}"), &wish(0));
        assert!(!is_lead(&said), "{n}: {said:?}");
    }
}

#[test]
fn a_queued_leader_is_not_replaced() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    let queued = standing(
        Part::Leads {
            lease: 1,
            is_queued: true,
        },
        0,
    );
    for _ in 0..60 {
        world.pass(250);
        world.report("a", queued.clone());
        let said = world.ask("b", &wish(0));
        let Said::Advice(Advice::Follow { is_queued, .. }) = said else {
            panic!("{said:?}");
        };
        assert!(is_queued);
    }
}

#[test]
fn a_leader_whose_mirror_is_silent_is_dead_after_five_reports() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.pass(250);
    world.report("a", leads(5 * MIB));
    world.report("b", follows("a", 5 * MIB));
    world.pass(1200);
    world.report("b", follows("a", 5 * MIB));
    assert!(!is_lead(&world.ask("b", &wish(5 * MIB))));
    world.pass(60);
    assert!(is_lead(&world.ask("b", &wish(5 * MIB))));
}

#[test]
fn the_furthest_succeeds() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.pass_reporting(
        500,
        &[
            ("a", leads(50 * MIB)),
            ("near", follows("a", 20 * MIB)),
            ("far", follows("a", 50 * MIB)),
        ],
    );
    world.report("a", standing(Part::Gone, 0));
    assert!(is_wait(&world.ask("near", &wish(20 * MIB))));
    assert!(is_lead(&world.ask("far", &wish(50 * MIB))));
    assert_eq!(parent(&world.ask("near", &wish(20 * MIB))), Some("far"));
}

#[test]
fn somebody_ahead_who_does_not_come_is_not_waited_for_long() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    let far = ("far", follows("a", 50 * MIB));
    world.report(far.0, far.1.clone());
    world.report("a", standing(Part::Gone, 0));
    assert!(is_wait(&world.ask("near", &wish(20 * MIB))));
    world.pass_reporting(500, std::slice::from_ref(&far));
    assert!(is_wait(&world.ask("near", &wish(20 * MIB))));
    world.pass_reporting(250, &[far]);
    assert!(is_lead(&world.ask("near", &wish(20 * MIB))));
}

#[test]
fn nobody_follows_one_who_is_behind_or_below() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    let full = Standing {
        free: 0,
        ..leads(50 * MIB)
    };
    world.report("a", full);
    world.report("behind", follows("a", 10 * MIB));
    world.report("child", follows("asker", 40 * MIB));
    world.report("ahead", follows("a", 45 * MIB));
    assert_eq!(parent(&world.ask("asker", &wish(40 * MIB))), Some("ahead"));
}

#[test]
fn one_childs_word_costs_a_parent_that_child_alone() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.report("a", leads(5 * MIB));
    for doubt in [Doubt::Refused, Doubt::Gone, Doubt::Silent, Doubt::Corrupt] {
        let doubts = vec![(PeerId::new("a"), doubt)];
        let liar = format!("liar {doubt}");
        let said = world.ask(&liar, &Wish { doubts, ..wish(0) });
        assert!(!is_lead(&said), "{said:?}");
    }
    assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"));
}

#[test]
fn the_word_of_one_however_often_and_whatever_he_says_costs_nobody_else_a_parent() {
    for doubt in [
        Doubt::Refused,
        Doubt::Gone,
        Doubt::Silent,
        Doubt::Corrupt,
        Doubt::Busy,
        Doubt::Behind,
    ] {
        let mut world = World::new();
        world.report("a", standing(Part::Holds, 100 * MIB));
        for _ in 0..5 {
            let doubts = vec![(PeerId::new("a"), doubt); 3];
            let said = world.ask("liar", &Wish { doubts, ..wish(0) });
            assert_ne!(parent(&said), Some("a"), "{doubt}");
        }

        assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"), "{doubt}");
    }
}

#[test]
fn who_is_behind_is_not_asked_again_at_once_and_later_is() {
    let mut world = World::new();
    world.report("a", standing(Part::Holds, 100 * MIB));
    world.report("b", standing(Part::Holds, 100 * MIB));
    for (behind, other) in [("a", "b"), ("b", "a")] {
        let doubts = vec![(PeerId::new(behind), Doubt::Behind)];
        let said = world.ask("x", &Wish { doubts, ..wish(0) });
        assert_eq!(parent(&said), Some(other));
        world.pass(1001);
    }
}

#[test]
fn who_is_busy_by_the_word_of_two_is_passed_over_for_a_moment() {
    let mut world = World::new();
    world.report("a", leads(50 * MIB));
    world.report("b", follows("a", 40 * MIB));
    for child in ["x", "y"] {
        let doubts = vec![(PeerId::new("a"), Doubt::Busy)];
        world.ask(child, &Wish { doubts, ..wish(0) });
        world.report(child, standing(Part::Gone, 0));
    }
    assert_eq!(parent(&world.ask("z", &wish(0))), Some("b"));
    world.report("z", standing(Part::Gone, 0));
    world.pass(1001);
    world.report("a", leads(51 * MIB));
    world.report("b", standing(Part::Gone, 0));

    assert_eq!(parent(&world.ask("z", &wish(0))), Some("a"));
}

fn takes(offset: u64) -> Standing {
    standing(Part::Takes, offset)
}

fn busy(holder: &str, offset: u64) -> Wish {
    Wish {
        doubts: vec![(PeerId::new(holder), Doubt::Busy)],
        ..wish(offset)
    }
}

#[test]
fn who_finds_holders_busy_follows_those_who_take_from_them() {
    let mut world = World::new();
    world.report("holder", standing(Part::Holds, 100 * MIB));
    world.report("taker", takes(10 * MIB));

    assert_eq!(parent(&world.ask("a", &wish(0))), Some("holder"));
    assert_eq!(parent(&world.ask("a", &busy("holder", 0))), Some("taker"));
    assert_eq!(parent(&world.ask("b", &busy("holder", 0))), Some("a"));
    world.report("a", follows("taker", MIB));
    world.report("b", follows("a", MIB));
    assert_eq!(parent(&world.ask("c", &busy("holder", 0))), Some("b"));
}

#[test]
fn who_takes_and_has_lost_its_holder_is_not_its_own_source_and_the_first_leads() {
    let mut world = World::new();
    world.report("taker", takes(10 * MIB));

    assert!(is_lead(&world.ask("taker", &wish(10 * MIB))));

    let mut world = World::new();
    world.report("one", takes(10 * MIB));
    world.report("two", takes(20 * MIB));
    assert_eq!(parent(&world.ask("one", &wish(10 * MIB))), Some("two"));
}

#[test]
fn takers_that_get_nothing_are_waited_for_no_longer_than_a_silent_leader() {
    let mut world = World::new();
    let mut waited = Duration::ZERO;
    loop {
        world.report("taker", takes(0));
        if is_lead(&world.ask("a", &wish(0))) {
            break;
        }
        world.pass(100);
        waited += Duration::from_millis(100);
        assert!(waited <= patience(1), "{waited:?}");
    }
    assert_eq!(waited, patience(1));
}

#[test]
fn wrong_bytes_by_the_word_of_two_are_nobodys() {
    let mut world = World::new();
    world.report("bad", standing(Part::Holds, 100 * MIB));
    world.report("good", follows("bad", 90 * MIB));
    for child in ["x", "y"] {
        let doubts = vec![(PeerId::new("bad"), Doubt::Corrupt)];
        world.ask(child, &Wish { doubts, ..wish(0) });
    }
    world.pass(5000);
    world.report("bad", standing(Part::Holds, 100 * MIB));
    assert_ne!(parent(&world.ask("z", &wish(0))), Some("bad"));
}

#[test]
fn the_same_zone_comes_first_while_it_has_room() {
    let mut world = World::new();
    let (a, b) = (in_zone("a", "east"), in_zone("b", "west"));
    world.ask_with(&a, &wish(0), Circumstances::default());
    world.table.report(&a, &[leads(50 * MIB)], world.now);
    world.table.report(&b, &[follows("a", 48 * MIB)], world.now);
    let mut west = Vec::new();
    for n in 0..3 {
        let asker = in_zone(&format!("w{n}"), "west");
        let said = world.ask_with(&asker, &wish(0), Circumstances::default());
        west.push(parent(&said).unwrap().to_string());
    }
    // Below b, each below the last: layers cross between zones once.
    assert_eq!(west, ["b", "w0", "w1"]);
}

#[test]
fn a_slow_one_takes_another_parent_and_leads_where_nobody_has_room() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    world.report("a", leads(50 * MIB));
    world.report("b", follows("a", 20 * MIB));
    world.report("c", follows("a", 45 * MIB));
    let slow = Wish {
        is_slow: true,
        ..wish(20 * MIB)
    };
    assert_eq!(parent(&world.ask("b", &slow)), Some("c"));
    assert!(is_wait(&world.ask("b", &slow)), "a has shown nothing yet");
    world.pass_reporting(
        1500,
        &[
            ("a", leads(80 * MIB)),
            ("b", {
                let rate = MIB;
                Standing {
                    rate,
                    ..follows("c", 20 * MIB)
                }
            }),
            ("c", follows("b", 45 * MIB)),
        ],
    );
    assert!(is_lead(&world.ask("b", &slow)));
}

#[test]
fn a_slow_2x_that_others_follow_goes_on_and_the_last_one_leads() {
    for (generation, expected) in [(Generation::One, true), (Generation::Two, false)] {
        let mut world = World::new();
        assert!(is_lead(&world.ask("a", &wish(0))));
        let slow = |parent, offset| Standing {
            rate: MIB,
            generation,
            ..follows(parent, offset)
        };
        for step in 0..8 {
            world.pass(250);
            let full = Standing {
                free: 0,
                ..leads(50 * MIB + step)
            };
            world.report("a", full);
            world.report("b", slow("a", 20 * MIB));
            world.report("c", slow("b", 20 * MIB));
        }
        let wish = Wish {
            is_slow: true,
            generation,
            ..wish(20 * MIB)
        };
        assert_eq!(is_lead(&world.ask("b", &wish)), expected);
        assert_eq!(is_lead(&world.ask("c", &wish)), !expected);
    }
}

/// As many as there are all become slow at once, and the registry is not endless: one goes first, and as many as have been
/// shown to be worth it after each second and a half.
#[test]
fn slow_ones_join_those_who_lead_as_long_as_it_is_worth_it() {
    type Rate = fn(u64) -> u64;
    let cases: [(&str, Rate, _); 3] = [
        ("the registry has enough", |_| 10 * MIB, [1, 2, 4]),
        ("no faster than the asker", |_| MIB, [0, 0, 0]),
        ("all get what one got", |n| 20 * MIB / n, [1, 0, 0]),
    ];
    for (case, rate_of, expected) in cases {
        let mut world = World::new();
        assert!(is_lead(&world.ask("n00", &wish(0))));
        let mut leading = vec!["n00".to_string()];
        let names: Vec<String> = (1..60).map(|n| format!("n{n:02}")).collect();
        for name in &names {
            world.ask(name, &wish(0));
        }
        let mut step = 0;
        let joined = [0; 3].map(|_| {
            for _ in 0..8 {
                world.pass(250);
                step += 1;
                for name in &leading {
                    let rate = rate_of(leading.len() as u64);
                    let offset = 50 * MIB + step;
                    world.report(
                        name,
                        Standing {
                            rate,
                            ..leads(offset)
                        },
                    );
                }
                for name in names.iter().filter(|name| !leading.contains(name)) {
                    let follows = follows("n00", 10 * MIB);
                    world.report(
                        name,
                        Standing {
                            rate: MIB,
                            ..follows
                        },
                    );
                }
            }
            let before = leading.len();
            for name in &names {
                let slow = Wish {
                    is_slow: true,
                    ..wish(10 * MIB)
                };
                if !leading.contains(name) && is_lead(&world.ask(name, &slow)) {
                    leading.push(name.clone());
                }
            }
            leading.len() - before
        });
        assert_eq!(joined, expected, "{case}");
    }
}

/// The leader's registry needs a second to its first byte, and each of those behind it comes back after 0.8 s. Meanwhile a node
/// says that there is room for so many beside the one that waits there.
fn a_waiting_chain_stays_as_it_is(beside: u32) {
    let mut world = World::new();
    assert!(is_lead(&world.ask("n0", &wish(0))));
    let names: Vec<String> = (1..8).map(|n| format!("n{n}")).collect();
    for (name, above) in names.iter().zip(["n0", "n1", "n2", "n3", "n4", "n5", "n6"]) {
        assert_eq!(parent(&world.ask(name, &wish(0))), Some(above));
        world.pass(5);
    }
    for _ in 0..3 {
        world.pass(250);
        world.report("n0", leads(0));
        for n in 1..8 {
            let waits = Standing {
                rate: 0,
                free: if n < 7 { beside } else { FANOUT },
                ..follows(&format!("n{}", n - 1), 0)
            };
            world.report(&format!("n{n}"), waits);
        }
    }

    for n in [2, 1, 3, 7, 6, 4, 5] {
        let said = world.ask(&format!("n{n}"), &wish(0));
        assert_eq!(parent(&said), Some(format!("n{}", n - 1).as_str()), "n{n}");
    }
}

#[test]
fn a_chain_that_waits_for_its_first_byte_stays_as_it_is() {
    a_waiting_chain_stays_as_it_is(FANOUT - 1);
}

/// A child of another layer lags.
#[test]
fn a_chain_whose_nodes_have_room_for_nobody_else_stays_as_it_is() {
    a_waiting_chain_stays_as_it_is(0);
}

/// Somebody else waits meanwhile where it did, and there is room for no more.
#[test]
fn who_was_sent_back_is_nobodys_second_child_for_having_been_there() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("n0", &wish(0))));
    assert_eq!(parent(&world.ask("n1", &wish(0))), Some("n0"));
    world.pass(650);
    let queued = Part::Follows {
        parent: PeerId::new("n0"),
        is_queued: true,
    };
    world.report("n0", leads(0));
    world.report("n1", standing(queued, 0));
    assert_eq!(parent(&world.ask("n2", &wish(0))), Some("n0"));
    world.pass(260);
    let full = |standing| Standing {
        free: 0,
        ..standing
    };
    world.report("n0", full(leads(0)));
    world.report("n2", follows("n0", 0));

    assert_eq!(parent(&world.ask("n1", &wish(0))), Some("n2"));
}

/// containerd 2.x is sent back while it waits for a first byte, and comes again when it has a place for that layer.
#[test]
fn who_was_sent_back_has_no_place_until_it_comes_again() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("n0", &wish(0))));
    for (name, above) in ["n1", "n2", "n3", "n4", "n5"]
        .iter()
        .zip(["n0", "n1", "n2", "n3", "n4"])
    {
        assert_eq!(parent(&world.ask(name, &wish(0))), Some(above));
    }
    let sent_back = |n: u32| {
        let parent = PeerId::new(format!("n{}", n - 1));
        let is_queued = true;
        Standing {
            rate: 0,
            // Another may wait there.
            free: 1,
            ..standing(Part::Follows { parent, is_queued }, 0)
        }
    };
    world.pass(600);
    world.report("n0", leads(0));
    for n in 1..6 {
        world.report(&format!("n{n}"), sent_back(n));
    }

    for (n, above) in [(4, "n0"), (2, "n4"), (5, "n2"), (1, "n5"), (3, "n1")] {
        let name = format!("n{n}");
        assert_eq!(parent(&world.ask(&name, &wish(0))), Some(above), "{name}");
        world.pass(20);
        // It was on its way.
        world.report(&name, sent_back(n));
    }
}

/// Two get it from one who has it, one of them slowly: who follows that one goes to the other.
#[test]
fn who_follows_a_slow_one_leaves_it_although_nobody_leads() {
    let mut world = World::new();
    let takes = |offset, rate| Standing {
        rate,
        node_rate: rate,
        ..standing(Part::Takes, offset)
    };
    world.report("fast", takes(50 * MIB, 20 * MIB));
    world.report("slow", takes(10 * MIB, MIB));
    assert!(parent(&world.ask("child", &wish(0))).is_some());
    let below = Standing {
        rate: MIB,
        node_rate: MIB,
        ..follows("slow", 9 * MIB)
    };
    world.pass_reporting(
        500,
        &[
            ("fast", takes(50 * MIB, 20 * MIB)),
            ("slow", takes(10 * MIB, MIB)),
        ],
    );
    let courses = world.report("child", below);
    assert_eq!(courses[0].progress.offset, 50 * MIB);
    assert_eq!(courses[0].progress.rate, 20 * MIB);
    let is_slow = Wish {
        is_slow: true,
        ..wish(9 * MIB)
    };

    assert_eq!(parent(&world.ask("child", &is_slow)), Some("fast"));

    world.report(
        "fast",
        Standing {
            free: 0,
            ..takes(60 * MIB, 20 * MIB)
        },
    );
    assert!(is_wait(&world.ask("child", &is_slow)), "others have it");
}

#[test]
fn a_report_before_its_children_have_come_makes_no_room_for_more() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"));
    assert_eq!(parent(&world.ask("c", &wish(0))), Some("b"));
    // It has not heard of b: a connection later than the first report.
    world.report("a", leads(0));
    for late in ["d", "e", "f", "g"] {
        assert_ne!(parent(&world.ask(late, &wish(0))), Some("a"), "{late}");
    }
}

#[test]
fn a_report_does_not_forget_who_is_still_on_the_way() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    for n in 0..4 {
        let said = world.ask(&format!("n{n}"), &wish(0));
        assert_eq!(parent(&said) == Some("a"), n < 1, "{n}: {said:?}");
        // Nobody has connected yet.
        world.report("a", leads(MIB));
    }
}

/// Links that are full in both directions carry each byte once, and a step costs time.
#[test]
fn the_first_ones_are_a_chain_and_the_next_another() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("n00", &wish(0))));
    let parents: Vec<String> = (1..20)
        .map(|n| {
            let said = world.ask(&format!("n{n:02}"), &wish(0));
            parent(&said).unwrap().to_string()
        })
        .collect();
    // To nine steps from the root, then the root's second child, then a chain below that one, then who comes after the root.
    let chains = (0..9).chain([0]).chain(10..18).chain([1]);
    let expected: Vec<String> = chains.map(|n| format!("n{n:02}")).collect();
    assert_eq!(parents, expected);
}

#[test]
fn a_report_that_was_on_its_way_does_not_forget_the_new_parent() {
    let mut world = World::new();
    assert!(is_lead(&world.ask("a", &wish(0))));
    assert_eq!(parent(&world.ask("b", &wish(0))), Some("a"));
    assert_eq!(parent(&world.ask("c", &wish(0))), Some("b"));
    world.report("b", follows("old", 0));
    world.report("c", follows("b", 0));
    // If b were an orphan, and c with it, a would be the only one.
    assert_eq!(parent(&world.ask("d", &wish(0))), Some("c"));

    world.pass(500);
    world.report("a", leads(MIB));
    world.report("c", follows("b", 0));
    world.report("b", follows("old", 0));
    assert_ne!(
        parent(&world.ask("e", &wish(0))),
        Some("c"),
        "it says so again"
    );
}

#[test]
fn a_2x_leaves_an_image_to_its_leader_until_that_one_has_come_to_it() {
    let mut world = World::new();
    let of_leader = |leader: &str| Circumstances {
        image_leader: Some(PeerId::new(leader)),
        ..Circumstances::default()
    };
    let wish = Wish {
        generation: Generation::Two,
        ..wish(0)
    };
    let said = world.ask_with(&peer("b"), &wish, of_leader("a"));
    let Said::Advice(Advice::Wait { is_queued, .. }) = said else {
        panic!("{said:?}");
    };
    assert!(is_queued);
    assert!(is_lead(&world.ask_with(&peer("a"), &wish, of_leader("a"))));
    let said = world.ask_with(&peer("b"), &wish, of_leader("a"));
    assert_eq!(parent(&said), Some("a"));
}

/// A 1.x gets what it leads at once, so that its image's leader is there within milliseconds or never comes.
#[test]
fn a_1x_leaves_an_image_to_its_leader_for_a_moment() {
    let of_a = Circumstances {
        image_leader: Some(PeerId::new("a")),
        ..Circumstances::default()
    };
    for comes in [true, false] {
        let mut world = World::new();
        assert!(is_wait(&world.ask_with(&peer("b"), &wish(0), of_a.clone())));
        world.pass(40);
        if comes {
            assert!(is_lead(&world.ask_with(&peer("a"), &wish(0), of_a.clone())));
            let said = world.ask_with(&peer("b"), &wish(0), of_a.clone());
            assert_eq!(parent(&said), Some("a"));
            continue;
        }
        world.pass(250);
        assert!(is_wait(&world.ask_with(&peer("b"), &wish(0), of_a.clone())));
        world.pass(10);
        assert!(is_lead(&world.ask_with(&peer("b"), &wish(0), of_a.clone())));
    }
    // It has asked for another part already: the rest is its own to get.
    let mut world = World::new();
    assert!(is_lead(&world.ask_with(&peer("b"), &wish(MIB), of_a)));
}

#[test]
fn an_image_is_led_by_a_1x_else_by_whoever_came_first_as_long_as_it_is_at_work() {
    let mut world = World::new();
    let (two, one) = (Generation::Two, Generation::One);
    let pulls = |world: &mut World, who: &str, generation, is_busy| {
        let leader = world
            .table
            .image(&PeerId::new(who), "app", generation, is_busy, world.now);
        leader.map(|leader| leader.to_string())
    };
    assert_eq!(pulls(&mut world, "b", two, true).as_deref(), Some("b"));
    world.pass(10);
    assert_eq!(pulls(&mut world, "c", two, true).as_deref(), Some("b"));
    assert_eq!(pulls(&mut world, "a", one, true).as_deref(), Some("a"));
    for _ in 0..4 {
        world.pass(400);
        pulls(&mut world, "a", one, false);
        pulls(&mut world, "c", two, true);
    }
    assert_eq!(pulls(&mut world, "c", two, true).as_deref(), Some("c"));
}

#[test]
fn a_new_meeting_point_hears_from_the_others_before_anybody_leads() {
    let mut world = World::new();
    let takeover = || Circumstances {
        is_takeover: true,
        ..Circumstances::default()
    };
    assert!(is_wait(&world.ask_with(&peer("b"), &wish(0), takeover())));
    world.pass(250);
    world.report("a", leads(30 * MIB));
    let said = world.ask_with(&peer("b"), &wish(0), takeover());
    assert_eq!(parent(&said), Some("a"));

    let mut alone = World::new();
    assert!(is_wait(&alone.ask_with(&peer("b"), &wish(0), takeover())));
    alone.pass(500);
    assert!(is_lead(&alone.ask_with(&peer("b"), &wish(0), takeover())));
}

#[test]
fn beyond_so_many_participants_askers_are_sent_to_those_who_take_part() {
    let mut world = World::new();
    world.ask("n0", &wish(0));
    for n in 1..MAX_ENTRIES {
        assert!(parent(&world.ask(&format!("n{n}"), &wish(0))).is_some());
    }
    let mut full: Vec<Standing> = vec![leads(9 * MIB)];
    full.extend((1..MAX_ENTRIES).map(|_| follows("n0", 8 * MIB)));
    for (n, standing) in full.into_iter().enumerate() {
        world.report(
            &format!("n{n}"),
            Standing {
                free: 0,
                ..standing
            },
        );
    }
    let mut sent = HashMap::new();
    for n in 0..2 * MAX_ENTRIES {
        match world.ask(&format!("late{n}"), &wish(0)) {
            Said::Descend(peer) => *sent.entry(peer.id).or_insert(0) += 1,
            other => panic!("{other:?}"),
        }
    }
    let most = sent.values().max().unwrap();
    assert!(sent.len() >= MAX_ENTRIES - 2 && *most <= 3, "{sent:?}");
}

#[test]
fn whoever_is_sent_to_one_that_takes_part_becomes_its_child_or_a_childs() {
    let mut world = World::new();
    let descended = || Circumstances {
        is_descended: true,
        ..Circumstances::default()
    };
    let said = world.ask_with(&peer("a"), &wish(0), descended());
    assert_eq!(said, Said::Astray);

    let now = world.now;
    world.table.own(&[follows("elsewhere", 10 * MIB)], now);
    let mut parents = Vec::new();
    for n in 0..6 {
        let name = format!("c{n}");
        let said = world.ask_with(&peer(&name), &wish(0), descended());
        parents.push(parent(&said).map(str::to_string));
    }
    let chain = ["me", "c0", "c1", "c2", "c3", "c4"].map(|name| Some(name.to_string()));
    assert_eq!(parents, chain);
}

fn descended() -> Circumstances {
    Circumstances {
        is_descended: true,
        ..Circumstances::default()
    }
}

#[test]
fn one_is_no_stranger_to_its_own_part_before_its_first_report_nor_after_its_last() {
    let mut world = World::new();
    let follow = Advice::Follow {
        parent: peer("elsewhere"),
        depth: 1,
        is_queued: false,
    };
    world.table.takes_part(&wish(0), &follow);
    let said = world.ask_with(&peer("a"), &wish(0), descended());
    assert_eq!(parent(&said), Some("me"));

    let now = world.now;
    world.table.own(&[standing(Part::Holds, 100 * MIB)], now);
    // What is whole is told of once.
    world.table.own(&[], now);
    world.pass(30_000);
    let said = world.ask_with(&peer("b"), &wish(0), descended());
    assert_eq!(parent(&said), Some("me"));
}

/// Which of those who take part are said to somebody without a place here, who finds each of them gone.
#[test]
fn the_doubts_of_those_who_have_no_place_are_heard() {
    let mut world = World::new();
    world.ask("n0", &wish(0));
    for n in 1..MAX_ENTRIES {
        world.ask(&format!("n{n}"), &wish(0));
    }
    let mut named = Vec::new();
    let mut late = wish(0);
    for _ in 0..10 {
        let Said::Descend(to) = world.ask("late", &late) else {
            panic!("nobody to go to after {named:?}");
        };
        assert!(!named.contains(&to.id), "{to:?} again");
        late.doubts = vec![(to.id.clone(), Doubt::Gone)];
        named.push(to.id);
    }
}

#[test]
fn nobody_sends_an_asker_to_himself() {
    let mut world = World::new();
    let now = world.now;
    world.table.own(&[follows("elsewhere", 10 * MIB)], now);
    for n in 1..MAX_ENTRIES {
        let said = world.ask_with(&peer(&format!("n{n}")), &wish(0), descended());
        assert!(parent(&said).is_some(), "{n}");
    }
    for n in 0..2 * MAX_ENTRIES {
        let said = world.ask_with(&peer(&format!("late{n}")), &wish(0), descended());
        let is_me = matches!(&said, Said::Descend(to) if to.id.as_str() == "me");
        assert!(!is_me, "late{n}");
    }
}

#[test]
fn what_is_over_is_forgotten() {
    let mut world = World::new();
    for n in 0..2 * MAX_FLIGHTS {
        let digest = Digest::sha256(&n.to_be_bytes());
        world.ask("a", &Wish { digest, ..wish(0) });
        assert!(world.table.flights.len() <= MAX_FLIGHTS);
    }
    world.pass(10_000);
    world.ask("a", &wish(0));
    assert_eq!(world.table.flights.len(), 1);
}
