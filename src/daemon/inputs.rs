//! What the select loop waits for.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::error::Error;
use super::source::Started;
use crate::host::links::LinksError;
use crate::http::server::Query;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::Interfaces;
use crate::model::gateways::Gateways;
use crate::nft::io::worker::Report;

/// Maximum number of messages that wait in one channel for the loop. A full channel makes its
/// sender wait.
pub(super) const QUEUE: usize = 64;

pub(super) struct Inputs {
    pub channels: Channels,
    pub signals: Signals,
    pub source: Started,
    pub interfaces: watch::Receiver<Interfaces>,
    pub gateways: watch::Receiver<Gateways>,
    /// The task that watches the interfaces.
    pub links: JoinHandle<Result<(), LinksError>>,
}

/// What still has to be answered while the node hands over and stops.
pub(super) struct Channels {
    pub l2: mpsc::Receiver<AnnouncerEvent>,
    pub reports: mpsc::UnboundedReceiver<Report>,
    pub queries: mpsc::Receiver<Query>,
}

pub(super) struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub hangup: Signal,
}

impl Signals {
    /// Takes the signals over from their default action, which ends the process.
    pub fn new() -> Result<Signals, Error> {
        let listen = |kind, failed| signal(kind).map_err(|error| Error::Io(failed, error));
        Ok(Signals {
            terminate: listen(SignalKind::terminate(), "cannot handle SIGTERM")?,
            interrupt: listen(SignalKind::interrupt(), "cannot handle SIGINT")?,
            hangup: listen(SignalKind::hangup(), "cannot handle SIGHUP")?,
        })
    }
}
