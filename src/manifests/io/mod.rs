//! The directory of manifests, read and watched.

mod file;
mod inotify;
pub mod watch;
