//! The commands beside `run`: each asks or removes something, prints and ends.

pub mod check;
pub mod cleanup;
pub mod ruleset;
pub mod status;
