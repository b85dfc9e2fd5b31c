//! A directory of Kubernetes manifests as the source of truth, in place of an API server.
//!
//!   directory → [`watch`] (inotify, reading) → [`split`] (file → texts of one object) → [`parse`]
//! (text → object) → [`store`] (what changed) → channel
//!
//! Only `watch` touches the world; the rest is pure. No API object outlives its conversion, and no
//! text outlives its parsing: what is remembered of an object is who it is and a digest.

mod block;
#[cfg(test)]
mod cost_tests;
#[cfg(test)]
mod examples_tests;
#[cfg(test)]
mod fuzz_tests;
pub mod io;
pub(crate) mod kube_vip;
pub mod parse;
pub mod split;
pub mod store;

pub use io::watch::{ManifestUpdate, watch};
pub use store::{ManifestProblem, ManifestStore, Severity};
