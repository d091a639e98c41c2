//! Whether hosts.toml names us, as who we are, to the containerd that reads it; and whether we are there.

use crate::basic_auth;
use crate::doctor::facts::{Hosts, Port, Served};
use crate::doctor::live::{Live, Silence};
use crate::doctor::profile::Profile;
use crate::finding::Finding;
use crate::hosts::{Fit, Found, Mirror, Whose};
use crate::node_token;

const AGAIN: &str = "Restart this pod: its init container runs `peili configuration`. Without the chart, run it by hand with \
                     the same options.";

/// The mirrors of all files that are ours, with those.
fn ours(hosts: &Hosts) -> impl Iterator<Item = (&Found, &[Mirror], Option<&Fit>)> {
    let files = hosts.files.iter().flatten();
    files.filter_map(|found| match &found.whose {
        Whose::Ours { mirrors, fit } => Some((found, &mirrors[..], fit.as_ref())),
        _ => None,
    })
}

/// Names, of which there may be many.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whether there is a hosts.toml of ours. `has_asked`: containerd has come to us, whatever can be seen from here.
pub fn written(hosts: &Hosts, is_needed: bool, has_asked: bool, profile: &Profile) -> Finding {
    const CHECK: &str = "hosts_toml";
    let directory = hosts.directory.display();
    let files = match &hosts.files {
        Ok(files) => files,
        Err(why) if !is_needed => {
            return Finding::skipped(CHECK, format!("{directory} cannot be read: {why}"));
        }
        Err(why) if has_asked => {
            return Finding::skipped(
                CHECK,
                format!(
                    "{directory} cannot be read here ({why}), but containerd asks, so it knows of the mirror"
                ),
            );
        }
        Err(why) => {
            return Finding::broken(
                CHECK,
                format!("{directory} cannot be read: {why}"),
                format!(
                    "Where the chart writes it, it is mounted here, too: see that \
                     peili.containerdRegistryConfigPath is right (on {} it is {}), and restart this pod.",
                    profile.name, profile.certs_d
                ),
            );
        }
    };
    let named = |wanted: fn(&Whose) -> bool| -> Vec<&str> {
        let of = files.iter().filter(|found| wanted(&found.whose));
        of.map(|found| found.registry.as_str()).collect()
    };
    let ours = named(|whose| matches!(whose, Whose::Ours { .. }));
    let others = named(|whose| matches!(whose, Whose::Others));
    let edited = named(|whose| matches!(whose, Whose::Edited));
    let unreadable = named(|whose| matches!(whose, Whose::Unreadable(_)));
    let missing: Vec<&str> = match &hosts.wanted[..] {
        [] if !ours.contains(&"_default") && !edited.contains(&"_default") => vec!["_default"],
        wanted => {
            let there = |name: &&str| !ours.contains(name) && !edited.contains(name);
            wanted.iter().map(String::as_str).filter(there).collect()
        }
    };
    if ours.is_empty() && edited.is_empty() {
        let seen = match &others[..] {
            [] => format!(
                "no hosts.toml of ours is in {directory}: containerd does not know of the mirror"
            ),
            others => format!(
                "no hosts.toml of ours is in {directory}, only those of others ({}): containerd does not know of the mirror",
                some(others)
            ),
        };
        return match is_needed {
            true => Finding::broken(CHECK, seen, AGAIN),
            false => Finding::skipped(CHECK, seen),
        };
    }
    if !unreadable.is_empty() {
        return Finding::warning(
            CHECK,
            format!("{} in {directory} cannot be read", some(&unreadable)),
            "containerd cannot read them, either: correct their permissions or remove them.",
        );
    }
    if !missing.is_empty() {
        return Finding::warning(
            CHECK,
            format!(
                "{directory} names the mirror for {}, and not for {}",
                some(&ours),
                some(&missing)
            ),
            format!(
                "{AGAIN} A file of somebody else's is left alone: remove its directory first, or set prependExisting."
            ),
        );
    }
    if !edited.is_empty() {
        return Finding::warning(
            CHECK,
            format!(
                "{} in {directory} was edited since it was written, and does not follow what is configured",
                some(&edited)
            ),
            format!("Where that is not meant so, remove its directory. {AGAIN}"),
        );
    }
    let beside = match &others[..] {
        [] => String::new(),
        others => format!(
            "; past it go {}, which somebody else has written",
            some(others)
        ),
    };
    Finding::ok(
        CHECK,
        format!("{directory} names the mirror for {}{beside}", some(&ours)),
    )
}

/// Whether containerd shows who it is: for a stranger nothing is fetched.
pub fn token(hosts: &Hosts) -> Finding {
    const CHECK: &str = "token";
    let sent = header(hosts, node_token::HEADER);
    match (&hosts.token, sent) {
        (_, Sent::Nobody) => {
            Finding::skipped(CHECK, "no hosts.toml of ours is there that could have it")
        }
        (Err(why), _) => Finding::broken(
            CHECK,
            format!("the node's token cannot be used: {why}"),
            "Give this pod and its init container the same --data-dir, readable to both.",
        ),
        (Ok(None), _) if hosts.requires_token => Finding::broken(
            CHECK,
            "only who sends the node's token is served (--require-node-token), and there is none",
            format!("Give `peili configuration` the same --data-dir. {AGAIN}"),
        ),
        (Ok(None), Sent::All(None)) => Finding::ok(
            CHECK,
            "the node has no token: whoever reaches the mirror can use it",
        ),
        (Ok(None), _) => Finding::warning(
            CHECK,
            "containerd sends a token, and this daemon knows of none: whoever reaches the mirror can use it",
            "Give `peili registry` the --data-dir that `peili configuration` has.",
        ),
        (Ok(Some(token)), Sent::All(Some(sent))) if sent == token => {
            Finding::ok(CHECK, "containerd sends this node's token")
        }
        (Ok(Some(_)), Sent::All(Some(_))) => Finding::broken(
            CHECK,
            "containerd sends another token than this node's: it is taken for a stranger, and nothing is fetched for it",
            format!("Give `peili configuration` and `peili registry` the same --data-dir. {AGAIN}"),
        ),
        (Ok(Some(_)), Sent::All(None)) => Finding::broken(
            CHECK,
            "containerd sends no token: it is taken for a stranger, and nothing is fetched for it",
            format!("Give `peili configuration` the same --data-dir. {AGAIN}"),
        ),
        (Ok(Some(_)), Sent::Mixed) => Finding::broken(
            CHECK,
            "containerd sends this node's token for some registries, and not for others",
            AGAIN,
        ),
    }
}

/// The user name and the password that everybody must send.
pub fn basic_auth(hosts: &Hosts) -> Finding {
    const CHECK: &str = "basic_auth";
    let sent = header(hosts, &basic_auth::HEADER.to_ascii_lowercase());
    match (&hosts.basic_auth, sent) {
        (_, Sent::Nobody) => {
            Finding::skipped(CHECK, "no hosts.toml of ours is there that could have it")
        }
        (Err(why), _) => Finding::broken(
            CHECK,
            format!("the Secret cannot be used: {why}"),
            "Give it both keys, username and password.",
        ),
        (Ok(None), _) => Finding::ok(CHECK, "nobody is asked for a user name and a password"),
        (Ok(Some(wanted)), Sent::All(Some(sent))) if sent == wanted => Finding::ok(
            CHECK,
            "containerd sends the user name and the password of the Secret",
        ),
        (Ok(Some(_)), _) => Finding::broken(
            CHECK,
            "containerd does not send the user name and the password of the Secret: it is answered 401 once the Secret's \
             last value is forgotten, and goes to the registry",
            AGAIN,
        ),
    }
}

enum Sent<'a> {
    /// There are no tables of ours.
    Nobody,
    /// Every table of ours says the same.
    All(Option<&'a str>),
    Mixed,
}

/// What our tables send under this name; of those on this node, if any is known to be.
fn header<'a>(hosts: &'a Hosts, name: &str) -> Sent<'a> {
    let all: Vec<&Mirror> = ours(hosts).flat_map(|(_, mirrors, _)| mirrors).collect();
    let has_own = all.iter().any(|mirror| mirror.is_own);
    let here = all.iter().filter(|mirror| mirror.is_own || !has_own);
    let mut values: Vec<Option<&str>> = here
        .map(|mirror| mirror.headers.get(name).map(String::as_str))
        .collect();
    values.dedup();
    match values[..] {
        [] => Sent::Nobody,
        [value] => Sent::All(value),
        _ => Sent::Mixed,
    }
}

/// Whether the files are for the containerd that reads them.
pub fn version(hosts: &Hosts) -> Finding {
    const CHECK: &str = "hosts_version";
    let Some(version) = &hosts.version else {
        return Finding::skipped(CHECK, "it is not known which containerd reads hosts.toml");
    };
    if ours(hosts).next().is_none() {
        return Finding::skipped(CHECK, "no hosts.toml of ours is there");
    }
    let misfit = ours(hosts).find_map(|(found, _, fit)| match fit {
        Some(Fit::Suits) | None => None,
        Some(fit) => Some((found, fit)),
    });
    match misfit {
        None => Finding::ok(
            CHECK,
            format!("hosts.toml is as containerd {version} needs it"),
        ),
        Some((found, Fit::TooFew(url))) => Finding::warning(
            CHECK,
            format!(
                "{} is for containerd 1.x, and {version} reads it: {url} is not repeated, so nodes that pull an image at the \
                 same time take parts of it from the registry more than once",
                found.path.display()
            ),
            AGAIN,
        ),
        Some((found, Fit::TooMany(url))) => Finding::warning(
            CHECK,
            format!(
                "{} is for containerd 2.x, and {version} reads it: every miss is asked several times at {url}, which helps nobody",
                found.path.display()
            ),
            AGAIN,
        ),
        Some((found, _)) => Finding::warning(
            CHECK,
            format!("{} cannot be told", found.path.display()),
            AGAIN,
        ),
    }
}

/// Whether we answer where containerd looks for us.
pub fn ports(ports: &[Port], live: Result<&Live, &Silence>) -> Finding {
    const CHECK: &str = "port";
    if ports.is_empty() {
        return Finding::skipped(
            CHECK,
            "hosts.toml names no address of ours that could be asked",
        );
    }
    let asked = live.is_ok_and(|live| live.observed.requests > 0);
    for Port { url, answer } in ports {
        let cure = "See that the daemon runs and is ready, and that --mirror-targets names the port at which it is reached on \
                    the node: with the chart that is service.registry.nodePort, by hostPort (a CNI without portmap has none: \
                    use service.registry.mode=hostNetwork).";
        match answer {
            Ok(Served::Ready) => {}
            Ok(Served::NotReady(awaited)) => {
                return Finding::warning(
                    CHECK,
                    format!("{url} answers and is not ready: {awaited}"),
                    "Until it is, a request is answered by a quick 404 and goes to the registry. What is awaited says why.",
                );
            }
            Ok(Served::Unauthorized) => {
                return Finding::broken(
                    CHECK,
                    format!(
                        "{url} does not take the user name and the password that hosts.toml has"
                    ),
                    AGAIN,
                );
            }
            Ok(Served::Other(what)) => {
                return Finding::broken(
                    CHECK,
                    format!("at {url} is no Peili: {what}"),
                    "Another program has the port: give one of them another one (service.registry.nodePort).",
                );
            }
            // A pod's network may not lead back to its own node's port.
            Err(why) if asked => {
                return Finding::ok(
                    CHECK,
                    format!(
                        "{url} cannot be reached from here ({why}), but containerd reaches it: it has asked"
                    ),
                );
            }
            Err(why) => {
                return Finding::broken(CHECK, format!("nobody answers at {url}: {why}"), cure);
            }
        }
    }
    let urls: Vec<&str> = ports.iter().map(|port| port.url.as_str()).collect();
    Finding::ok(
        CHECK,
        format!("the mirror answers at {}, and is ready", some(&urls)),
    )
}
