//! Everything that can be set, understood and within its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::bfd::packet::Key;
use crate::engine::uplinks::InterfacePattern;
use crate::ipam::pool::Pool;
use crate::model::Mode;

/// The configuration of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of Service, EndpointSlice and Node manifests to serve from.
    pub manifests: Option<PathBuf>,
    /// Credentials for the Kubernetes API; None: found by themselves where there are no manifests.
    pub kubeconfig: Option<PathBuf>,
    /// API servers in place of the one the credentials name; empty: that one.
    pub api_servers: Vec<http::Uri>,
    /// Where the Lease is; None: in kube-system.
    pub namespace: Option<Box<str>>,
    /// This node's name, as EndpointSlices and Nodes spell it.
    pub node_name: Box<str>,
    /// Where the state that survives restarts is kept.
    pub state_dir: PathBuf,
    /// What may be handed out; empty: node mode only.
    pub pools: Vec<Pool>,
    /// Addresses ending in .0 or .255 are never handed out.
    pub avoid_buggy_ips: bool,
    /// Mode of Services that do not choose one.
    pub mode: Mode,
    /// The `spec.loadBalancerClass` that is ours.
    pub class: Box<str>,
    /// Services without a class are ours too.
    pub claim_default: bool,
    /// Interfaces that are uplinks whatever their kind; empty: found by their addresses.
    pub interfaces: Vec<InterfacePattern>,
    /// How long a new address is probed before it is first announced; zero: not at all.
    pub probe: Duration,
    /// Where health, metrics and state are served; None: nowhere.
    pub listen: Option<SocketAddr>,
    /// What becomes of the rules at SIGTERM.
    pub on_exit: OnExit,
    /// The rules disarm themselves when nobody has refreshed them for this long; 10 s to 24 h.
    pub dead_man: Duration,
    /// Filter directives, known to be valid.
    pub log: Box<str>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Every owned address is announced again this often; 1 s to 100 s.
    pub announce_interval: Duration,
    /// Between two packets to another node; 3 ms to 1 s.
    pub bfd_interval: Duration,
    /// So many missing packets are a dead node; 2 to 50.
    pub bfd_multiplier: u8,
    /// By which nodes know each other's packets; None: they are not authenticated.
    pub secret: Option<Key>,
}

/// What becomes of the rules when the process is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// They go with it: the next node takes over.
    Remove,
    /// They stay until the dead man's switch disarms them: nothing is interrupted by an upgrade.
    Keep,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people and the journal.
    Human,
    /// One JSON object per line.
    Json,
}
