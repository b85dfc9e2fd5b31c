//! Kubernetes: the API server as source of objects, and the conversion of the API's types to those
//! of [`crate::model`].

pub mod annotations;
pub mod convert;
#[cfg(test)]
mod convert_tests;
pub mod events;
pub mod io;
pub mod leader;
pub(crate) mod objects;
pub mod patch_queue;
pub(crate) mod problems;
pub mod status;
