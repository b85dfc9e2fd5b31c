//! Pinnace: LoadBalancer Services from one small binary per node.
//!
//! ```text
//!  edge::kube, edge::manifests ─┐                                     ┌─► edge::dataplane ─► edge::nft ─► kernel: DNAT
//!  edge::links, edge::gateways ─┼─► Event ─► domain::engine ─► Plan ──┼─► edge::l2 ─────────► ARP, NDP
//!  edge::bfd, edge::neighbours ─┤          (decides everything)       ├─► edge::bfd ────────► the other nodes
//!  edge::l2 (what is heard) ────┘                                     └─► edge::kube ───────► status, Events
//! ```
//!
//! The rooms, and what each may touch (`tests/documents.rs` enforces it):
//!
//! - [`domain`]: what is known and decided, as values. Pure: no sockets, clocks, files,
//!   environment, tokio or kube.
//! - [`ruleset`], [`bfd`], [`wire`]: the nftables rules as a value, the BFD session machine, frames
//!   as bytes. Pure as well.
//! - [`edge`]: everything that touches the world: netlink, packet sockets, the API server, files,
//!   HTTP. It translates and never decides.
//! - [`daemon`]: starts the tasks, wires edge and engine, and orders the shutdown. It decides
//!   nothing about Services either.
//! - [`config`], [`cli`], [`logging`], [`commands`], [`check`], [`report`], [`printable`]: what a
//!   person sets, asks and reads.
//!
//! The way of one Service into the kernel, in the order in which to read it:
//! `edge/manifests/parse.rs` or `edge/kube/convert.rs` (YAML or API object → [`domain::model`]),
//! `domain/engine.rs` (the event), `domain/engine/place.rs` (its addresses), `domain/endpoints.rs`
//! (its endpoints → [`domain::forwarding`]), `ruleset/compiler.rs` and `ruleset/element.rs` (what a
//! change adds and deletes), `edge/nft/mod.rs` (one batch over netlink). Who answers for the
//! address: `domain/engine/election.rs`, `domain/elect/seat.rs`, `domain/announce.rs`.

pub mod bfd;
pub mod cli;
pub mod commands;
pub mod common;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod host;
pub mod http;
pub mod ipam;
pub mod k8s;
pub mod l2;
pub mod logging;
pub mod manifests;
pub mod model;
pub mod nft;
pub mod storage;
