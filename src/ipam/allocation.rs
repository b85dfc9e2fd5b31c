//! What Services have been given, as it is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Family, ObjectKey, Protocol};

/// What Services have been given, for the next start.
pub type Allocations = BTreeMap<ObjectKey, Allocation>;

/// What one Service has been given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// At most one per family, the Service's first family first.
    pub addresses: Vec<IpAddr>,
    /// The pool they are from.
    pub pool: Box<str>,
    /// Those of them that nobody on the network objected to.
    #[serde(default)]
    pub probed: Vec<IpAddr>,
    /// Of a Service in node mode, which has no addresses of its own: its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Box<HeldPorts>>,
}

/// Transport and number, 1..=65535.
pub type Port = (Protocol, u16);

/// Which ports a Service has on which nodes, for the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPorts {
    /// Sorted.
    pub ports: Vec<Port>,
    /// By name of the node; none of the sets is empty.
    pub nodes: BTreeMap<Box<str>, BTreeSet<Family>>,
}
