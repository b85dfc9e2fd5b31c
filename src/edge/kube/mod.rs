//! Kubernetes objects: from the API's types to the compact ones of [`crate::domain::model`].

pub mod convert;
pub mod request;

#[cfg(test)]
mod convert_tests;
