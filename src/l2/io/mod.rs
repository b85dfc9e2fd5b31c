//! Packet sockets: filters, receiving and sending, and the thread that owns them.

pub(crate) mod filter;
pub(crate) mod socket;
pub mod task;
