//! A directory of Kubernetes manifests as the source of objects, in place of an API server.
//!
//! ```text
//! directory ─► io (inotify, reading) ─► split (file → texts of one object each)
//!   ─► parse (text → object) ─► store (what changed) ─► channel to the engine
//! ```
//!
//! Only [`io`] touches the world. No API object outlives its conversion, and no text outlives its
//! parsing: of an object its identity and a digest are remembered.

mod block;
#[cfg(test)]
mod cost_tests;
#[cfg(test)]
mod examples_tests;
#[cfg(test)]
mod fuzz_tests;
pub(crate) mod head;
pub mod io;
pub(crate) mod kube_vip;
pub(crate) mod parse;
pub mod split;
pub mod store;
pub(crate) mod text;
