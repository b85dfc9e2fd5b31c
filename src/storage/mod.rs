//! The state directory: what survives a restart and a power cut.

pub mod snapshot;
pub mod state;
