//! The API server: connection, watches, Lease, patches and Events.

mod authorization;
mod batch;
pub mod client;
pub mod credentials;
pub mod event_sink;
pub mod failure;
pub mod leader;
pub mod lease;
pub mod patcher;
pub mod permissions;
mod tls;
mod user;
pub mod watch;
mod watched;
