//! Kubernetes: the API server as source of objects, and from the API's types to the compact ones of
//! [`crate::model`].

pub mod annotations;
pub mod convert;
#[cfg(test)]
mod convert_tests;
pub mod events;
pub mod io;
pub mod leader;
pub(crate) mod objects;
pub(crate) mod problems;
pub mod status;
