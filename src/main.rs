//! The entry: command line → settings → one of the commands.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use pinnace::check;
use pinnace::cli::{self, CheckFormat, Command, EX_USAGE, Invocation};
use pinnace::config::{self, ConfigFile, Settings, Sources, Warning};
use pinnace::logging;

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // A closed pipe (`pinnace --help | head`) is no reason to complain.
            let _ = error.print();
            return ExitCode::from(cli::exit_code(&error));
        }
    };
    match invocation.command {
        Command::Version => {
            print(concat!("pinnace ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::SUCCESS;
        }
        Command::Settings => {
            print(&config::markdown_table());
            return ExitCode::SUCCESS;
        }
        // Needs no setting: it must work for somebody who uninstalls because of settings that cannot be used.
        Command::Cleanup { state: false } => return finish(cleanup(None)),
        _ => {}
    }
    let (settings, warnings) = match settings(&invocation) {
        Ok(loaded) => loaded,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EX_USAGE);
        }
    };
    finish(run(&invocation.command, &settings, &warnings))
}

fn finish(outcome: Result<ExitCode, String>) -> ExitCode {
    outcome.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

/// Reads every source of settings, or says everything that is wrong with them.
fn settings(invocation: &Invocation) -> Result<(Settings, Vec<Warning>), String> {
    let path = config::config_path(invocation.config.as_deref(), std::env::var_os("PINNACE_CONFIG"));
    let file = path.map(|path| ConfigFile { text: std::fs::read_to_string(&path).map_err(|error| error.to_string()), path });
    let sources = Sources {
        file,
        environment: std::env::vars_os().collect(),
        manifests: invocation.manifests.clone(),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    config::load(sources).map_err(|errors| errors.to_string())
}

/// Prints to standard output. A reader that went away (`pinnace check | head -1`) is no reason to complain.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn run(command: &Command, settings: &Settings, warnings: &[Warning]) -> Result<ExitCode, String> {
    match command {
        Command::Run => {
            logging::init_logging(settings);
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Err("run: not wired yet".to_string())
        }
        Command::Check { output } => {
            let report = check::run(settings, warnings, || Err("the rule set is not wired yet".to_string()));
            match output {
                CheckFormat::Human => print(&report.human()),
                CheckFormat::Json => print(&format!("{}\n", report.json())),
            }
            Ok(ExitCode::from(report.exit_code()))
        }
        Command::Status { .. } => Err("status: not wired yet".to_string()),
        Command::Ruleset { .. } => Err("ruleset: not wired yet".to_string()),
        Command::Cleanup { state } => cleanup(state.then_some(&*settings.state_dir)),
        Command::Version | Command::Settings => Ok(ExitCode::SUCCESS),
    }
}

/// Removes the rules, and the state directory if it is given.
fn cleanup(_state_dir: Option<&Path>) -> Result<ExitCode, String> {
    Err("cleanup: not wired yet".to_string())
}
