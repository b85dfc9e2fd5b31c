//! The entry: command line → settings → one of the commands.

use std::path::PathBuf;
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
            println!("pinnace {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Command::Settings => {
            print!("{}", config::markdown_table());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let (settings, warnings) = match settings(&invocation) {
        Ok(loaded) => loaded,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(EX_USAGE);
        }
    };
    match run(&invocation.command, &settings, &warnings) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Reads every source of settings, or says everything that is wrong with them.
fn settings(invocation: &Invocation) -> Result<(Settings, Vec<Warning>), String> {
    let path = config::config_path(invocation.config.as_deref(), std::env::var_os("PINNACE_CONFIG"));
    let file = path.map(read).transpose()?;
    let sources = Sources {
        file,
        environment: std::env::vars_os().collect(),
        manifests: invocation.manifests.clone(),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    config::load(sources).map_err(|errors| errors.to_string())
}

fn read(path: PathBuf) -> Result<ConfigFile, String> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(ConfigFile { path, text }),
        Err(error) => Err(format!("error: {}: cannot read the configuration file: {error}", path.display())),
    }
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
                CheckFormat::Human => print!("{}", report.human()),
                CheckFormat::Json => println!("{}", report.json()),
            }
            Ok(ExitCode::from(report.exit_code()))
        }
        Command::Status { .. } => Err("status: not wired yet".to_string()),
        Command::Ruleset { .. } => Err("ruleset: not wired yet".to_string()),
        Command::Cleanup { .. } => Err("cleanup: not wired yet".to_string()),
        Command::Version | Command::Settings => Ok(ExitCode::SUCCESS),
    }
}
