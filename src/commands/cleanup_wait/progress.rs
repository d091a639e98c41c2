//! Who has answered how often, and what is said of it: one line for each change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// What is known of one name's addresses.
#[derive(Debug)]
pub struct Progress {
    host: String,
    port: u16,
    /// How often in a row an address must answer.
    threshold: u32,
    nodes: BTreeMap<IpAddr, Node>,
    name: Name,
}

#[derive(Debug, PartialEq, Eq)]
enum Name {
    NotAsked,
    Empty,
    Resolved,
    Trouble(String),
}

#[derive(Debug, Default)]
struct Node {
    /// Answers in a row.
    answers: u32,
    /// None: it was not asked yet.
    last: Option<Result<(), String>>,
}

impl Progress {
    pub fn new(host: &str, port: u16, threshold: u32) -> Self {
        Self {
            host: host.to_string(),
            port,
            threshold,
            nodes: BTreeMap::new(),
            name: Name::NotAsked,
        }
    }

    /// Who is to be asked.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.keys().copied()
    }

    /// What the name server has said. Where it could not, whoever was there before is taken to be there still.
    pub fn resolved(&mut self, found: Result<Vec<IpAddr>, String>) -> Vec<String> {
        let mut lines = Vec::new();
        let name = match found {
            Err(reason) => Name::Trouble(reason),
            Ok(ips) => {
                let ips: BTreeSet<_> = ips.iter().map(IpAddr::to_canonical).collect();
                let gone: Vec<_> = self.addresses().filter(|ip| !ips.contains(ip)).collect();
                for ip in gone {
                    self.nodes.remove(&ip);
                    lines.push(format!("{}: not among the addresses any more", self.at(ip)));
                }
                for ip in &ips {
                    self.nodes.entry(*ip).or_default();
                }
                match ips.is_empty() {
                    true => Name::Empty,
                    false => Name::Resolved,
                }
            }
        };
        if name != self.name {
            match &name {
                Name::Trouble(reason) => {
                    lines.push(format!("{}: cannot be resolved: {reason}", self.host));
                }
                Name::Empty => lines.push(format!("{}: has no address yet", self.host)),
                Name::Resolved | Name::NotAsked => {}
            }
        }
        self.name = name;
        lines
    }

    /// What came of asking one.
    pub fn probed(&mut self, ip: IpAddr, answer: Result<(), String>) -> Option<String> {
        let at = self.at(ip);
        let node = self.nodes.get_mut(&ip)?;
        let is_new = node.last.as_ref() != Some(&answer);
        node.answers = match answer {
            Ok(()) => node.answers.saturating_add(1),
            Err(_) => 0,
        };
        let (answers, line) = (
            node.answers,
            match &answer {
                Ok(()) => format!("{at}: answers"),
                Err(reason) => format!("{at}: not yet: {reason}"),
            },
        );
        node.last = Some(answer);
        if answers == self.threshold {
            let done = self.nodes.values().filter(|n| n.answers >= self.threshold);
            return Some(format!(
                "{at}: done ({} of {})",
                done.count(),
                self.nodes.len()
            ));
        }
        is_new.then_some(line)
    }

    /// Whether everybody is there and has answered often enough.
    pub fn is_done(&self) -> bool {
        let mut nodes = self.nodes.values();
        self.name == Name::Resolved && nodes.all(|node| node.answers >= self.threshold)
    }

    pub fn summary(&self) -> String {
        format!(
            "{}: all {} addresses have answered {} times in a row",
            self.host,
            self.nodes.len(),
            self.threshold
        )
    }

    /// Who is waited for, and why.
    pub fn missing(&self) -> String {
        let mut missing = match &self.name {
            Name::NotAsked => vec![format!("{} is not resolved yet", self.host)],
            Name::Empty => vec![format!("{} has no address", self.host)],
            Name::Trouble(reason) => vec![format!("{} cannot be resolved: {reason}", self.host)],
            Name::Resolved => Vec::new(),
        };
        for (ip, node) in &self.nodes {
            let why = match &node.last {
                _ if node.answers >= self.threshold => continue,
                None => "was not asked yet".to_string(),
                Some(Ok(())) => format!("answered {} of {} times", node.answers, self.threshold),
                Some(Err(reason)) => reason.clone(),
            };
            missing.push(format!("{} ({why})", self.at(*ip)));
        }
        missing.join(", ")
    }

    fn at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

    fn refused() -> Result<(), String> {
        Err("refused".to_string())
    }

    #[test]
    fn everybody_must_answer_often_enough_in_a_row_and_both_addresses_of_a_pod_count() {
        let mut progress = Progress::new("c.test", 8080, 2);
        assert!(!progress.is_done());
        assert_eq!(
            progress.resolved(Ok(vec![])),
            ["c.test: has no address yet"]
        );
        assert!(!progress.is_done(), "no address is not the same as done");
        assert_eq!(progress.resolved(Ok(vec![])), [""; 0], "said once");

        assert_eq!(progress.resolved(Ok(vec![A, B])), [""; 0]);
        assert!(!progress.is_done());
        let mut said = Vec::new();
        for (a, b) in [
            (refused(), refused()),
            (refused(), Ok(())),
            (Ok(()), refused()),
            (Ok(()), Ok(())),
            (Ok(()), Ok(())),
        ] {
            assert!(!progress.is_done());
            said.extend(progress.probed(A, a));
            said.extend(progress.probed(B, b));
        }
        assert!(progress.is_done());
        assert_eq!(
            said,
            [
                "10.0.0.1:8080: not yet: refused",
                "[fd00::1]:8080: not yet: refused",
                "[fd00::1]:8080: answers",
                "10.0.0.1:8080: answers",
                "[fd00::1]:8080: not yet: refused",
                "10.0.0.1:8080: done (1 of 2)",
                "[fd00::1]:8080: answers",
                "[fd00::1]:8080: done (2 of 2)",
            ]
        );
        assert_eq!(progress.missing(), "");
    }

    #[test]
    fn addresses_come_and_go_and_a_name_server_in_trouble_proves_nothing() {
        let mut progress = Progress::new("c.test", 80, 1);
        progress.resolved(Ok(vec![A]));
        progress.probed(A, Ok(()));
        assert!(progress.is_done());

        let trouble = || Err("timed out".to_string());
        assert_eq!(
            progress.resolved(trouble()),
            ["c.test: cannot be resolved: timed out"]
        );
        assert!(!progress.is_done(), "there may be others");
        assert_eq!(progress.resolved(trouble()), [""; 0]);
        assert_eq!(progress.missing(), "c.test cannot be resolved: timed out");

        progress.resolved(Ok(vec![A, B]));
        assert!(!progress.is_done(), "a new one");
        assert_eq!(progress.missing(), "[fd00::1]:80 (was not asked yet)");
        progress.probed(B, refused());
        assert_eq!(progress.missing(), "[fd00::1]:80 (refused)");
        assert_eq!(
            progress.resolved(Ok(vec![A])),
            ["[fd00::1]:80: not among the addresses any more"]
        );
        assert!(progress.is_done());
        assert_eq!(progress.probed(B, Ok(())), None, "it is not there any more");
    }

    #[test]
    fn an_address_written_in_two_ways_is_one() {
        let mut progress = Progress::new("c.test", 80, 3);
        progress.resolved(Ok(vec![A, "::ffff:10.0.0.1".parse().unwrap()]));
        assert_eq!(progress.addresses().collect::<Vec<_>>(), [A]);
        progress.probed(A, Ok(()));
        assert_eq!(progress.missing(), "10.0.0.1:80 (answered 1 of 3 times)");
    }
}
