//! What is known of one VIP.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::mac::Mac;

#[derive(Debug)]
pub(super) struct Vip {
    pub interfaces: Arc<BTreeSet<u32>>,
    pub state: AnnounceState,
    pub standby: bool,
    pub quiet: bool,
    /// On standby: interface, link-layer address and time of the last claim of another host.
    pub last_claim: Option<(u32, Mac, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnnounceState {
    /// To be probed, but none of its interfaces is usable.
    Waiting,
    /// `sent` probes are out; at `due` follows the next one, or the end of probing.
    Probing { start: Duration, sent: u32, due: Duration },
    /// Another host has the address; probed again at `due`.
    InConflict { due: Duration },
    /// Announced on every usable interface, unless on standby.
    Clear,
}

/// What a change of the desired state or of the interfaces means for conflict detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    Keep,
    Clear,
    Wait,
    Probe,
}

impl AnnounceState {
    /// `probe`: the VIP is to be probed before it is announced; `quiet`: no probe may be sent now;
    /// `usable`: an interface can carry probes; `arrived`: one of them takes part and did not
    /// before.
    pub fn transition(self, probe: bool, quiet: bool, usable: bool, arrived: bool) -> Transition {
        let restart = match self {
            AnnounceState::Clear => return Transition::Keep,
            AnnounceState::Waiting => usable,
            AnnounceState::Probing { .. } => arrived,
            AnnounceState::InConflict { .. } => false,
        };
        if !probe {
            Transition::Clear
        } else if matches!(self, AnnounceState::Probing { .. }) && (!usable || quiet) {
            Transition::Wait
        } else if restart && !quiet {
            Transition::Probe
        } else {
            Transition::Keep
        }
    }

    /// When the pending probe timer fires.
    pub fn timer(self) -> Option<Duration> {
        match self {
            AnnounceState::Probing { due, .. } | AnnounceState::InConflict { due } => Some(due),
            AnnounceState::Waiting | AnnounceState::Clear => None,
        }
    }
}

impl Vip {
    /// Whether it is on standby and listened for on this interface.
    pub fn is_standby_on(&self, ifindex: u32) -> bool {
        self.standby && self.interfaces.contains(&ifindex)
    }
}
