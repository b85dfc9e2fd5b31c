//! What Pinnace decides, and why. PURE: no tokio, kube, sockets, clock or environment: time is an argument, effects are return values.

pub mod announce;
pub mod elect;
pub mod endpoints;
pub mod engine;
pub mod events;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod forwarding;
pub mod index;
pub mod ipam;
pub mod lease;
pub mod maglev;
pub mod membership;
pub mod model;
pub mod nodes;
pub mod plan;
pub mod pool;
pub mod publish;
pub mod status;
pub mod uplinks;
