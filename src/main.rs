//! The entry point: command line → settings → one of the commands.

use std::io::Write;
use std::process::ExitCode;

use pinnace::cli::{CheckFormat, Command, EX_USAGE, Invocation, RulesetFormat, StatusFormat};
use pinnace::commands::{check, cleanup, ruleset, status};
use pinnace::common::printable::printable_lines;
use pinnace::config::{LogFormat, Settings, Sources, Warning};
use pinnace::nft::io::writer::RulesetWriter;
use pinnace::{cli, config, daemon, logging, nft};

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
        _ => {}
    }
    let (settings, warnings) = match settings(&invocation) {
        Ok(loaded) => loaded,
        // Cleanup must work for somebody who uninstalls because of invalid settings.
        Err(_) if matches!(invocation.command, Command::Cleanup { state: false }) => {
            return finish(cleanup::remove_rules().map(|()| ExitCode::SUCCESS));
        }
        Err(message) => {
            eprintln!("{}", printable_lines(&message));
            return ExitCode::from(EX_USAGE);
        }
    };
    finish(run(&invocation, &settings, &warnings))
}

fn finish(outcome: Result<ExitCode, String>) -> ExitCode {
    outcome.unwrap_or_else(|message| {
        eprintln!("error: {}", printable_lines(&message));
        ExitCode::FAILURE
    })
}

/// Reads every source of settings. The error names everything that is wrong with them.
fn settings(invocation: &Invocation) -> Result<(Settings, Vec<Warning>), String> {
    let path =
        config::config_path(invocation.config.as_deref(), std::env::var_os("PINNACE_CONFIG"));
    let sources = Sources {
        file: path.map(config::io::read),
        environment: std::env::vars_os().collect(),
        manifests: invocation.manifests.clone(),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        read_secret: pinnace::bfd::io::secret::read,
    };
    config::load(sources).map_err(|errors| errors.to_string())
}

/// Prints to standard output. A reader that went away (`pinnace check | head -1`) is no reason to
/// complain.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn run(
    invocation: &Invocation,
    settings: &Settings,
    warnings: &[Warning],
) -> Result<ExitCode, String> {
    match &invocation.command {
        Command::Run => {
            let _log = logging::init_logging(settings)
                .map_err(|error| format!("cannot start a thread: {error}"))?;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            let outcome =
                runtime()?.block_on(daemon::run(settings.clone(), || self::settings(invocation)));
            let Err(error) = outcome else { return Ok(ExitCode::SUCCESS) };
            let message = error.to_string();
            match settings.log_format {
                // A reader of JSON reads nothing else.
                LogFormat::Json => tracing::error!("{message}"),
                LogFormat::Human => eprintln!("error: {}", printable_lines(&message)),
            }
            Ok(if matches!(error, daemon::Error::NoSource(_)) {
                ExitCode::from(EX_USAGE)
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Check { output } => {
            let report = runtime()?.block_on(check::run(settings, warnings, probe_kernel));
            match output {
                CheckFormat::Human => print(&printable_lines(&report.human())),
                CheckFormat::Json => print(&format!("{}\n", report.json())),
            }
            Ok(ExitCode::from(report.exit_code()))
        }
        Command::Status { output } => {
            let state = runtime()?.block_on(status::query(settings))?;
            print(&match output {
                StatusFormat::Human => status::human(&state),
                StatusFormat::Json => {
                    serde_json::to_string_pretty(&state).map_err(|e| e.to_string())? + "\n"
                }
                StatusFormat::Yaml => serde_saphyr::to_string(&state).map_err(|e| e.to_string())?,
            });
            Ok(ExitCode::SUCCESS)
        }
        Command::Ruleset { output, planned } => {
            let tables = if *planned {
                runtime()?.block_on(ruleset::planned(settings))?
            } else {
                ruleset::live()?
            };
            match output {
                RulesetFormat::Text => print(&nft::text::tables(&tables, settings.dead_man)),
                RulesetFormat::Json => print(&format!(
                    "{}\n",
                    nft::json::tables(&tables, settings.dead_man).map_err(|e| e.to_string())?
                )),
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Cleanup { state } => {
            cleanup::cleanup(settings, *state)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version | Command::Settings => Ok(ExitCode::SUCCESS),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))
}

/// Writes a ruleset with rules of every kind in the network namespace of the calling thread. Answers
/// what the kernel lacks of it, if it takes the rest.
fn probe_kernel() -> Result<Option<String>, String> {
    let changes = nft::probe::probe_ruleset();
    let mut writer = RulesetWriter::open().map_err(|error| error.to_string())?;
    writer.apply(&changes).map_err(|error| error.to_string())?;
    Ok(writer.absent().iter().next().map(|(family, reason)| format!("no {family}: {reason}")))
}
