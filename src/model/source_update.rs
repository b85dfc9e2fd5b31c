//! What a source of objects (the API server, a directory of manifests) reports to the engine.

use super::SourceChange;
use super::state::SourceProblem;
use super::trigger_time::TriggerTime;

/// One report of a source. Both sources produce it and the engine takes it as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceUpdate {
    /// Only what differs from before, in the order in which it happened.
    pub changes: Vec<SourceChange>,
    /// Everything that is wrong with objects now, not only what is new.
    pub problems: Vec<SourceProblem>,
    /// Every object has been reported at least once.
    pub synced: bool,
    /// Where that changed: whether the source can be read, or why not.
    pub health: Option<Result<(), String>>,
    /// When the oldest of these changes of endpoints was triggered, by the EndpointSlices' own
    /// annotation. None where none says it, and for lists, whose changes are old.
    pub last_change: Option<TriggerTime>,
}
