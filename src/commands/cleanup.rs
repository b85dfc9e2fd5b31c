//! `pinnace cleanup`: removes what Pinnace left on the host.

use std::fs;
use std::path::Path;

use crate::config::Settings;
use crate::nft::io::writer::RulesetWriter;
use crate::storage::state;

/// Removes the ruleset, and the state directory with `with_state`. An error when the daemon runs.
pub fn cleanup(settings: &Settings, with_state: bool) -> Result<(), String> {
    if let Some(pid) = state::locked_by(&settings.state_dir) {
        return Err(format!(
            "pinnace is running (pid {pid}) and would write its rules again; stop it first"
        ));
    }
    remove_rules()?;
    if with_state { remove_state(&settings.state_dir) } else { Ok(()) }
}

/// Removes the ruleset; no error when there is none.
pub fn remove_rules() -> Result<(), String> {
    RulesetWriter::open().and_then(|mut writer| writer.cleanup()).map_err(|error| error.to_string())
}

/// Removes Pinnace's own files only: a directory that holds anything else was named by mistake, or is
/// used by somebody else.
fn remove_state(directory: &Path) -> Result<(), String> {
    let own = |name: &str| {
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
        if own(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())
                .map_err(|error| format!("cannot remove {}: {error}", entry.path().display()))?;
        }
    }
    fs::remove_dir(directory)
        .map_err(|error| format!("cannot remove {}: {error}", directory.display()))
}
