//! Input of the engine: settings once, then events.

use std::sync::Arc;

use super::membership::PeerEvent;
use super::uplinks::InterfacePattern;
use crate::ipam::pool::Pool;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::role::Role;
use crate::model::source_update::SourceUpdate;
use crate::model::{Interfaces, Mode, ObjectKey};

/// What the engine must know before the first event. Fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// This node's name, as in Node objects and endpoints.
    pub node: Box<str>,
    /// Source of addresses.
    pub pools: Vec<Pool>,
    /// Never hand out IPv4 addresses that end in .0 or .255.
    pub avoid_buggy_ips: bool,
    /// Default for Services without an annotation.
    pub mode: Mode,
    /// The `spec.loadBalancerClass` that Pinnace serves.
    pub class: Box<str>,
    /// Pinnace also serves Services without a class.
    pub claim_default: bool,
    /// Names or patterns of the uplinks; empty: found by the rules of [`uplinks`](super::uplinks).
    pub interfaces: Vec<InterfacePattern>,
    /// New addresses are probed before they are used.
    pub probe: bool,
    /// Alone with manifests, Follower with an API server.
    pub role: Role,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The source of objects changed, has now been read completely, or its health changed.
    Source(SourceUpdate),
    /// The interfaces of this host, all of them.
    Interfaces(Arc<Interfaces>),
    /// The pools changed. Addresses that are in no pool any more are withdrawn.
    Pools(Vec<Pool>),
    /// The announcer received a frame or finished probing.
    Announcer(AnnouncerEvent),
    /// Result of a ruleset transaction.
    RuleSet {
        /// Error of the transaction; None: the ruleset is in the kernel.
        error: Option<String>,
        /// The last plan whose changes the transaction contains.
        generation: u64,
    },
    /// This node became leader or lost leadership.
    Role(Role),
    /// The node that holds the Lease, as far as is known.
    Leader(Option<Box<str>>),
    /// Health of leader election. Err: why the Lease cannot be acquired, so no node allocates
    /// addresses.
    LeaderHealth(Result<(), String>),
    /// A status patch failed and is not retried by the status writer.
    PatchFailed {
        /// The Service.
        key: ObjectKey,
        /// The resource version for which the patch was made.
        resource_version: Arc<str>,
        /// The API server's error, if it rejects the patch for good.
        refusal: Option<String>,
    },
    /// A session or the neighbour table reported something about a peer.
    Peer(PeerEvent),
    /// Time has passed: conflicts are tried again, and what
    /// [`Engine::poll_timeout`](super::Engine::poll_timeout) waited for is done.
    Tick,
    /// This process is about to stop: hand over addresses, or withdraw them where no node can take
    /// over. See
    /// [`Engine::drained`](super::Engine::drained).
    Drain,
}
