//! The state of the node as plain data: the body of `/state`, and what `pinnace status` prints.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Mode, ObjectKey, Protocol, TrafficPolicy};

/// The state of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    pub node: String,
    /// Version of the program.
    pub version: String,
    pub pid: u32,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// The node is ready when all of these are met.
    pub ready: Vec<Condition>,
    /// Sorted by namespace and name.
    pub services: Vec<ServiceStatus>,
    /// Virtual addresses, sorted.
    pub addresses: Vec<AddressStatus>,
    /// All interfaces but loopback.
    pub interfaces: Vec<InterfaceStatus>,
    pub pools: Vec<PoolStatus>,
    /// Invalid objects in the source.
    pub problems: Vec<SourceProblem>,
    /// The other nodes, sorted by name.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// The leader, which allocates addresses and writes status; None with manifests, where every
    /// node allocates by itself.
    #[serde(default)]
    pub leader: Option<LeaderStatus>,
    /// Conditions that need attention; they do not keep the node from being ready.
    #[serde(default)]
    pub warnings: Vec<Reason>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    pub node: String,
    /// The addresses of its BFD sessions.
    pub addresses: Vec<IpAddr>,
    /// Whether a BFD session with it is up.
    pub alive: bool,
    /// State for people, with the reason.
    pub state: String,
    /// Seconds since the state changed; None when unknown.
    pub seconds: Option<u64>,
    /// Detection time (RFC 5880 §6.8.4) while a session is up. It exceeds interval × multiplier of
    /// the settings when packets come late.
    pub detection_milliseconds: Option<u64>,
}

/// Leader election, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderStatus {
    /// The node that holds the Lease; None when unknown.
    pub node: Option<String>,
    /// Whether it is this node.
    pub here: bool,
}

/// One named condition of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// CamelCase.
    pub name: String,
    /// Whether it is met.
    pub status: bool,
    /// Why it is not met; empty when it is.
    pub message: String,
}

impl Condition {
    /// `otherwise` is the message of a condition that is not met.
    pub fn when(name: &str, status: bool, otherwise: impl Into<String>) -> Condition {
        Condition {
            name: name.into(),
            status,
            message: if status { String::new() } else { otherwise.into() },
        }
    }
}

/// Progress of a Service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Phase {
    Serving,
    /// It will be served without anybody's help: a probe ends, an endpoint gets ready.
    #[default]
    Pending,
    /// It will not be served until somebody changes something.
    Failed,
    /// It belongs to another implementation.
    Unmanaged,
}

/// Why a Service is not served, or not as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// CamelCase, for machines.
    pub code: String,
    /// A sentence that says what is wrong and what to do.
    pub message: String,
}

impl Reason {
    pub fn new(code: &str, message: impl Into<String>) -> Reason {
        Reason { code: code.into(), message: message.into() }
    }
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    pub key: ObjectKey,
    /// None for an unmanaged Service.
    pub mode: Option<Mode>,
    /// What clients connect to.
    pub addresses: Vec<IpAddr>,
    /// The pool of the addresses, in vip mode.
    pub pool: Option<String>,
    /// In the order of the object.
    pub ports: Vec<PortStatus>,
    /// `externalTrafficPolicy`.
    pub policy: TrafficPolicy,
    /// `sessionAffinity` is ClientIP.
    pub client_affinity: bool,
    pub phase: Phase,
    /// Why it is not served, or not as asked.
    pub reasons: Vec<Reason>,
    /// The node that answers for its addresses; None: no node, or all of them in node mode.
    pub owner: Option<String>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Empty when unnamed.
    pub name: String,
    pub protocol: Protocol,
    /// What clients connect to.
    pub port: u16,
    /// Usable endpoints on all nodes.
    pub endpoints: usize,
    /// Usable endpoints on this node.
    pub local: usize,
}

/// One virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    pub address: IpAddr,
    /// The node that announces it.
    pub owner: Option<String>,
    /// The interfaces on which this node announces it.
    pub announced_on: Vec<String>,
    pub phase: AddressPhase,
    /// The Services that hold it.
    pub services: Vec<ObjectKey>,
}

/// Progress of an address on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "name")]
pub enum AddressPhase {
    /// Address conflict detection is under way.
    Probing,
    /// This node answers for it.
    Announced,
    /// This node answers for it, and so does another machine.
    Contested {
        /// The other machine's hardware address.
        mac: String,
    },
    /// Another node answers for it, and this one is ready to.
    Standby,
    /// This node does not answer for it.
    NotAnnounced { reason: String },
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    /// Whether VIPs are announced on it.
    pub uplink: bool,
    /// Administratively up and with carrier.
    pub up: bool,
    /// Why it is no uplink.
    pub reason: Option<String>,
    /// Addresses with prefix length.
    pub addresses: Vec<IpNet>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub name: String,
    pub ranges: Vec<String>,
    /// Number of addresses that can be allocated.
    pub size: u128,
    /// Number of allocated addresses.
    pub used: usize,
}

/// An invalid object in the source, or a note on one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProblem {
    /// File and line.
    pub source: String,
    /// The object it is about.
    pub object: Option<String>,
    /// A note: nothing is wrong.
    pub note: bool,
    pub reason: String,
}

/// The answer of a Service's health check, as kube-proxy's healthCheckNodePort gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
    /// The ruleset is applied.
    pub proxy_healthy: bool,
}

/// Counts for metrics and systemd's status line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub serving: usize,
    pub pending: usize,
    pub failed: usize,
    /// Virtual addresses held by Services.
    pub addresses: usize,
    /// Virtual addresses announced by this node.
    pub announced: usize,
    /// Invalid objects in the source.
    pub problems: usize,
}
