//! Packet sockets: filters, receiving and sending, and the thread that owns them.

mod counters;
mod desired;
pub(crate) mod filter;
pub(crate) mod socket;
pub mod task;

pub use counters::{L2Counters, L2Totals};
pub use desired::Desired;
