//! Pinnace: LoadBalancer Services from one small binary per node.
//!
//! ```text
//!  k8s::io, manifests::io ──────┐                                  ┌─► nft::io ────► kernel: DNAT
//!  host (links, neighbours) ────┼─► Event ─► engine ─► Plan ───────┼─► l2::io ─────► ARP, NDP
//!  bfd::io ─────────────────────┤      (decides everything)        ├─► bfd::io ────► the other nodes
//!  l2::io (observed frames) ────┘                                  └─► k8s::io ────► status, Events
//! ```
//!
//! A room per feature. Inside a room everything is sans-IO except its `io/`: bytes, events and time
//! go in, values come out. `tests/architecture.rs` enforces that, the direction of imports between
//! the rooms, and that no two modules import each other.
//!
//! - [`model`]: Services, EndpointSlices, Nodes and interfaces as compact values. Imports nothing.
//! - [`engine`]: takes events, keeps the state of the node, returns plans of effects.
//! - [`ipam`]: pools, allocation of addresses and ports.
//! - [`nft`]: the ruleset as a value, and what a change adds and deletes.
//! - [`l2`]: ARP and NDP, and the announcer of VIPs.
//! - [`bfd`]: BFD sessions between nodes (RFC 5880, 5881).
//! - [`k8s`]: API objects to the model, leader election, status and Events.
//! - [`manifests`]: the same objects from a directory of YAML.
//! - [`config`]: settings; [`common`]: small shared pieces.
//! - [`host`], [`storage`], [`http`], [`logging`]: links and systemd, state files, health and
//!   metrics, log lines. These touch the world, and decide nothing.
//! - [`daemon`]: the select loop; all threads and channels are drawn at its head.
//! - [`commands`], [`cli`]: what a person asks.
//!
//! The way of one Service into the kernel, in the order in which to read it: `manifests/parse.rs`
//! or `k8s/convert.rs` (YAML or API object → [`model`]), `engine/mod.rs` (the event),
//! `engine/reconcile.rs` (its addresses), `engine/endpoints.rs` (its endpoints →
//! [`model::forwarding`]), `nft/compiler.rs` and `nft/element.rs` (what a change adds and deletes),
//! `nft/io/writer.rs` (one batch over netlink). Who answers for the address: `engine/election/`,
//! `l2/announcer/`.

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
