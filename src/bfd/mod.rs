//! Bidirectional Forwarding Detection (RFC 5880), over one hop (RFC 5881) or several (RFC 5883), in
//! asynchronous mode. PURE: time is an argument, randomness a seed, packets and events are return
//! values.
//!
//! ```text
//! Sessions   demultiplexing, authentication, peers that come and go
//!   └ Session      the state machine of one peer (§6.8.6), its timers (§6.8.4, §6.8.7)
//!       ├ Parameters    intervals and Poll Sequences (§6.5, §6.8.3)
//!       ├ Sequence      authentication sequence numbers (§6.7.4)
//!       ├ Tolerance     what lateness has taught
//!       └ Double        two machines that speak as one
//! ```
//!
//! Times are counted from an epoch that the caller chooses; they must not go back.

mod adaptive;
mod authentication;
mod config;
mod duplicate;
#[cfg(test)]
mod duplicate_tests;
mod event;
mod exchange;
pub mod io;
pub mod packet;
mod parameters;
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
pub use config::Config;
pub use event::{Adaptation, AdaptationCause, Cause, Discard, Event, PeerEvent};
pub use exchange::{Effects, Outgoing, Peer, PeerKey, Received, SessionStatus};
pub use sessions::Sessions;
