//! The grammar as it is shown: commands in groups.

use super::args::Cli;
use clap::CommandFactory;

/// Commands in the order of the help, by what one does with them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Run a node", &["agent", "check", "doctor", "detach"]),
    ("Inspect", &["status", "top", "policy", "flows", "explain", "trace"]),
    ("Change", &["weight", "rollout"]),
    ("Other", &["completions", "help"]),
];

/// `-o` is the same everywhere.
fn with_format(command: clap::Command) -> clap::Command {
    let help = |argument: clap::Arg| match argument.get_id().as_str() {
        "output" => argument.help("Format of standard output"),
        _ => argument,
    };
    command.mut_subcommands(with_format).mut_args(help)
}

/// The grammar, its help with the commands in groups.
pub fn command() -> clap::Command {
    let command = with_format(Cli::command());
    let about = |name: &str| match name {
        "help" => Some("Show the help of a command: splitter help weight".to_owned()),
        name => command.find_subcommand(name).and_then(|found| found.get_about()).map(ToString::to_string),
    };
    let known: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
    let rest = command.get_subcommands().filter(|found| !found.is_hide_set() && !known.contains(&found.get_name()));
    let rest: Vec<String> = rest.map(|found| found.get_name().to_owned()).collect();
    let mut text = String::new();
    for (title, names) in GROUPS {
        text += &format!("{title}:\n");
        let rest = rest.iter().map(String::as_str).filter(|_| title == "Other");
        for (name, about) in names.iter().copied().chain(rest).filter_map(|name| Some((name, about(name)?))) {
            text += &format!("  {name:<12} {about}\n");
        }
        text.push('\n');
    }
    command.help_template(format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}Options:\n{{options}}{{after-help}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_help_names_every_command_in_its_group() {
        let help = command().render_help().to_string();
        for found in Cli::command().get_subcommands().filter(|found| !found.is_hide_set()) {
            let line = format!("  {:<12} {}", found.get_name(), found.get_about().unwrap());
            assert!(help.contains(&line), "{line} in\n{help}");
        }
        for part in ["Run a node:", "Usage: splitter [OPTIONS] <COMMAND>", "--admin <SOCKET>", "Examples:", "Exit codes"] {
            assert!(help.contains(part), "{part} in\n{help}");
        }
    }

    /// Every command with its path, as `rollout status`.
    fn commands(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for child in command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help") {
            let path = format!("{path} {}", child.get_name());
            found.push((path.clone(), child.clone()));
            commands(child, &path, found);
        }
    }

    #[test]
    fn every_argument_has_a_help() {
        let mut found = Vec::new();
        commands(&command(), "splitter", &mut found);
        for (path, command) in found {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of `{path}`", argument.get_id());
            }
        }
    }

    /// The part of the reference under a heading, to the next one.
    fn section<'a>(reference: &'a str, heading: &str) -> Option<&'a str> {
        let begin = reference.find(&format!("\n{heading}\n"))? + heading.len() + 2;
        let rest = &reference[begin..];
        Some(&rest[..rest.find("\n#").unwrap_or(rest.len())])
    }

    #[test]
    fn the_reference_names_every_command_and_option() {
        let reference = include_str!("../../../docs/cli.md");
        let mut missing = Vec::new();
        let mut found = Vec::new();
        commands(&Cli::command(), "splitter", &mut found);
        for (path, command) in found {
            let Some(text) = section(reference, &format!("### `{path}`")) else {
                missing.push(format!("a section \"### `{path}`\""));
                continue;
            };
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set() && !argument.is_global_set()) {
                let name = match (argument.get_long(), argument.get_value_names()) {
                    (Some("help" | "version"), None) => continue,
                    (Some(long), _) => format!("--{long}"),
                    (None, Some([value, ..])) => value.to_string(),
                    (None, _) => argument.get_id().as_str().to_uppercase(),
                };
                if !text.contains(&name) {
                    missing.push(format!("{name} in the section of `{path}`"));
                }
            }
        }
        for argument in Cli::command().get_arguments().filter_map(|argument| argument.get_long()) {
            if !reference.contains(&format!("--{argument}")) {
                missing.push(format!("--{argument}"));
            }
        }
        assert!(missing.is_empty(), "docs/cli.md lacks:\n{}", missing.join("\n"));
    }
}
