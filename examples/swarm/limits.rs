//! Descriptors: every connection between two nodes of one process takes two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connection ends of a node at its busiest, while others join: 215 were seen (200 nodes).
const ENDS: u64 = 250;
/// What a process has beside.
const REST: u64 = 256;

/// So many at the most, by all nodes together. Of two nodes that dial each other in the same moment some have two
/// connections, for a while.
pub fn needed(nodes: usize) -> u64 {
    let nodes = nodes as u64;
    nodes * (nodes * 3 / 2).min(ENDS) + REST
}

/// Raises this process's limit to what is needed.
///
/// # Errors
/// The limit cannot be raised so far: what is needed, what there is, and the cure.
pub fn raise(needed: u64) -> Result<(), String> {
    let now = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if is_enough(now.current) {
        return Ok(());
    }
    let wanted = Rlimit {
        current: Some(needed),
        maximum: match is_enough(now.maximum) {
            true => now.maximum,
            false => Some(needed),
        },
    };
    setrlimit(Resource::Nofile, wanted).map_err(|why| refused(needed, now.maximum, &why))
}

fn refused(needed: u64, maximum: Option<u64>, why: &dyn std::fmt::Display) -> String {
    let maximum = maximum.map_or("any number of".to_owned(), |limit| limit.to_string());
    format!(
        "these nodes need {needed} descriptors, and this process may have {maximum} (RLIMIT_NOFILE; {why}). \
         Run it as root, or raise the hard limit before (`ulimit -Hn {needed}` as root, LimitNOFILE= of a unit; the \
         kernel's own bound is /proc/sys/fs/nr_open), or take fewer nodes, or connections that are memory (--in-memory)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_swarm_has_not_all_connections_and_a_small_one_has() {
        for (nodes, descriptors) in [(10, 406), (100, 15_256), (1000, 250_256)] {
            assert_eq!(needed(nodes), descriptors, "{nodes}");
        }
    }

    #[test]
    fn who_may_not_raise_it_hears_how_it_is_raised() {
        let text = refused(250_256, Some(20_000), &"Operation not permitted");
        for part in [
            "250256",
            "20000",
            "RLIMIT_NOFILE",
            "not permitted",
            "ulimit -Hn 250256",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_is_there_already_is_enough() {
        assert_eq!(raise(3), Ok(()));
    }
}
