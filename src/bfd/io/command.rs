use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use crate::bfd::{Peer, PeerKey, SessionStatus};

/// What the thread is told.
pub(super) enum Command {
    Peers(BTreeMap<PeerKey, Peer>),
    Status(mpsc::Sender<Vec<SessionStatus>>),
    /// Send AdminDown and end, after this long at the latest.
    Stop(Duration),
}
