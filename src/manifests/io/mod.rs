//! The directory of manifests, read and watched.

pub mod watch;
