//! Addresses that no pool may allocate, and that this is said where a pool contains them: an
//! operator who counts addresses misses them otherwise.

use std::collections::BTreeMap;

use super::index::Index;
use crate::ipam::pool::Pool;
use crate::ipam::{Reserved, ReservedAddresses, reserve_own, reserved_sentence};
use crate::model::Interfaces;
use crate::model::diagnostic::Diagnostic;
use crate::model::state::Reason;

const RESERVED: &str = "PoolAddressReserved";

/// Addresses that no pool may allocate, whatever its ranges say.
pub(super) fn reserved(node: &str, index: &Index, interfaces: &Interfaces) -> ReservedAddresses {
    let mut reserved = ReservedAddresses::new();
    reserve_own(interfaces, node, &mut reserved);
    for node in index.nodes() {
        for address in node.internal.iter().chain(&node.external) {
            reserved.insert(*address, Reserved::NodeAddress(node.name.clone()));
        }
    }
    reserved
}

/// What is to be said about them, by pool.
pub(super) fn in_pools(pools: &[Pool], reserved: &ReservedAddresses) -> BTreeMap<Box<str>, String> {
    pools
        .iter()
        .filter_map(|pool| Some((pool.name.clone(), reserved_sentence(pool, reserved)?)))
        .collect()
}

/// What is to be said that was not said before.
pub(super) fn diff(
    before: &BTreeMap<Box<str>, String>,
    now: &BTreeMap<Box<str>, String>,
) -> Vec<Diagnostic> {
    now.iter()
        .filter(|(pool, message)| before.get(*pool) != Some(*message))
        .map(|(_, message)| Diagnostic {
            warning: true,
            service: None,
            node: None,
            reason: RESERVED,
            message: message.clone(),
        })
        .collect()
}

/// For `status`.
pub(super) fn warnings(in_pools: &BTreeMap<Box<str>, String>) -> impl Iterator<Item = Reason> {
    in_pools.values().map(|sentence| Reason::new(RESERVED, sentence.clone()))
}
