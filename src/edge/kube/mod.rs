//! Kubernetes: the API server as source of objects, and from the API's types to the compact ones of [`crate::domain::model`].

pub mod client;
pub mod convert;
pub mod credentials;
pub mod events;
pub mod failure;
pub mod lease;
pub mod permissions;
pub mod request;
pub mod status;
pub mod watch;
pub mod writer;

#[cfg(test)]
mod convert_tests;
