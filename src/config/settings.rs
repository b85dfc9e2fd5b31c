//! The configuration of a node, parsed and within its limits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::bfd::packet::Key;
use crate::engine::uplinks::InterfacePattern;
use crate::ipam::pool::Pool;
use crate::model::Mode;
pub use crate::model::on_exit::OnExit;

/// The configuration of a node. Each field is described in [`super::TABLE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of Service, EndpointSlice and Node manifests to serve from.
    pub manifests: Option<PathBuf>,
    /// Path of the kubeconfig; None: searched for, unless there are manifests.
    pub kubeconfig: Option<PathBuf>,
    /// API servers that replace the one the credentials name; empty: that one.
    pub api_servers: Vec<http::Uri>,
    /// Namespace of the Lease; None: kube-system.
    pub namespace: Option<Box<str>>,
    /// This node's name, as EndpointSlices and Nodes spell it.
    pub node_name: Box<str>,
    /// Directory of the state that survives restarts.
    pub state_dir: PathBuf,
    /// Address pools; empty: node mode only.
    pub pools: Vec<Pool>,
    /// Whether addresses ending in .0 or .255 are never allocated.
    pub avoid_buggy_ips: bool,
    /// Mode of Services that do not choose one.
    pub mode: Mode,
    /// The `spec.loadBalancerClass` of managed Services.
    pub class: Box<str>,
    /// Whether Services without a class are managed too.
    pub claim_default: bool,
    /// Interfaces that are uplinks whatever their kind; empty: found by their addresses.
    pub interfaces: Vec<InterfacePattern>,
    /// Duration of address conflict detection (RFC 5227) before the first announcement; zero: off.
    pub probe: Duration,
    /// Address of the HTTP server; None: off.
    pub listen: Option<SocketAddr>,
    pub on_exit: OnExit,
    /// Timeout of the dead man's switch; 10 s to 24 h.
    pub dead_man: Duration,
    /// Valid filter directives.
    pub log: Box<str>,
    pub log_format: LogFormat,
    /// Interval at which owned addresses are announced again; 1 s to 100 s.
    pub announce_interval: Duration,
    /// Transmit interval of BFD; 3 ms to 1 s.
    pub bfd_interval: Duration,
    /// Detection multiplier of BFD; 2 to 50.
    pub bfd_multiplier: u8,
    /// Key that authenticates BFD packets between nodes; None: they are not authenticated.
    pub secret: Option<Key>,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people and the journal.
    Human,
    /// One JSON object per line.
    Json,
}
