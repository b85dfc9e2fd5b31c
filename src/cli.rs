//! The command line. Settings come from variables and a file ([`crate::config`]); flags exist only
//! for the two paths that one types by hand.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config;

/// Exit status of a usage or configuration error: EX_USAGE of sysexits.h. Nothing has been touched
/// then.
pub const EX_USAGE: u8 = 64;

const SETTINGS: &str = "Settings come from PINNACE_* environment variables and a file; pinnace --help lists them all with their defaults.";

/// A parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// `--config`: overrides `PINNACE_CONFIG`.
    pub config: Option<PathBuf>,
    /// `--manifests`: overrides `PINNACE_MANIFESTS`.
    pub manifests: Option<PathBuf>,
    pub command: Command,
}

/// A command; without one, `run`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve LoadBalancer Services until stopped (the default)
    #[command(after_help = SETTINGS)]
    Run,
    /// Show what the running Pinnace serves, and why something is not served
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "human")]
        output: StatusFormat,
    },
    /// Run preflight checks on this host; changes nothing
    Check {
        /// How to print it
        #[arg(short, long, value_enum, default_value = "human")]
        output: CheckFormat,
    },
    /// Print the ruleset in the kernel
    Ruleset {
        /// nft text, or libnftables JSON
        #[arg(short, long, value_enum, default_value = "text")]
        output: RulesetFormat,
        /// Print the planned ruleset, from the manifests or the API server, without touching the
        /// kernel
        #[arg(long)]
        planned: bool,
    },
    /// Remove every rule Pinnace made; safe to repeat
    Cleanup {
        /// Remove the state directory too: remembered addresses are forgotten
        #[arg(long)]
        state: bool,
    },
    /// Print the version
    Version,
    /// Print the table of settings as Markdown
    #[command(hide = true)]
    Settings,
}

/// Formats of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For a person
    Human,
    /// For machines
    Json,
    /// For machines and people
    Yaml,
}

/// Formats of `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For a person
    Human,
    /// For machines
    Json,
}

/// Formats of `ruleset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RulesetFormat {
    /// As `nft list ruleset` prints it
    Text,
    /// As `nft -j list ruleset` prints it
    Json,
}

#[derive(Parser)]
#[command(
    name = "pinnace",
    about = "LoadBalancer Services for K3s, edge and bare-metal Kubernetes, from one small static binary per node",
    version,
    disable_help_subcommand = true,
    after_help = SETTINGS,
    subcommand_required = false
)]
struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Paths {
    /// Read settings from this YAML file; overrides PINNACE_CONFIG
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Serve from this directory of manifests; overrides PINNACE_MANIFESTS (run, ruleset)
    #[arg(long, value_name = "DIR", global = true)]
    manifests: Option<PathBuf>,
}

/// Parses a command line, its first word being the program. `--help` and `--version` arrive as
/// errors too, as clap has it: print the error, and exit with [`exit_code`].
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let value = |flag: &str| flag_value(&arguments, flag);
    let mut command = Cli::command().after_long_help(config::help_text());
    let cli = command
        .try_get_matches_from_mut(&arguments)
        .and_then(|matches| <Cli as clap::FromArgMatches>::from_arg_matches(&matches))
        .map_err(|error| name_the_variable(error, value))?;
    let chosen = cli.command.unwrap_or(Command::Run);
    if cli.paths.manifests.is_some() && !matches!(chosen, Command::Run | Command::Ruleset { .. }) {
        let mut error = clap::Error::new(ErrorKind::ArgumentConflict).with_cmd(&command);
        error
            .insert(ContextKind::InvalidArg, ContextValue::String("--manifests <DIR>".to_string()));
        error.insert(
            ContextKind::PriorArg,
            ContextValue::String("this command; it belongs to run and ruleset".to_string()),
        );
        return Err(error);
    }
    Ok(Invocation { config: cli.paths.config, manifests: cli.paths.manifests, command: chosen })
}

/// A flag that is a setting's key is answered with the setting's variable and the flag's value.
fn name_the_variable(
    mut error: clap::Error,
    value: impl Fn(&str) -> Option<String>,
) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = flag.split('=').next().unwrap_or_default().to_owned();
    let name = flag.trim_start_matches('-').to_ascii_uppercase().replace('-', "_");
    let Some(setting) = config::TABLE.iter().find(|setting| setting.name == name) else {
        return error;
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let value = value(&flag).unwrap_or_else(|| format!("<{}>", setting.format));
    let advice = format!("settings are variables: {}={value}", setting.variable());
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    error
}

/// What follows a flag, as `--flag value` or `--flag=value`.
fn flag_value(arguments: &[OsString], flag: &str) -> Option<String> {
    let mut arguments = arguments.iter().filter_map(|argument| argument.to_str());
    while let Some(argument) = arguments.next() {
        if argument == flag {
            return arguments.next().filter(|next| !next.starts_with('-')).map(str::to_owned);
        }
        if let Some(value) = argument.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// 0 for help and version, 64 for a mistake.
pub fn exit_code(error: &clap::Error) -> u8 {
    if error.use_stderr() { EX_USAGE } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, clap::Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn commands_are_understood() {
        for (line, command) in [
            ("pinnace", Command::Run),
            ("pinnace run", Command::Run),
            ("pinnace status", Command::Status { output: StatusFormat::Human }),
            ("pinnace status -o yaml", Command::Status { output: StatusFormat::Yaml }),
            ("pinnace check --output json", Command::Check { output: CheckFormat::Json }),
            ("pinnace ruleset", Command::Ruleset { output: RulesetFormat::Text, planned: false }),
            (
                "pinnace ruleset -o json --planned",
                Command::Ruleset { output: RulesetFormat::Json, planned: true },
            ),
            ("pinnace cleanup", Command::Cleanup { state: false }),
            ("pinnace cleanup --state", Command::Cleanup { state: true }),
            ("pinnace version", Command::Version),
            ("pinnace settings", Command::Settings),
        ] {
            let expected = Invocation { config: None, manifests: None, command };
            assert_eq!(parsed(line).unwrap_or_else(|e| panic!("{line}: {e}")), expected, "{line}");
        }
    }

    #[test]
    fn paths_may_stand_before_and_after_the_command() {
        for line in [
            "pinnace --config /c --manifests /m",
            "pinnace --config /c --manifests /m run",
            "pinnace run --manifests /m --config /c",
            "pinnace --config /c run --manifests=/m",
        ] {
            let found = parsed(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert_eq!(
                (found.config, found.manifests),
                (Some("/c".into()), Some("/m".into())),
                "{line}"
            );
        }
    }

    #[test]
    fn mistakes_exit_64_and_say_why() {
        for (line, expected) in [
            ("pinnace serve", "serve"),
            ("pinnace rulset", "a similar subcommand exists: 'ruleset'"),
            ("pinnace --pools 1.2.3.4", "settings are variables: PINNACE_POOLS=1.2.3.4"),
            ("pinnace run --bfd-interval=9ms", "settings are variables: PINNACE_BFD_INTERVAL=9ms"),
            ("pinnace --mode", "settings are variables: PINNACE_MODE=<vip or node>"),
            ("pinnace status -o xml", "human, json, yaml"),
            ("pinnace status --manifests /m", "--manifests"),
            ("pinnace cleanup --planned", "--planned"),
            ("pinnace run --manifests", "--manifests"),
        ] {
            let error = parsed(line).expect_err(line);
            assert_eq!(exit_code(&error), 64, "{line}");
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn help_lists_commands_and_variables_and_exits_0() {
        let help = parsed("pinnace --help").expect_err("help");
        assert_eq!(exit_code(&help), 0);
        let text = help.to_string();
        for part in [
            "status",
            "check",
            "ruleset",
            "cleanup",
            "PINNACE_POOLS",
            "PINNACE_LISTEN  <address:port, or off>  [default: 127.0.0.1:7466]",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let short = parsed("pinnace -h").expect_err("help").to_string();
        assert!(
            short.contains("--help lists them all") && !short.contains("PINNACE_LISTEN"),
            "{short}"
        );
        let run = parsed("pinnace run --help").expect_err("help").to_string();
        assert!(run.contains("pinnace --help lists them all"), "{run}");
        assert_eq!(exit_code(&parsed("pinnace --version").expect_err("version")), 0);
    }
}
