//! hosts.toml, and what containerd sends to us.

use super::*;

#[test]
fn what_containerd_reads() {
    use State::{Broken, Ok as Good, Skipped, Warning};
    run(vec![
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("does not know of the mirror", "Restart this pod"),
            |f| {
                f.hosts.files = Ok(Vec::new());
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("those of others (ghcr.io)", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![theirs(Whose::Others)]);
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Broken),
            ("cannot be read: denied", "containerdRegistryConfigPath"),
            |f| {
                f.hosts.files = Err("denied".into());
                observed(f).requests = 0;
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Good),
            ("past it go ghcr.io", ""),
            |f| {
                f.hosts.files.as_mut().unwrap().push(theirs(Whose::Others));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            (
                "ghcr.io in /etc/containerd/certs.d was edited",
                "remove its directory",
            ),
            |f| {
                f.hosts.files.as_mut().unwrap().push(theirs(Whose::Edited));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            ("cannot be read", "permissions"),
            |f| {
                f.hosts
                    .files
                    .as_mut()
                    .unwrap()
                    .push(theirs(Whose::Unreadable("denied".into())));
            },
        ),
        case(
            healthy(),
            ("hosts_toml", Warning),
            ("and not for docker.io", "left alone"),
            |f| {
                f.hosts.wanted = vec!["_default".into(), "docker.io".into()];
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("sends no token", "--data-dir"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::Suits)]);
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("another token", "--data-dir"),
            |f| {
                f.hosts.token = Ok(Some("4567".into()));
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("for some registries", "Restart"),
            |f| {
                f.hosts.files.as_mut().unwrap().push(ours(&[], Fit::Suits));
            },
        ),
        case(
            healthy(),
            ("token", Broken),
            ("and there is none", "--data-dir"),
            |f| {
                f.hosts.token = Ok(None);
                f.hosts.requires_token = true;
            },
        ),
        case(
            healthy(),
            ("token", Warning),
            ("knows of none", "peili registry"),
            |f| f.hosts.token = Ok(None),
        ),
        case(healthy(), ("token", Good), ("whoever reaches", ""), |f| {
            f.hosts.token = Ok(None);
            f.hosts.files = Ok(vec![ours(&[], Fit::Suits)]);
        }),
        case(healthy(), ("token", Skipped), ("no hosts.toml", ""), |f| {
            f.hosts.files = Ok(Vec::new())
        }),
        case(
            healthy(),
            ("basic_auth", Broken),
            ("does not send the user name", "Restart"),
            |f| {
                f.hosts.basic_auth = Ok(Some("Basic AAAA".into()));
            },
        ),
        case(
            healthy(),
            ("basic_auth", Good),
            ("sends the user name", ""),
            |f| {
                f.hosts.basic_auth = Ok(Some("Basic AAAA".into()));
                f.hosts.files = Ok(vec![ours(&[("authorization", "Basic AAAA")], Fit::Suits)]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Warning),
            ("not repeated", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::TooFew(URL.into()))]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Warning),
            ("helps nobody", "Restart"),
            |f| {
                f.hosts.files = Ok(vec![ours(&[], Fit::TooMany(URL.into()))]);
            },
        ),
        case(
            healthy(),
            ("hosts_version", Skipped),
            ("not known", ""),
            |f| f.hosts.version = None,
        ),
    ]);
}
