//! The state directory: what survives a restart and a power cut.

mod atomic_file;
pub mod snapshot;
pub mod state;
