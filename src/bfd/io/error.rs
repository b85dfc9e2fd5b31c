use std::io;

use thiserror::Error;

/// Why BFD cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(
        "UDP port {port} is in use by {owner}, which speaks BFD as well: stop it on this node, or run without BFD between nodes"
    )]
    PortTaken {
        /// 3784 or 4784.
        port: u16,
        /// Program and process number.
        owner: String,
    },
    #[error("cannot open a BFD socket ({what}): {source}")]
    Socket {
        /// The step that failed.
        what: &'static str,
        source: io::Error,
    },
    #[error("cannot start the BFD thread: {0}")]
    Thread(#[source] io::Error),
}
