//! From facts to findings: no IO, no clock. Each check is a function over what it needs of the facts.

mod containerd;
mod hosts;
mod live;
mod peers;

use super::facts::Facts;
use super::profile::Generation;
use crate::finding::Finding;

/// All findings, in the order in which one thing rests on the other.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let profile = facts.profile;
    let live = facts.live.as_ref();
    let mut findings = Vec::new();
    match &facts.containerd {
        Some(containerd) => {
            let version = containerd.version.as_deref().ok();
            let generation = Generation::of(version);
            let observed = live.map(|live| &live.observed);
            let directory = &facts.hosts.directory;
            findings.extend([
                self::containerd::socket(containerd, profile),
                self::containerd::socket_mount(containerd),
                self::containerd::config_path(containerd, observed, directory, profile, generation),
                self::containerd::layers(containerd, observed, profile, generation),
                self::containerd::content(&containerd.content, profile),
            ]);
        }
        None => findings.push(Finding::skipped(
            "socket",
            "this node's content is a directory (--store=oci-layout), and no containerd is asked",
        )),
    }
    let has_asked = live.is_ok_and(|live| live.observed.requests > 0);
    let is_needed = facts.containerd.is_some();
    findings.push(hosts::written(&facts.hosts, is_needed, has_asked, profile));
    findings.push(hosts::token(&facts.hosts));
    findings.push(hosts::basic_auth(&facts.hosts));
    findings.push(hosts::version(&facts.hosts));
    findings.push(hosts::ports(&facts.ports, live));
    findings.push(live::daemon(live));
    findings.push(peers::bootstrap(&facts.bootstrap, live));
    findings.push(peers::members(&facts.members, live));
    findings.push(peers::known(&facts.bootstrap, live));
    findings.push(peers::delivery(live));
    findings
}

#[cfg(test)]
mod tests;
