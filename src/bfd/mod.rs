//! Bidirectional Forwarding Detection (RFC 5880), single-hop (RFC 5881) and multihop (RFC 5883), in
//! asynchronous mode. Sans-IO: time is an argument, randomness a seed, packets and events are
//! return values.
//!
//! ```text
//! Sessions   demultiplexing, authentication, peers that are added and removed
//!   └ Session      the state machine of one peer (§6.8.6), its timers (§6.8.4, §6.8.7)
//!       ├ Parameters         intervals and Poll Sequences (§6.5, §6.8.3)
//!       ├ SequenceNumbers    of authentication (§6.7.4)
//!       ├ AdaptiveDetection  detection time follows measured jitter
//!       └ DuplicateDetector  two machines with one identity
//! ```
//!
//! Times are durations since an epoch that the caller chooses, of a clock that never goes back.

mod adaptive;
mod authentication;
mod config;
mod duplicate;
#[cfg(test)]
mod duplicate_tests;
mod entry;
mod event;
mod exchange;
pub mod io;
pub mod packet;
mod parameters;
mod peer;
pub mod report;
pub mod secret;
mod session;
#[cfg(test)]
mod session_tests;
mod sessions;
#[cfg(test)]
mod sessions_tests;
#[cfg(test)]
mod simulation_tests;

pub use authentication::Authentication;
pub use config::BfdConfig;
pub use event::{Adaptation, AdaptationCause, Cause, Discard, Event, SessionChange};
pub use exchange::{Effects, Outgoing, Received, SessionStatus};
pub use peer::{Peer, PeerKey};
pub use sessions::Sessions;
