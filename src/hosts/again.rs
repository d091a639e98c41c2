//! Which targets are listed more than once, so that containerd 2.x can be told "ask again".
//!
//! A 404 at an entry that is followed by another one of the same mirror commits to nothing: containerd comes back, and
//! other layers ask in between. Only for containerd 2.x, as 1.x keeps a layer's download permit from its first host to
//! its last and would only pay more 404s; and only at this node's own address, which answers or refuses at once, where
//! one that drops packets costs a dial for each entry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::mark::Mark;
use super::target::{Target, Targets};
use super::toml::{self, Entry};
use super::version::Version;
use crate::oci::distribution::AGAIN;

/// Entries before the last. Of 12 layers that five nodes wanted at once (containerd 2.1), the last was there after 18.1 s
/// with none, 13.0 s with one and 12.2 s with three, by when no request waited longer than 0.84 s.
const ENTRIES: usize = 3;

/// What a hosts.toml says to the containerd that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    Suits,
    /// Not written by us, or changed since.
    NotOurs,
    /// containerd 2.x cannot be told to ask again at this target (a URL): nodes that pull an image at the same time take
    /// parts of it from the registry more than once.
    TooFew(String),
    /// Every miss is asked several times at this target (a URL), and it helps nobody.
    TooMany(String),
}

/// Whether the `text` of a hosts.toml is what [`super::configure`] would write for a containerd of this `version`, as far
/// as that depends on the version. `node_ips` as in [`super::Config`]. A misfit is cured by another `configure`.
pub fn fit(text: &str, version: &Version, node_ips: &[IpAddr]) -> Fit {
    fit_where(text, version, |target| is_own(target, node_ips))
}

fn fit_where(text: &str, version: &Version, is_own: impl Fn(&Target) -> bool) -> Fit {
    let (Some(mark), Some(mut urls)) = (Mark::read(text), toml::urls(text)) else {
        return Fit::NotOurs;
    };
    // What follows was there before us.
    urls.truncate(mark.hosts);
    let last_words: Vec<_> = urls.iter().filter(|url| !url.contains(AGAIN)).collect();
    let Ok(targets) = Targets::list(&last_words) else {
        return Fit::NotOurs;
    };
    for target in &targets.0 {
        let before = urls.iter().take_while(|url| **url != target.to_string());
        let found = before.filter(|url| url.starts_with(&format!("{target}{AGAIN}/")));
        let wanted = count(target, Some(version), &is_own);
        match found.count().cmp(&wanted) {
            std::cmp::Ordering::Less => return Fit::TooFew(target.to_string()),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => return Fit::TooMany(target.to_string()),
        }
    }
    Fit::Suits
}

/// Entries of `target` before its last one.
fn count(target: &Target, version: Option<&Version>, is_own: impl Fn(&Target) -> bool) -> usize {
    let gives_way = version.is_some_and(Version::gives_way);
    // Below a path there is another registry, which has no entries of ours.
    if gives_way && !target.has_path() && is_own(target) {
        ENTRIES
    } else {
        0
    }
}

/// The host tables, in the order in which containerd shall ask. No version: as for 1.x.
pub fn entries(
    targets: &Targets,
    version: Option<&Version>,
    is_own: impl Fn(&Target) -> bool,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for target in &targets.0 {
        // containerd takes such a path as it is, where it appends /v2 to the plain URL.
        let again = 1..=count(target, version, &is_own);
        entries.extend(again.map(|n| Entry::Again(format!("{target}{AGAIN}/{n}/v2"))));
        entries.push(match target.has_path() {
            true => Entry::Below(target.to_string()),
            false => Entry::Last(target.to_string()),
        });
    }
    entries
}

/// Whether a target is on this node: loopback, one of `node_ips`, or an address of this machine as it is seen from here
/// (a pod in a network of its own sees only the pod's). Other names than `localhost` are not resolved.
pub fn is_own(target: &Target, node_ips: &[IpAddr]) -> bool {
    let is_here = |ip: IpAddr| ip.is_loopback() || node_ips.contains(&ip) || is_this_machines(ip);
    target.is_localhost() || target.ip().is_some_and(is_here)
}

/// Asks the kernel by binding a socket, which sends nothing: it lets nobody have an address that is not its own, and
/// knows them all. The interfaces' list would take netlink, and says the same.
fn is_this_machines(ip: IpAddr) -> bool {
    let can_bind = |ip: IpAddr| UdpSocket::bind((ip, 0)).is_ok();
    // Nobody's: reserved (RFC 1112, section 4) and discarded (RFC 6666). Who gets one, as on a load balancer with
    // ip_nonlocal_bind, gets any, and has learnt nothing.
    let nobodys: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::new(240, 0, 0, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
    };
    !ip.is_unspecified() && !ip.is_multicast() && can_bind(ip) && !can_bind(nobodys)
}

#[cfg(test)]
mod tests {
    use super::super::{TagResolution, existing};
    use super::*;

    fn targets(texts: &[&str]) -> Targets {
        Targets::list(texts).unwrap_or_else(|e| panic!("{e:?}"))
    }

    fn version(text: &str) -> Version {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    /// In these tests the node is 192.0.2.7.
    fn is_node(target: &Target) -> bool {
        target.ip() == Some([192, 0, 2, 7].into())
    }

    #[test]
    fn only_containerd_2_and_only_at_the_nodes_own_address_is_offered_more_than_one_entry() {
        let (own, other) = ("http://192.0.2.7:30020", "http://192.0.2.8:30020");
        let below = "http://192.0.2.7:5000/v2/proxy";
        let again = [1, 2, 3].map(|n| Entry::Again(format!("{own}/again/{n}/v2")));
        let last = |url: &str| Entry::Last(url.to_string());
        let four = [&again[..], &[last(own)]].concat();
        for (asked, containerd, expected) in [
            (&[own][..], Some("2.1.9"), four.clone()),
            (&[own], Some("1.7.24~ds1"), vec![last(own)]),
            (&[own], None, vec![last(own)]),
            (&[other], Some("2.1.9"), vec![last(other)]),
            (
                &[other, own],
                Some("2.0"),
                [&[last(other)], &four[..]].concat(),
            ),
            (
                &[own, other],
                Some("2.0"),
                [&four[..], &[last(other)]].concat(),
            ),
            (
                &[own, below],
                Some("2.0"),
                [&four[..], &[Entry::Below(below.to_string())]].concat(),
            ),
        ] {
            let containerd = containerd.map(version);

            let found = entries(&targets(asked), containerd.as_ref(), is_node);

            assert_eq!(found, expected, "{asked:?} {containerd:?}");
        }
    }

    #[test]
    fn a_target_is_the_nodes_own_by_loopback_by_its_interfaces_or_by_what_the_pod_was_told() {
        let told = [
            "198.51.100.7".parse().unwrap(),
            "2001:db8::7".parse().unwrap(),
        ];
        for (url, own) in [
            ("http://127.0.0.1:30020", true),
            ("http://127.8.8.8", true),
            ("http://[::1]:30020", true),
            ("http://localhost:30020", true),
            ("http://198.51.100.7:30020", true),
            ("http://[2001:db8::7]:30020", true),
            ("http://[2001:db8:0::7]:30020", true),
            ("http://198.51.100.8:30020", false),
            ("http://[2001:db8::8]:30020", false),
            ("http://0.0.0.0:30020", false),
            ("https://mirror.example", false),
            ("http://localhost.example:30020", false),
        ] {
            let targets = targets(&[url]);

            assert_eq!(is_own(&targets.0[0], &told), own, "{url}");
        }
        assert!(is_this_machines(Ipv4Addr::LOCALHOST.into()));
    }

    fn hosts(entries: Vec<Entry>) -> toml::Hosts {
        toml::Hosts {
            release: "peili".to_string(),
            entries,
            tags: TagResolution::default(),
            headers: Vec::new(),
        }
    }

    fn file(entries: Vec<Entry>) -> String {
        hosts(entries).alone(None)
    }

    #[test]
    fn a_file_is_told_from_one_for_another_containerd() {
        let own = "http://192.0.2.7:30020";
        let written = |urls: &[&str], containerd: &str| {
            let entries = entries(&targets(urls), Some(&version(containerd)), is_node);
            file(entries)
        };
        let (one, four) = (written(&[own], "1.7"), written(&[own], "2.1"));
        let proxy = written(&[own, "http://192.0.2.7:1/v2/hub"], "2.1");
        let remote = written(&["http://192.0.2.8:1"], "2.1");
        let turned = {
            let mut entries = entries(&targets(&[own]), Some(&version("2.1")), is_node);
            entries.reverse();
            file(entries)
        };
        let upstream_first = |containerd: &str| {
            let entries = entries(&targets(&[own]), Some(&version(containerd)), is_node);
            let hosts = toml::Hosts {
                tags: TagResolution::UpstreamFirst,
                ..hosts(entries)
            };
            // A registry on the node itself, which is listed once.
            hosts.alone(Some("http://192.0.2.7:5000"))
        };
        let (first_one, first_four) = (upstream_first("1.7"), upstream_first("2.1"));
        let mine = "\n[host.\"http://192.0.2.9:1\"]\n";
        let before_mine = {
            let entries = entries(&targets(&[own]), Some(&version("2.1")), is_node);
            existing::prepended(&hosts(entries), mine, None).expect("merged")
        };
        let (few, many) = (Fit::TooFew(own.into()), Fit::TooMany(own.into()));
        for (text, containerd, expected) in [
            (&one, "1.7", Fit::Suits),
            (&four, "2.1", Fit::Suits),
            (&remote, "1.7", Fit::Suits),
            (&proxy, "2.1", Fit::Suits),
            (&before_mine, "2.1", Fit::Suits),
            (&before_mine, "1.7", many.clone()),
            (&remote, "2.1", Fit::Suits),
            (&first_one, "1.7", Fit::Suits),
            (&first_four, "2.1", Fit::Suits),
            (&first_one, "2.1", few.clone()),
            (&first_four, "1.7", many.clone()),
            (&one, "2.1", few.clone()),
            (&four, "1.7", many),
            // After the last word nobody asks again.
            (&turned, "2.1", few),
            (
                &"server = \"https://mine\"\n".to_string(),
                "2.1",
                Fit::NotOurs,
            ),
            (&format!("{one}[host."), "2.1", Fit::NotOurs),
        ] {
            let found = fit_where(text, &version(containerd), is_node);

            assert_eq!(found, expected, "{containerd} {text}");
        }
    }
}
