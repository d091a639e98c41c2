//! PEER SELECTION: candidates, what is known of them and chance, to whom to ask next. Pure.

use rand::Rng;
use rand::RngExt as _;
use tokio::time::Instant;

use super::pace;
use super::scoreboard::Score;

/// What a decimal order of magnitude of delay, or of bytes per second, weighs against a request under way: a fast peer is
/// preferred until it is sending us that much more than a slow one.
const SLOWNESS: u32 = 4;

/// What another zone weighs, in the same coin: bytes between zones cost money and are scarce, and still a near peer that
/// sends us this much more than a far one is left alone. One that is saturated by others answers later, or says so.
const FAR: u32 = 4;

/// Somebody who may be asked.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub score: Score,
    /// It stands in another zone than this node, as both have said.
    pub is_far: bool,
}

/// The index of the candidate to ask next; none where there is none.
///
/// A peer that failed lately goes last, not away: a poor peer still beats no peer. Among the others the least of load,
/// distance and slowness wins, and else chance, so that a holder of a popular image is not asked by everybody at once.
/// Where zones are not known the round trip is in the time to the first byte.
pub fn best(candidates: &[Candidate], now: Instant, rng: &mut impl Rng) -> Option<usize> {
    candidates
        .iter()
        .enumerate()
        .min_by_key(|(_, Candidate { score, is_far })| {
            let far = if *is_far { FAR } else { 0 };
            let slowness = speed_class(score) + score.rate(now).map_or(0, pace::class);
            let cost = score.in_flight + SLOWNESS * slowness + far;
            (score.is_resting(now), cost, rng.random::<u32>())
        })
        .map(|(index, _)| index)
}

/// Decimal orders of magnitude of the time to first byte. Below 10 ms all are equal: the difference is noise beside
/// the transfer. A stranger counts as fast, or he would never be tried.
fn speed_class(score: &Score) -> u32 {
    let millis = score.first_byte.map_or(0, |time| time.as_millis());
    millis.checked_ilog10().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::scoreboard::Scoreboard;
    use crate::routing::PeerId;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use std::time::Duration;

    /// (time to first byte in ms, requests in flight, failures), and whether it is far
    type Situation = (Option<u64>, u32, u32);

    fn choose_of(situations: &[(Situation, bool)], seed: u64) -> Option<usize> {
        let scores: Vec<Situation> = situations.iter().map(|(situation, _)| *situation).collect();
        with_scores(&scores, |scores, now| {
            let far = situations.iter().map(|(_, is_far)| *is_far);
            let candidates = scores.iter().cloned().zip(far);
            let candidates = candidates.map(|(score, is_far)| Candidate { score, is_far });
            let candidates: Vec<Candidate> = candidates.collect();
            best(&candidates, now, &mut StdRng::seed_from_u64(seed))
        })
    }

    fn choose(situations: &[Situation], seed: u64) -> Option<usize> {
        let near: Vec<(Situation, bool)> = situations.iter().map(|s| (*s, false)).collect();
        choose_of(&near, seed)
    }

    fn with_scores<T>(situations: &[Situation], then: impl Fn(&[Score], Instant) -> T) -> T {
        let now = Instant::now();
        let board = Scoreboard::default();
        let mut under_way = Vec::new();
        let scores: Vec<Score> = situations
            .iter()
            .enumerate()
            .map(|(index, (first_byte, in_flight, failures))| {
                let peer = PeerId::new(index.to_string());
                if let Some(millis) = first_byte {
                    board.answered(&peer, Duration::from_millis(*millis), now);
                }
                under_way.extend((0..*in_flight).map(|_| board.begin(&peer, now)));
                (0..*failures).for_each(|_| board.failed(&peer, now));
                board.of(&peer, now)
            })
            .collect();
        then(&scores, now)
    }

    #[test]
    fn the_same_zone_is_preferred_and_not_worn_out() {
        let (near, far) = (false, true);
        // name, whether the far one (the second) is chosen, who there is
        type Case = (&'static str, bool, [(Situation, bool); 2]);
        let cases: &[Case] = &[
            (
                "near before far",
                false,
                [((Some(1), 0, 0), near), ((Some(1), 0, 0), far)],
            ),
            (
                "a little busier",
                false,
                [((Some(1), 3, 0), near), ((Some(1), 0, 0), far)],
            ),
            (
                "much busier",
                true,
                [((Some(1), 5, 0), near), ((Some(1), 0, 0), far)],
            ),
            (
                "much slower",
                true,
                [((Some(900), 0, 0), near), ((Some(1), 0, 0), far)],
            ),
            (
                "failed lately",
                true,
                [((Some(1), 0, 1), near), ((Some(1), 0, 0), far)],
            ),
        ];
        for (name, is_far, situations) in cases {
            for seed in 0..20 {
                assert_eq!(
                    choose_of(situations, seed),
                    Some(usize::from(*is_far)),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn the_order_of_reasons() {
        let cases: &[(&str, &[Situation], Option<usize>)] = &[
            ("nobody is there", &[], None),
            (
                "a failed peer still beats no peer",
                &[(None, 0, 3)],
                Some(0),
            ),
            (
                "a busy stranger beats a failed peer",
                &[(Some(1), 0, 1), (None, 5, 0)],
                Some(1),
            ),
            (
                "the less busy wins",
                &[(Some(1), 2, 0), (Some(9), 1, 0)],
                Some(1),
            ),
            (
                "a fast peer may be a little busier",
                &[(Some(900), 0, 0), (Some(1), 3, 0)],
                Some(1),
            ),
            (
                "and not much busier",
                &[(Some(90), 0, 0), (Some(1), 5, 0)],
                Some(0),
            ),
            (
                "the much faster wins",
                &[(Some(300), 0, 0), (Some(12), 0, 0)],
                Some(1),
            ),
            (
                "a stranger is tried",
                &[(Some(40), 0, 0), (None, 0, 0)],
                Some(1),
            ),
        ];
        for (name, situations, expected) in cases {
            for seed in 0..20 {
                assert_eq!(choose(situations, seed), *expected, "{name}");
            }
        }
    }

    #[test]
    fn who_brought_little_comes_after_who_brought_much_or_is_not_known() {
        with_scores(&[(Some(1), 0, 0); 2], |scores, now| {
            let board = Scoreboard::default();
            let slow = PeerId::new("slow");
            board.brings(&slow, 1_000_000, now);
            let slow = board.of(&slow, now);
            let candidates = [slow, scores[0].clone()];
            let candidates = candidates.map(|score| Candidate {
                score,
                is_far: false,
            });
            for seed in 0..20 {
                let mut rng = StdRng::seed_from_u64(seed);
                assert_eq!(best(&candidates, now, &mut rng), Some(1));
            }
        });
    }

    #[test]
    fn equals_share_the_load() {
        let mut chosen = [0; 4];
        for seed in 0..1000 {
            chosen[choose(&[(Some(2), 1, 0); 4], seed).unwrap()] += 1;
        }
        assert!(
            chosen.iter().all(|times| (200..300).contains(times)),
            "{chosen:?}"
        );
    }
}
