//! State of this node that applies to every election.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// State of this node that applies to every election.
#[derive(Debug, Default)]
pub struct LocalState {
    /// This node comes last until then.
    pub fresh_until: Duration,
    /// No address is claimed before, unless every peer was heard.
    pub listen_until: Duration,
    /// There was a Node object of this node's.
    pub member: bool,
    pub suspension: Option<Suspension>,
}

impl LocalState {
    /// Whether this node answers for nothing, as others may have taken over while it was away.
    pub fn is_suspended(&self) -> bool {
        self.suspension.is_some()
    }
}

/// After a stall, or what may have been one, until some peer was heard again.
#[derive(Debug)]
pub struct Suspension {
    pub until: Duration,
    /// What this node owned.
    pub owned: BTreeSet<IpAddr>,
    /// A session with a peer was lost meanwhile, so others may have taken over.
    pub lost: bool,
    /// Where only a peer says that this node was away: sessions that have been up all the time
    /// since. Each shows that it was not.
    pub confirming_sessions: Option<BTreeSet<IpAddr>>,
}
