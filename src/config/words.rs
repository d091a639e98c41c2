//! From words to options, by clap; what it would stop at is noted, and the rest is read nevertheless.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory as _, FromArgMatches as _};

use super::options::RawCommandLine;
use super::reader::Reader;
use super::{Refusal, USAGE};

/// Splits the words, the program's name first. Options that nobody knows become mistakes of `reader`.
pub(super) fn split(
    mut words: Vec<OsString>,
    reader: &mut Reader,
) -> Result<RawCommandLine, Refusal> {
    loop {
        let matches = without_empty_variables(RawCommandLine::command())
            .try_get_matches_from(&words)
            .and_then(|matches| RawCommandLine::from_arg_matches(&matches));
        let error = match matches {
            Ok(raw) => return Ok(raw),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(at) = unknown(&error, &words)
        {
            note(&error, &mut words, at, reader);
            continue;
        }
        return Err(
            match RawCommandLine::command().try_get_matches_from(&words) {
                // Help names all variables, empty ones, too.
                Err(e) if !e.use_stderr() => Refusal {
                    text: e.to_string(),
                    code: 0,
                },
                _ => Refusal {
                    text: error.to_string(),
                    code: USAGE,
                },
            },
        );
    }
}

/// A variable that is set to nothing is not set: a pod's description often has no other way to leave one out.
fn without_empty_variables(command: Command) -> Command {
    let unset = |arg: Arg| match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.to_str().is_some_and(|v| v.trim().is_empty()) => {
            arg.env(Resettable::Reset)
        }
        _ => arg,
    };
    command
        .mut_args(unset)
        .mut_subcommands(move |command| command.mut_args(unset))
}

/// Where the word stands that clap could do nothing with, if it is one of a subcommand.
fn unknown(error: &clap::Error, words: &[OsString]) -> Option<usize> {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let is_command = |word: &OsString| RawCommandLine::command().find_subcommand(word).is_some();
    let command = words.iter().position(is_command)?;
    let is_it = |word: &OsString| {
        let word = word.to_string_lossy();
        word == *unknown
            || word
                .split_once('=')
                .is_some_and(|(name, _)| name == unknown)
    };
    let at = words[command + 1..].iter().position(is_it)?;
    Some(command + 1 + at)
}

/// Takes the word at `at` out, with what would be its values, and says what is wrong with it.
fn note(error: &clap::Error, words: &mut Vec<OsString>, at: usize, reader: &mut Reader) {
    let is_option = |word: &OsString| word.to_string_lossy().starts_with('-');
    let before = words[at - 1].to_string_lossy().into_owned();
    let word = words.remove(at);
    let text = word.to_string_lossy();
    if !is_option(&word) {
        // The options that are true or false take their value with a sign only.
        let cure = if before.starts_with("--") && !before.contains('=') {
            format!("if it is the value of {before}, write {before}={text}")
        } else {
            "leave it out".to_string()
        };
        return reader.word(&text, "belongs to no option", &cure);
    }
    if !text.contains('=') {
        let values = words[at..].iter().take_while(|word| !is_option(word));
        let values = values.count();
        words.drain(at..at + values);
    }
    let cure = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(similar)) => format!("{similar} is one"),
        _ => "leave it out".to_string(),
    };
    let name = text.split_once('=').map_or(&*text, |(name, _)| name);
    reader.word(name, "is no option of this command", &cure);
}

#[cfg(test)]
mod tests {
    use crate::config::{parse, tests::with_env};

    fn refused(words: &str) -> String {
        let refusal = parse(words.split_whitespace()).expect_err(words);
        assert_eq!(refusal.code, 64, "{words}");
        refusal.text
    }

    #[test]
    fn options_that_nobody_knows_are_told_beside_all_other_mistakes() {
        let text = refused(
            "peili configuration --mirror-target http://192.0.2.7:30020 http://192.0.2.8:30020 \
             --nodes=3 --resolve-tags false --data-dir data",
        );

        assert_eq!(
            text,
            "peili: 5 values cannot be used\n  \
             --mirror-target is no option of this command: --mirror-targets is one\n  \
             --nodes is no option of this command: leave it out\n  \
             false belongs to no option: if it is the value of --resolve-tags, write --resolve-tags=false\n  \
             --mirror-targets [MIRROR_TARGETS] is missing: write the URL at which this node's \
             containerd reaches us, such as http://192.0.2.7:30020\n  \
             --data-dir [DATA_DIR] \"data\" is not an absolute path: begin it with /\n\
             See peili <command> --help.\n"
        );
    }

    #[test]
    fn stray_words_and_unknown_commands_are_no_riddle() {
        for (words, said) in [
            (
                "peili cleanup now",
                "now belongs to no option: leave it out",
            ),
            (
                "peili cleanup --force --addr",
                "a value is required for '--addr <[IP]:PORT>'",
            ),
            (
                "peili --force cleanup",
                "unexpected argument '--force' found",
            ),
            ("peili serve", "unrecognized subcommand 'serve'"),
        ] {
            let text = refused(words);
            assert!(text.contains(said), "{words}\n{text}");
        }
    }

    #[test]
    fn an_empty_variable_is_none_and_an_empty_value_is_a_mistake() {
        let configuration = "configuration --mirror-targets http://a --containerd-version 2.1";
        for (variables, words) in [
            (
                &[
                    "LOG_LEVEL",
                    "METRICS_ADDR",
                    "MAX_UPLOADS",
                    "REQUIRE_NODE_TOKEN",
                    "STORE",
                ][..],
                "registry --bootstrap-kind dns --dns-bootstrap-domain d",
            ),
            (
                &[
                    "RESOLVE_TAGS",
                    "PREPEND_EXISTING",
                    "BASIC_AUTH_DIR",
                    "MIRRORED_REGISTRIES",
                ],
                configuration,
            ),
            (
                &["RELEASE_NAME", "ADDR", "CONTAINERD_REGISTRY_CONFIG_PATH"],
                "cleanup",
            ),
        ] {
            let unset = with_env(&[], words);
            assert!(unset.contains("CommandLine {"), "{unset}");
            for value in ["", " "] {
                let set: Vec<_> = variables.iter().map(|name| (*name, value)).collect();
                let line = |said: &str| {
                    let found = said.lines().find(|line| line.contains("CommandLine {"));
                    found.map(str::to_string)
                };
                assert_eq!(line(&with_env(&set, words)), line(&unset), "{variables:?}");
            }
        }
        let text = refused("peili registry --bootstrap-kind= --metrics-addr= --max-uploads=");
        for said in [
            "  --bootstrap-kind [BOOTSTRAP_KIND] is missing: write dns, http or static\n",
            "  --metrics-addr [METRICS_ADDR] is empty: write it as :5000, 192.0.2.7:5000 or",
            "  --max-uploads [MAX_UPLOADS] is empty: write 64\n",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
        let help = with_env(&[("STORE", "")], "registry --help");
        assert!(help.contains("[env: STORE=]"), "{help}");
    }

    #[test]
    fn lists_and_truths_in_variables_are_read_as_people_write_them() {
        let said = with_env(
            &[
                (
                    "MIRRORED_REGISTRIES",
                    " https://docker.io,\n https://ghcr.io,",
                ),
                ("PREPEND_EXISTING", "True"),
                ("RESOLVE_TAGS", "0"),
                ("MIRROR_TARGETS", "http://a, nothing"),
            ],
            "configuration --containerd-version 2.1",
        );

        assert!(said.contains("one value cannot be used"), "{said}");
        assert!(
            said.contains("--mirror-targets [MIRROR_TARGETS] \"nothing\" has no scheme"),
            "{said}"
        );
        for value in ["yes", "tRUE", "2"] {
            let said = with_env(
                &[("RESOLVE_TAGS", value)],
                "configuration --mirror-targets http://a",
            );
            let mistake =
                format!("--resolve-tags [RESOLVE_TAGS] {value:?} is neither true nor false");
            assert!(said.contains(&mistake), "{said}");
        }
    }
}
