//! IO and nothing else: each module translates between the world and the engine's types, and decides nothing.

pub mod bfd;
pub mod classic_bpf;
pub mod conntrack;
pub mod dataplane;
pub mod dated;
pub mod gateways;
pub mod http;
pub mod kube;
pub mod l2;
pub mod links;
pub mod manifests;
pub mod metrics;
pub mod neighbours;
pub mod nft;
pub mod pages;
pub mod snapshot;
pub mod state;
pub mod systemd;
pub mod vigil;
