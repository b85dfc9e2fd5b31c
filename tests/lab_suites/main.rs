//! The suites that need a kernel: each is a module, so that the library is linked and `lab` is
//! compiled once. `cargo test --test lab_suites packets::` runs one of them.
//!
//! Tests run side by side, as many as the machine has processors: each makes namespaces, scratch
//! directories and, where it needs one, a control plane of its own, named by process id and number.
//! What a suite proves, needs and takes is in `tests/README.md`.

#[path = "../lab/mod.rs"]
mod lab;

mod bfd;
mod cluster_leader;
mod cluster_operations;
mod cluster_watch;
mod coexistence;
mod control_plane;
mod failover;
mod growth;
mod hosts;
mod l2;
mod lifecycle;
mod nft;
mod nft_traffic;
mod packets;
mod uplinks;
