//! Health, state and metrics over HTTP.

pub mod metrics;
pub mod server;
