//! What the data plane is asked to do with packets: the hand-over from decision ([`crate::engine`])
//! to ruleset ([`crate::nft`]).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::Protocol;

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FrontendKey {
    /// A VIP or an address of this node.
    pub address: IpAddr,
    /// Transport.
    pub protocol: Protocol,
    /// 1..=65535
    pub port: u16,
}

/// A pod, or whatever else answers for a Service; of the frontend's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Backend {
    /// Where it listens.
    pub address: IpAddr,
    /// 1..=65535
    pub port: u16,
    /// Runs on this node: replies pass here by themselves, no masquerade is needed.
    pub local: bool,
}

/// Where new connections to a frontend go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balancing {
    /// Evenly over these backends (never empty), sorted and without duplicates, by a hash of the
    /// flow.
    FlowHash(Vec<Backend>),
    /// The same, by a hash of the client's address alone (ClientIP affinity), in Maglev buckets.
    ClientIp(Vec<Backend>),
    /// Nothing serves: TCP reset or ICMP port unreachable.
    Reject,
    /// Not here: silence (Local without a local endpoint).
    Drop,
}

/// The forwarding of one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forwarding {
    /// For everybody, unless `external` says otherwise: pods and the node itself get Cluster
    /// semantics.
    pub internal: Balancing,
    /// For connections that arrive on an uplink, where it differs (externalTrafficPolicy Local);
    /// None: as `internal`.
    pub external: Option<Balancing>,
    /// Who may connect from an uplink, of the frontend's family; None: everybody. Empty: nobody.
    pub sources: Option<Vec<IpNet>>,
}
