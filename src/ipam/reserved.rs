//! Addresses of the pools that are never given out, whoever asks for them, and how that is said.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::pool::{AddressRange, Pool};
use crate::model::{Family, Interfaces};

/// Maximum number of addresses that a message names with the reason; of more, it gives the number.
const NAMED: usize = 6;

/// Why an address is never given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// It is a node's own.
    NodeAddress(Box<str>),
    /// The network address of a subnet.
    Network,
    /// The broadcast address of a subnet.
    Broadcast,
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reserved::NodeAddress(node) => write!(f, "an address of node {node}"),
            Reserved::Network => f.write_str("the network address of its subnet"),
            Reserved::Broadcast => f.write_str("the broadcast address of its subnet"),
        }
    }
}

/// Which addresses, and why.
pub type ReservedAddresses = BTreeMap<IpAddr, Reserved>;

/// kube-proxy in IPVS mode puts every address that the status of a Service names on this interface:
/// they are no node's own.
pub const IPVS_INTERFACE: &str = "kube-ipvs0";

/// Adds the addresses of this node, and the ends of the subnets that it is in.
pub fn reserve_own(interfaces: &Interfaces, node: &str, reserved: &mut ReservedAddresses) {
    let own = interfaces.values().filter(|interface| &*interface.name != IPVS_INTERFACE);
    for subnet in own.flat_map(|interface| &interface.addresses) {
        reserved.insert(subnet.addr(), Reserved::NodeAddress(node.into()));
        reserve_ends(subnet, reserved);
    }
}

/// No host has the first and the last address of an IPv4 subnet; with two addresses or one there
/// are none besides (RFC 3021).
fn reserve_ends(subnet: &IpNet, reserved: &mut ReservedAddresses) {
    if let IpNet::V4(subnet) = subnet
        && subnet.prefix_len() < 31
    {
        reserved.insert(subnet.network().into(), Reserved::Network);
        reserved.insert(subnet.broadcast().into(), Reserved::Broadcast);
    }
}

/// Which of them are in the pool, in one sentence; None when none is.
pub fn sentence(pool: &Pool, reserved: &ReservedAddresses) -> Option<String> {
    let found: Vec<String> = pool
        .ranges
        .iter()
        .flat_map(|range| within(range, reserved))
        .map(|(a, why)| format!("{a} ({why})"))
        .collect();
    let more = found.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = found[..found.len().min(NAMED)].join(", ");
    (!found.is_empty()).then(|| {
        format!("pool {} contains addresses that are never given out: {named}{more}", pool.name)
    })
}

/// How many addresses of the pool can be given out. With `buggy`, those that end in .0 or .255
/// cannot, though a Service may ask for them.
pub fn usable(pool: &Pool, reserved: &ReservedAddresses, buggy: bool) -> u128 {
    count(&ranges(&[pool], &[]), reserved, buggy, std::iter::empty()).usable
}

/// An IPv4 address that ends in .0 or .255: some old equipment drops them.
pub fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

fn within<'a>(
    range: &AddressRange,
    reserved: &'a ReservedAddresses,
) -> impl Iterator<Item = (&'a IpAddr, &'a Reserved)> {
    reserved.range(range.first()..=range.last())
}

fn buggy_in(range: &AddressRange) -> u128 {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (range.first(), range.last()) else { return 0 };
    // Of the addresses below n: two of each whole block of 256, and the first of one that was
    // begun.
    let below = |n: u64| 2 * (n / 256) + u64::from(!n.is_multiple_of(256));
    u128::from(below(u64::from(last.to_bits()) + 1) - below(u64::from(first.to_bits())))
}

/// What there is in some ranges.
pub(super) struct Count {
    /// Can be given out, or has been.
    pub usable: u128,
    /// Is never given out.
    pub withheld: u128,
    /// Another machine uses it; not among the others.
    pub in_use: usize,
}

/// Counts addresses; `in_use` are those that other machines use, in any range.
pub(super) fn count(
    ranges: &[&AddressRange],
    reserved: &ReservedAddresses,
    buggy: bool,
    in_use: impl Iterator<Item = IpAddr>,
) -> Count {
    let all = ranges.iter().map(|range| range.len()).fold(0, u128::saturating_add);
    let besides = ranges
        .iter()
        .flat_map(|range| within(range, reserved))
        .filter(|(address, _)| !(buggy && is_buggy(**address)));
    let ends = ranges.iter().map(|range| if buggy { buggy_in(range) } else { 0 }).sum::<u128>();
    let withheld = besides.count() as u128 + ends;
    let in_use = in_use.filter(|address| {
        ranges.iter().any(|range| range.contains(*address)) && !reserved.contains_key(address)
    });
    let in_use = in_use.filter(|address| !(buggy && is_buggy(*address))).count();
    Count { usable: all.saturating_sub(withheld).saturating_sub(in_use as u128), withheld, in_use }
}

/// The ranges of these pools in these families; empty: all.
pub(super) fn ranges<'a>(pools: &[&'a Pool], families: &[Family]) -> Vec<&'a AddressRange> {
    let wanted = |range: &&AddressRange| families.is_empty() || families.contains(&range.family());
    pools.iter().flat_map(|pool| &pool.ranges).filter(wanted).collect()
}
