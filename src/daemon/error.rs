//! Why the daemon ends by itself.

use std::io;

use super::source::NoSource;
use crate::host::links::LinksError;
use crate::http::server::ListenError;
use crate::nft::io::writer;
use crate::storage::state::StateError;

/// Why the daemon cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    NoSource(#[from] NoSource),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("cannot use nf_tables: {0}; run `pinnace check`")]
    RuleSet(#[from] writer::Error),
    #[error(transparent)]
    Links(#[from] LinksError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A thread is gone without which nothing can be served.
    #[error("the thread {0} ended; the rules stay, start Pinnace again")]
    Ended(&'static str),
    /// A thread, signal handler or watch could not be set up.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}
