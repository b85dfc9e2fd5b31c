//! What the engine believes, as plain data: `/state`, `pinnace status` and its JSON and YAML are
//! this.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Mode, ObjectKey, Protocol, TrafficPolicy};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// This node's name.
    pub node: String,
    /// Of the program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Ready is: all of these.
    pub ready: Vec<Condition>,
    /// By namespace and name.
    pub services: Vec<ServiceStatus>,
    /// Virtual addresses, numerically.
    pub addresses: Vec<AddressStatus>,
    /// Without loopback.
    pub interfaces: Vec<InterfaceStatus>,
    /// As configured.
    pub pools: Vec<PoolStatus>,
    /// What is wrong with the source of objects.
    pub problems: Vec<SourceProblem>,
    /// The other nodes, by name.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Who gives addresses to Services and writes them down; None with manifests, where every node
    /// does so for itself.
    #[serde(default)]
    pub leader: Option<LeaderStatus>,
    /// Named conditions that somebody should look at; they do not keep the node from being ready.
    #[serde(default)]
    pub warnings: Vec<Reason>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Where it is watched.
    pub addresses: Vec<IpAddr>,
    /// A BFD session with it is up.
    pub alive: bool,
    /// The same, for people, with the reason.
    pub state: String,
    /// For how long.
    pub seconds: Option<u64>,
    /// After so long a silence it is taken for dead (RFC 5880 §6.8.4, detection time), while a
    /// session with it is up. More than the settings say where packets come late.
    pub detection_milliseconds: Option<u64>,
}

/// Who gives addresses to Services and writes their status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderStatus {
    /// The node that holds the Lease, as far as is known here.
    pub node: Option<String>,
    /// It is this one.
    pub here: bool,
}

/// One named condition of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// CamelCase.
    pub name: String,
    /// Met or not.
    pub status: bool,
    /// Why not; empty when met.
    pub message: String,
}

impl Condition {
    /// Met when `status` is; else for the reason given.
    pub fn when(name: &str, status: bool, otherwise: impl Into<String>) -> Condition {
        Condition {
            name: name.into(),
            status,
            message: if status { String::new() } else { otherwise.into() },
        }
    }
}

/// How far a Service has come.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Phase {
    /// Clients are served.
    Serving,
    /// It will be served once something passes by itself or an endpoint gets ready.
    #[default]
    Pending,
    /// Somebody has to change something.
    Failed,
    /// It belongs to another implementation.
    Unmanaged,
}

/// Why a Service is not served, or not as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// CamelCase, for machines.
    pub code: String,
    /// A sentence that says what to do.
    pub message: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: &str, message: impl Into<String>) -> Reason {
        Reason { code: code.into(), message: message.into() }
    }
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Namespace and name.
    pub key: ObjectKey,
    /// None for one that is not ours.
    pub mode: Option<Mode>,
    /// What clients connect to.
    pub addresses: Vec<IpAddr>,
    /// The pool they are from, in vip mode.
    pub pool: Option<String>,
    /// In the order of the object.
    pub ports: Vec<PortStatus>,
    /// `externalTrafficPolicy`.
    pub policy: TrafficPolicy,
    /// `sessionAffinity` is ClientIP.
    pub client_affinity: bool,
    /// How far it has come.
    pub phase: Phase,
    /// Why not further.
    pub reasons: Vec<Reason>,
    /// The node that answers for its addresses; None: nobody, or every node for itself.
    pub owner: Option<String>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Empty when unnamed.
    pub name: String,
    /// Transport.
    pub protocol: Protocol,
    /// What clients connect to.
    pub port: u16,
    /// That may be used, anywhere.
    pub endpoints: usize,
    /// Of these, on this node.
    pub local: usize,
}

/// One virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// Which.
    pub address: IpAddr,
    /// The node that announces it.
    pub owner: Option<String>,
    /// The interfaces on which this node announces it.
    pub announced_on: Vec<String>,
    /// How far it has come.
    pub phase: AddressPhase,
    /// Who holds it.
    pub services: Vec<ObjectKey>,
}

/// How far an address has come on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "name")]
pub enum AddressPhase {
    /// The network is being asked whether it is in use.
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
    NotAnnounced {
        /// Why not.
        reason: String,
    },
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Outside traffic arrives here.
    pub uplink: bool,
    /// Up and with a link.
    pub up: bool,
    /// Why it is no uplink.
    pub reason: Option<String>,
    /// With their prefixes.
    pub addresses: Vec<IpNet>,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// As configured.
    pub name: String,
    /// As configured.
    pub ranges: Vec<String>,
    /// Addresses in it that can be given out.
    pub size: u128,
    /// Of these, given out.
    pub used: usize,
}

/// Something wrong with the source of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProblem {
    /// File and line.
    pub source: String,
    /// The object it is about.
    pub object: Option<String>,
    /// Worth knowing, but nothing is wrong.
    pub note: bool,
    /// A plain sentence.
    pub reason: String,
}

/// The answer of a Service's health check, as kube-proxy's healthCheckNodePort gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Ready endpoints on this node.
    pub local_endpoints: usize,
    /// The rules are in the kernel.
    pub proxy_healthy: bool,
}

/// What the engine counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Services that are served.
    pub serving: usize,
    /// Services that wait for something.
    pub pending: usize,
    /// Services that somebody must change something for.
    pub failed: usize,
    /// Virtual addresses held by Services.
    pub addresses: usize,
    /// Of these, announced by this node.
    pub announced: usize,
    /// Things wrong with the source of objects.
    pub problems: usize,
}
