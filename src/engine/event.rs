//! What the engine is told: settings once, then events.

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
    /// Where addresses come from.
    pub pools: Vec<Pool>,
    /// Never hand out IPv4 addresses that end in .0 or .255.
    pub avoid_buggy_ips: bool,
    /// For Services that do not say.
    pub mode: Mode,
    /// The `spec.loadBalancerClass` that is ours.
    pub class: Box<str>,
    /// Services without a class are ours too.
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
    /// Other pools than so far: what left them is withdrawn.
    Pools(Vec<Pool>),
    /// The announcer learned something on the wire.
    Announcer(AnnouncerEvent),
    /// What became of the rules.
    RuleSet {
        /// None when they are in the kernel, else why not.
        error: Option<String>,
        /// The last plan whose changes are in it.
        generation: u64,
    },
    /// This node began or ceased to be the one that decides about addresses.
    Role(Role),
    /// The node that holds the Lease, as far as is known.
    Leader(Option<Box<str>>),
    /// Err says why the Lease cannot be asked for, so that nobody gives addresses.
    LeaderHealth(Result<(), String>),
    /// What was to be published about a Service did not come to stand, and nobody tries it again.
    PatchFailed {
        /// Which Service.
        key: ObjectKey,
        /// The version it was decided for.
        resource_version: Arc<str>,
        /// The API server's words, if it will never take it.
        refusal: Option<String>,
    },
    /// Something was learned about another node.
    Peer(PeerEvent),
    /// Time has passed: conflicts are tried again, and what
    /// [`Engine::poll_timeout`](super::Engine::poll_timeout) waited for is done.
    Tick,
    /// We are about to stop: hand over, or, where nobody can take over, announce nothing more. See
    /// [`Engine::drained`](super::Engine::drained).
    Drain,
}
