//! PEER SELECTION: candidates, what is known of them and chance, to whom to ask next. Pure.

use rand::Rng;
use rand::RngExt as _;
use tokio::time::Instant;

use super::scoreboard::Score;

/// What a decimal order of magnitude of delay weighs against a request under way: a fast peer is preferred until it is
/// sending us that much more than a slow one.
const SLOWNESS: u32 = 4;

/// The index of the candidate to ask next; none where there is none.
///
/// A peer that failed lately goes last, not away: a poor peer still beats no peer. Among the others the least of load
/// and slowness wins, and else chance, so that a holder of a popular image is not asked by everybody at once.
pub fn best(scores: &[Score], now: Instant, rng: &mut impl Rng) -> Option<usize> {
    scores
        .iter()
        .enumerate()
        .min_by_key(|(_, score)| {
            let cost = score.in_flight + SLOWNESS * speed_class(score);
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

    /// (time to first byte in ms, requests in flight, failures)
    type Situation = (Option<u64>, u32, u32);

    fn choose(situations: &[Situation], seed: u64) -> Option<usize> {
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
        best(&scores, now, &mut StdRng::seed_from_u64(seed))
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
