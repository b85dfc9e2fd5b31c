//! What happens to the ruleset when the process ends.

/// Ruleset handling on SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Delete the tables.
    Remove,
    /// Leave the tables to a successor. Without one they disarm themselves when the dead man's
    /// switch times out.
    Keep,
}
