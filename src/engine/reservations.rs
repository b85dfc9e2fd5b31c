//! What no pool may hand out, and that it is said where a pool contains it: who counts addresses
//! misses them otherwise.

use std::collections::BTreeMap;

use super::Engine;
use super::plan::Plan;
use crate::ipam::pool::Pool;
use crate::ipam::{Reserved, ReservedAddresses, reserve_own, reserved_sentence};
use crate::model::Interfaces;
use crate::model::diagnostic::Diagnostic;
use crate::model::state::Reason;

const RESERVED: &str = "PoolAddressReserved";

/// What was said about them, by pool.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    told: BTreeMap<Box<str>, String>,
    /// What is reserved changed since.
    pub stale: bool,
}

impl Engine {
    /// Addresses that no pool may hand out, whatever its ranges say.
    pub(super) fn reserved(&self, interfaces: &Interfaces) -> ReservedAddresses {
        let mut reserved = ReservedAddresses::new();
        reserve_own(interfaces, &self.settings.node, &mut reserved);
        for node in self.index.nodes() {
            for address in node.internal.iter().chain(&node.external) {
                reserved.insert(*address, Reserved::NodeAddress(node.name.clone()));
            }
        }
        reserved
    }

    /// Says once which addresses of the pools are reserved, and again when it is others.
    pub(super) fn emit_reserved(&mut self, plan: &mut Plan) {
        if !self.started || !std::mem::take(&mut self.reservations.stale) {
            return;
        }
        let now: BTreeMap<Box<str>, String> = self.reserved_sentences().collect();
        for (_, message) in
            now.iter().filter(|(pool, message)| self.reservations.told.get(*pool) != Some(message))
        {
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: None,
                node: None,
                reason: RESERVED,
                message: message.clone(),
            });
        }
        self.reservations.told = now;
    }

    /// For `status`.
    pub(super) fn reserved_warnings(&self) -> impl Iterator<Item = Reason> {
        self.reserved_sentences().map(|(_, sentence)| Reason::new(RESERVED, sentence))
    }

    fn reserved_sentences(&self) -> impl Iterator<Item = (Box<str>, String)> {
        let sentence =
            |pool: &Pool| Some((pool.name.clone(), reserved_sentence(pool, self.ipam.reserved())?));
        self.settings.pools.iter().filter_map(sentence)
    }
}
