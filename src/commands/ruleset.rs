//! `pinnace ruleset`: the rules as they are in the kernel, or as they would be.

use std::time::Duration;

use crate::config::Settings;
use crate::daemon;
use crate::daemon::{Opened, Source, Started};
use crate::engine::{Engine, Event};
use crate::host::links;
use crate::ipam::Allocations;
use crate::model::Family;
use crate::model::ruleset_changes::RulesetChanges;
use crate::nft::io::writer::RulesetWriter;
use crate::nft::{Compiler, Table};
use crate::storage::state;

/// How long `ruleset --planned` waits for the initial lists.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// The ruleset in the kernel of this network namespace.
pub fn live() -> Result<Vec<Table>, String> {
    RulesetWriter::open().and_then(|writer| writer.live()).map_err(|error| error.to_string())
}

/// The planned ruleset: the same engine over the same sources, without any effect. New addresses
/// count as probed.
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
    let deadline = tokio::time::Instant::now() + SYNC_TIMEOUT;
    while !engine.synced() {
        let next = tokio::time::timeout_at(deadline, source.next()).await;
        let update = next.map_err(|_| unread(&engine))?.map_err(|error| error.to_string())?;
        changes.merge(engine.handle(Event::Source(update), Duration::ZERO).rule_set);
    }
    Ok(tables(changes))
}

/// Which condition is not met yet.
fn unread(engine: &Engine) -> String {
    let unmet = engine.report().conditions().into_iter().find(|condition| !condition.status);
    format!(
        "the source of Services could not be read in time: {}",
        unmet.map(|condition| condition.message).unwrap_or_default()
    )
}

fn tables(changes: RulesetChanges) -> Vec<Table> {
    let mut compiler = Compiler::default();
    let staged = compiler.stage(&changes);
    compiler.commit(staged);
    Family::ALL.iter().map(|family| compiler.table(*family)).collect()
}
