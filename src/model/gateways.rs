use std::collections::BTreeMap;
use std::net::IpAddr;

use super::mac::Mac;

/// Link-layer addresses of the default gateways, by interface and address. All requests from
/// outside the LAN come through them.
pub type Gateways = BTreeMap<u32, BTreeMap<IpAddr, Mac>>;
