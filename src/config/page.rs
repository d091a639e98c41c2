//! `docs/configuration.md`, written from the options themselves, so that it cannot say anything else than `--help`.

use clap::{Arg, Command, CommandFactory as _};

use super::options::RawCommandLine;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

const PREFACE: &str = "\
# Configuration

Every option of every command, written by `make docs` from what `peili <command> --help` says.

An option counts more than its variable, and an empty variable is as good as none. A list takes several values after one
option, and commas in a variable. true or false is written with `=` (`--prepend-existing=true`; without a value it is
true). Durations are written as Go has them: `20ms`, `1.5s`, `1h30m`. `:5000` is port 5000 of every address, IPv6 and
IPv4.

What cannot be used is refused before anything is changed, all mistakes at once, with exit code 64:

```
peili: 2 values cannot be used
  --metrics-addr [METRICS_ADDR] \"9090\" has no port: write it as :5000, 192.0.2.7:5000 or [2001:db8::7]:5000
  --bootstrap-kind [BOOTSTRAP_KIND] is missing: write dns, http or static
```
";

/// The page that the options make.
fn page() -> String {
    let mut all = RawCommandLine::command();
    all.build();
    let mut page = PREFACE.to_string();
    for command in all.get_subcommands().filter(|c| c.get_name() != "help") {
        page += &section(&all, command);
    }
    page
}

/// It takes every option of `registry`, which stand on the page once.
const SAME_AS_REGISTRY: &str = "doctor";

fn is_registrys(all: &Command, option: &Arg) -> bool {
    let registry = all.find_subcommand("registry").expect("the daemon");
    options(registry).any(|its| its.get_id() == option.get_id())
}

fn section(all: &Command, command: &Command) -> String {
    let name = command.get_name();
    let about = command.get_long_about().or(command.get_about());
    let about = about.expect("a description").to_string();
    // clap takes the full stop off a single paragraph.
    let about = about.trim_end_matches('.');
    let mut section = format!("\n## peili {name}\n\n{about}.\n");
    if name == SAME_AS_REGISTRY {
        section += "\nBeside all options of [peili registry](#peili-registry):\n";
    }
    let own: Vec<&Arg> = options(command)
        .filter(|option| name != SAME_AS_REGISTRY || !is_registrys(all, option))
        .collect();
    let mut headings: Vec<&str> = Vec::new();
    for heading in own.iter().filter_map(|option| option.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        section += &format!(
            "\n### {heading}\n\n| option | variable | default | what it does, and costs |\n|---|---|---|---|\n"
        );
        for option in own.iter().filter(|o| o.get_help_heading() == Some(heading)) {
            section += &row(option);
        }
    }
    let frame = command.get_after_long_help().expect("examples").to_string();
    section + &format!("\n```\n{frame}\n```\n")
}

/// All but `--help`, which is every command's.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|a| a.get_id() != "help")
}

fn row(option: &Arg) -> String {
    let code = |text: &str| format!("`{}`", text.replace('|', "\\|"));
    let none = "–".to_string();
    let values = option.get_value_names().unwrap_or_default().join(" ");
    let takes_several = option.get_num_args().is_some_and(|n| n.max_values() > 1);
    let more = if takes_several { " …" } else { "" };
    let defaults: Vec<_> = option.get_default_values().iter().collect();
    let default = match defaults[..] {
        [value] if !value.is_empty() => code(&value.to_string_lossy()),
        _ => none.clone(),
    };
    let variable = option.get_env().map(|env| code(&env.to_string_lossy()));
    let help = option.get_long_help().or(option.get_help());
    let help = help.expect("what it does").to_string();
    let help = help.trim_end_matches('.');
    let name = match option.get_long() {
        Some(flag) => format!("--{flag} <{values}>{more}"),
        None => format!("<{values}>{more}"),
    };
    format!(
        "| {} | {} | {default} | {}. |\n",
        code(&name),
        variable.unwrap_or(none),
        help.replace('|', "\\|")
            .replace("\n\n", "<br>")
            .replace('\n', " "),
    )
}

#[test]
fn the_page_says_what_the_options_say() {
    let page = page();
    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &page).expect("docs/configuration.md can be written");
    }

    let kept = std::fs::read_to_string(PATH).unwrap_or_default();

    assert!(
        kept == page,
        "docs/configuration.md is not what the options say: run make docs"
    );
}

#[test]
fn the_mistakes_on_the_page_are_what_the_parser_says() {
    let words = "peili registry --metrics-addr 9090";
    let refusal = super::parse(words.split_whitespace()).expect_err("two mistakes");
    let mut told: Vec<_> = refusal.text.lines().collect();
    told.pop();
    for line in told {
        assert!(PREFACE.lines().any(|shown| shown == line), "{line}");
    }
}

#[test]
fn every_option_stands_below_a_heading_and_every_command_has_examples_that_can_be_typed() {
    let mut all = RawCommandLine::command();
    all.build();
    for command in all.get_subcommands().filter(|c| c.get_name() != "help") {
        let name = command.get_name();
        for option in options(command) {
            let id = option.get_id();
            assert!(
                option.get_help_heading().is_some(),
                "{name} {id}: give it a help_heading of config/help.rs"
            );
        }
        let frame = command
            .get_after_long_help()
            .unwrap_or_default()
            .to_string();
        for line in frame.lines() {
            assert!(line.len() <= 80, "folded in a terminal: {line}");
        }
        let (_, examples) = frame.split_once("Examples:\n").expect(name);
        let examples = examples.replace("\\\n", "");
        let examples: Vec<_> = examples
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("peili "))
            .collect();
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            let words = example.split_whitespace();
            assert!(words.clone().nth(1) == Some(name), "{example}");
            if let Err(refusal) = super::parse(words) {
                panic!("{example}\n{}", refusal.text);
            }
        }
    }
}

#[test]
fn help_fits_a_terminal_of_80_columns_and_names_every_variable() {
    for columns in [80, 100] {
        let mut all = RawCommandLine::command().term_width(columns);
        all.build();
        for command in all.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
            let folded = help.split_whitespace().collect::<Vec<_>>().join(" ");
            for option in options(command) {
                let Some(variable) = option.get_env() else {
                    continue;
                };
                let said = format!("[env: {}=", variable.display());
                assert!(folded.contains(&said), "{said}\n{help}");
            }
        }
    }
}
