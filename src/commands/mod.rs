//! The commands beside `run`: each asks, prints and ends.

pub mod check;
pub mod status;

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::config::Settings;
use crate::daemon;
use crate::daemon::{Opened, Source, Started};
use crate::engine::{Engine, Event};
use crate::host::links;
use crate::http::server;
use crate::ipam::Allocations;
use crate::model::Family;
use crate::model::ruleset_changes::RulesetChanges;
use crate::model::state::NodeState;
use crate::nft::io::writer;
use crate::nft::io::writer::RulesetWriter;
use crate::nft::{Compiler, Table};
use crate::storage::state;

/// How long `ruleset --planned` waits for the source to be read.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the running daemon believes.
pub async fn status(settings: &Settings) -> Result<NodeState, String> {
    let address =
        settings.listen.ok_or("PINNACE_LISTEN is off, so the running pinnace cannot be asked")?;
    let body = server::fetch(address, "/state")
        .await
        .map_err(|error| not_running(settings, error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| {
        format!("{address} did not answer as this version of pinnace does: {error}")
    })
}

/// Without a daemon, what it left behind is still worth a word.
fn not_running(settings: &Settings, error: String) -> String {
    let saved = state::read::<Allocations>(&settings.state_dir).value.unwrap_or_default();
    let lines = saved.iter().map(|(key, allocation)| {
        let addresses = allocation.addresses.iter().map(ToString::to_string);
        let nodes = allocation
            .ports
            .iter()
            .flat_map(|held| held.nodes.keys())
            .map(|node| format!("ports of node {node}"));
        format!("\n  {key}: {}", addresses.chain(nodes).collect::<Vec<_>>().join(", "))
    });
    let remembered: String = lines.collect();
    match remembered.is_empty() {
        true => error,
        false => format!(
            "{error}\naddresses remembered in {}:{remembered}",
            settings.state_dir.display()
        ),
    }
}

/// The rules in the kernel of this network namespace.
pub fn live() -> Result<Vec<Table>, String> {
    RulesetWriter::open().and_then(|writer| writer.live()).map_err(|error| error.to_string())
}

/// The rules that would be there: the same engine over the same sources, with nothing carried out.
/// New addresses count as probed.
pub async fn planned(settings: &Settings) -> Result<Vec<Table>, String> {
    let source = Source::choose(settings).map_err(|error| error.to_string())?;
    let source = match source.open(settings).await.map_err(|error| error.to_string())? {
        Opened::Unusable(_, why) => return Err(why),
        opened => opened,
    };
    let mut source = Started::new(source, settings, 1).map_err(|error| error.to_string())?;
    let saved = state::read::<Allocations>(&settings.state_dir).value.unwrap_or_default();
    let mut engine_settings = daemon::engine_settings(settings);
    engine_settings.probe = false;
    let mut engine = Engine::new(engine_settings, saved);
    let interfaces = links::snapshot().await.map_err(|error| error.to_string())?;
    let mut changes = engine.handle(Event::Interfaces(interfaces.into()), Duration::ZERO).rule_set;
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    while !engine.synced() {
        let told = tokio::time::timeout_at(deadline, source.next()).await;
        for event in told.map_err(|_| unread(&engine))?.map_err(|error| error.to_string())?.events {
            changes.merge(engine.handle(event, Duration::ZERO).rule_set);
        }
    }
    Ok(tables(changes))
}

fn unread(engine: &Engine) -> String {
    let unmet = engine.report().conditions().into_iter().find(|condition| !condition.status);
    format!(
        "the source of Services could not be read in time: {}",
        unmet.map(|condition| condition.message).unwrap_or_default()
    )
}

fn tables(changes: RulesetChanges) -> Vec<Table> {
    let mut compiler = Compiler::default();
    let staged = compiler.stage(changes);
    compiler.commit(staged);
    Family::ALL.iter().map(|family| compiler.table(*family)).collect()
}

/// Removes every rule, and the state directory when asked to.
pub fn cleanup(settings: &Settings, with_state: bool) -> Result<(), String> {
    if let Some(pid) = state::locked_by(&settings.state_dir) {
        return Err(format!(
            "pinnace is running (pid {pid}) and would write its rules again; stop it first"
        ));
    }
    remove_rules()?;
    if with_state { remove_state(&settings.state_dir) } else { Ok(()) }
}

/// Removes every rule; no error when there is none.
pub fn remove_rules() -> Result<(), String> {
    RulesetWriter::open()
        .and_then(|mut writer| writer.cleanup())
        .map_err(|error: writer::Error| error.to_string())
}

/// Only what is ours: a directory that holds anything else was named by mistake, or is somebody's.
fn remove_state(directory: &Path) -> Result<(), String> {
    let ours = |name: &str| {
        name == "pinnace.lock"
            || name.starts_with("state.json")
            || name.starts_with(".state.json")
            || name.contains("snapshot.jsonl")
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| format!("cannot read {}: {error}", directory.display()))?,
    };
    for entry in entries.flatten() {
        if ours(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())
                .map_err(|error| format!("cannot remove {}: {error}", entry.path().display()))?;
        }
    }
    fs::remove_dir(directory)
        .map_err(|error| format!("cannot remove {}: {error}", directory.display()))
}
