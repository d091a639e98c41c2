//! The subcommands that do one thing and end.
//!
//! What was done goes to stdout, one line for each file; logs go to stderr, as everywhere.

pub mod ask;
pub mod cleanup_wait;
pub mod try_pull;

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use tracing::{info, warn};

use crate::config::{Configuration, ContainerdVersion, Format};
use crate::content::containerd;
use crate::doctor::Report;
use crate::hosts::{self, Done};
use crate::{basic_auth, membership, node_token};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Hosts(#[from] hosts::Error),
    #[error(transparent)]
    BasicAuth(#[from] basic_auth::Error),
    #[error(transparent)]
    Membership(#[from] membership::Error),
    #[error(transparent)]
    Token(#[from] node_token::Error),
    /// Nobody reads what was done; it is done nevertheless.
    #[error("cannot write to stdout: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    /// As sysexits.h has them, so that a script can tell trying again from giving up.
    pub fn exit_code(&self) -> u8 {
        /// EX_IOERR
        const IO: u8 = 74;
        /// EX_TEMPFAIL
        const TRY_AGAIN: u8 = 75;
        /// EX_CONFIG
        const CONFIG: u8 = 78;
        match self {
            Error::Hosts(hosts::Error::Busy(_)) => TRY_AGAIN,
            Error::Hosts(hosts::Error::OtherRelease { .. })
            | Error::BasicAuth(_)
            | Error::Membership(_) => CONFIG,
            Error::Hosts(hosts::Error::Io { .. }) | Error::Token(_) | Error::Output(_) => IO,
        }
    }
}

/// Makes this node's containerd ask us, and known to us where there is a place for its token.
pub fn configuration(config: &Configuration, out: &mut impl Write) -> Result<(), Error> {
    let mut hosts = config.hosts.clone();
    hosts.containerd = match &config.containerd {
        ContainerdVersion::Said(version) => Some(version.clone()),
        ContainerdVersion::Asked { socket } => ask_version(socket),
    };
    if let Some(data_dir) = &config.data_dir {
        hosts.headers.push(hosts::Header {
            name: node_token::HEADER,
            value: node_token::load_or_create(data_dir)?,
        });
    }
    if let Some(credentials) = basic_auth::load(&config.basic_auth_dir)? {
        hosts.headers.push(hosts::Header {
            name: basic_auth::HEADER,
            value: credentials.header(),
        });
    }
    let done = hosts::configure(&hosts)?;
    let directory = hosts.directory.display();
    info!(
        %directory,
        files = done.len(),
        containerd = hosts.containerd.as_ref().map(tracing::field::display),
        again = hosts.again(),
        tags = %hosts.tags,
        "containerd is configured to ask the mirror"
    );
    report(&done, out)
}

/// None where containerd does not say it, after a warning: where its socket is not mounted, everything else is done.
fn ask_version(socket: &Path) -> Option<hosts::Version> {
    let asked = || -> anyhow::Result<hosts::Version> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let said = runtime.block_on(containerd::version(socket))?;
        // Its cure speaks of an option, and nobody has typed this.
        said.parse()
            .map_err(|_| anyhow::anyhow!("{said:?} is no version"))
    };
    asked()
        .inspect_err(|e| {
            warn!(
                error = %e,
                "containerd's version is unknown and 1.x is assumed. If it is 2.x, nodes that pull an image at the same \
                 time take parts of it from the registry more than once: say it with --containerd-version, or name the \
                 socket with --containerd-sock"
            );
        })
        .ok()
}

/// Puts back what containerd was configured to before us. Serving `/readyz` afterwards is the caller's part.
pub fn cleanup(
    directory: &Path,
    release: &hosts::Release,
    out: &mut impl Write,
) -> Result<(), Error> {
    let done = hosts::cleanup(directory, release)?;
    info!(directory = %directory.display(), files = done.len(), "containerd no longer asks the mirror");
    report(&done, out)
}

fn report(done: &[Done], out: &mut impl Write) -> Result<(), Error> {
    for done in done {
        warn_of(done);
        writeln!(out, "{done}")?;
    }
    Ok(())
}

/// What an operator may not expect, and what to do where it is not meant so.
fn warn_of(done: &Done) {
    match done {
        Done::LeftAlone(path) => warn!(
            path = %path.display(),
            "added by somebody else and left alone: containerd prefers it to the wildcard"
        ),
        Done::Edited(path) => warn!(
            path = %path.display(),
            "edited since it was written, and left alone. It does not follow what is configured: to have it written \
             again, remove its directory"
        ),
        Done::Unmergeable(path, reason) => warn!(
            path = %path.display(),
            error = %reason,
            "cannot be read, so nothing is put before it and its registry is not mirrored. containerd cannot read it, \
             either: correct it, or remove it"
        ),
        Done::OfAnotherRelease(path, release) => warn!(
            path = %path.display(),
            release,
            "written by another release and left alone: its own cleanup takes it away, or --release-name with its name"
        ),
        Done::NotOurs(path) => warn!(
            path = %path.display(),
            "there is nothing of ours beside this backup, so it is left to who made it"
        ),
        Done::Written(_)
        | Done::Unchanged(_)
        | Done::BackedUp(_)
        | Done::Kept(_)
        | Done::Removed(_)
        | Done::Restored(_) => {}
    }
}

/// Tells what was found; the exit code for it.
pub fn doctor(report: &Report, format: Format, out: &mut impl Write) -> Result<u8, Error> {
    match format {
        Format::Text => report.text(out)?,
        Format::Json => {
            let line = serde_json::to_string(&report.json()).map_err(io::Error::from)?;
            writeln!(out, "{line}")?;
        }
    }
    Ok(report.verdict().exit_code())
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rustc: Option<&'static str>,
}

/// The image's build sets the two variables; a plain `cargo build` knows neither.
const VERSION: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    commit: option_env!("PEILI_COMMIT"),
    rustc: option_env!("PEILI_RUSTC"),
};

pub fn version(format: Format, out: &mut impl Write) -> Result<(), Error> {
    match format {
        Format::Text => writeln!(out, "peili {}", VERSION.version)?,
        Format::Json => {
            let line = serde_json::to_string(&VERSION).map_err(io::Error::from)?;
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(command: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> String {
        let mut out = Vec::new();
        command(&mut out).expect("done");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn the_version_is_told_to_people_and_to_programs() {
        let text = said(|out| version(Format::Text, out));
        let json = said(|out| version(Format::Json, out));

        assert_eq!(text, format!("peili {}\n", env!("CARGO_PKG_VERSION")));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    }

    fn release() -> hosts::Release {
        "peili".parse().expect("a name")
    }

    /// One target, for every registry.
    fn hosts_in(directory: std::path::PathBuf) -> hosts::Config {
        hosts::Config {
            directory,
            release: release(),
            registries: vec![hosts::Registry::Every],
            targets: hosts::Targets::list(&["http://192.0.2.7:30020"]).expect("targets"),
            tags: hosts::TagResolution::default(),
            prepend_existing: false,
            headers: Vec::new(),
            containerd: None,
            node_ips: Vec::new(),
        }
    }

    fn nobody_says(directory: &Path) -> ContainerdVersion {
        let socket = directory.join("containerd.sock");
        ContainerdVersion::Asked { socket }
    }

    #[test]
    fn each_file_written_and_restored_is_one_line() {
        let root = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| root.path().join(name).display().to_string();
        std::fs::create_dir(root.path().join("ghcr.io")).expect("mkdir");
        let config = Configuration {
            hosts: hosts_in(root.path().to_path_buf()),
            containerd: nobody_says(root.path()),
            data_dir: None,
            basic_auth_dir: root.path().join("absent"),
        };

        assert_eq!(
            said(|out| configuration(&config, out)),
            format!(
                "written {}\nbacked up {}\n",
                at("_default/hosts.toml"),
                at("ghcr.io")
            )
        );
        assert_eq!(
            said(|out| cleanup(root.path(), &release(), out)),
            format!("restored {}\nremoved {}\n", at("ghcr.io"), at("_default"))
        );
    }

    #[test]
    fn a_socket_that_is_not_there_or_does_not_answer_costs_a_version_and_no_more() {
        let root = tempfile::tempdir().expect("tempdir");
        let silent = root.path().join("silent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&silent).expect("bind");
        let begun = std::time::Instant::now();

        assert_eq!(ask_version(&root.path().join("absent.sock")), None);
        assert_eq!(ask_version(root.path()), None);
        assert_eq!(ask_version(&silent), None);

        // Only the silent one was waited for, two seconds.
        let took = begun.elapsed().as_secs_f64();
        assert!((2.0..4.0).contains(&took), "{took} s");
    }

    #[test]
    fn what_a_secret_says_is_sent_to_us_and_half_of_it_is_a_mistake_of_the_configuration() {
        let root = tempfile::tempdir().expect("tempdir");
        let secret = root.path().join("secret");
        std::fs::create_dir(&secret).expect("mkdir");
        std::fs::write(secret.join("username"), "Aladdin").expect("write");
        let mut config = Configuration {
            hosts: hosts_in(root.path().join("certs.d")),
            containerd: nobody_says(root.path()),
            data_dir: Some(root.path().join("data")),
            basic_auth_dir: secret.clone(),
        };

        let error = configuration(&config, &mut Vec::new()).expect_err("no password");
        assert_eq!(error.exit_code(), 78);
        assert!(!config.hosts.directory.exists());

        std::fs::write(secret.join("password"), "open sesame").expect("write");
        configuration(&config, &mut Vec::new()).expect("both");
        let file = config.hosts.directory.join("_default/hosts.toml");
        let text = std::fs::read_to_string(&file).expect("ours");
        let header = r#"Authorization = ["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]"#;
        assert!(
            text.contains(header) && text.contains("x-peili-token"),
            "{text}"
        );

        // And a second release is one, too.
        config.hosts.release = "other".parse().expect("a name");
        let error = configuration(&config, &mut Vec::new()).expect_err("another's");
        assert_eq!(error.exit_code(), 78);
    }

    #[test]
    fn a_directory_that_cannot_be_changed_ends_with_a_code_and_its_name() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        let config = Configuration {
            hosts: hosts_in(file.path().join("certs.d")),
            containerd: nobody_says(file.path()),
            data_dir: None,
            basic_auth_dir: file.path().with_extension("absent"),
        };

        let error = configuration(&config, &mut Vec::new()).expect_err("below a file");

        assert_eq!(error.exit_code(), 74);
        let name = file.path().display().to_string();
        assert!(error.to_string().contains(&name), "{error}");
    }
}
