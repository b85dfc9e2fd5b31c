//! What is around this node: interfaces, nodes and pools, and which interfaces are uplinks because
//! of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::election::rank;
use super::plan::Plan;
use super::{Engine, uplinks};
use crate::ipam::pool::Pool;
use crate::model::diagnostic::Diagnostic;
use crate::model::{Family, Interfaces};

impl Engine {
    pub(super) fn interfaces_changed(&mut self, interfaces: Arc<Interfaces>, plan: &mut Plan) {
        let uplinks = self.judged(&interfaces);
        let before = self.interfaces.replace(interfaces);
        if let (Some(before), Some(after)) = (before, &self.interfaces)
            && uplinks::same(&before, &self.uplinks, after, &uplinks)
        {
            self.uplinks = uplinks;
            return;
        }
        self.environment_changed(plan);
    }

    pub(super) fn pools_changed(&mut self, pools: Vec<Pool>, plan: &mut Plan) {
        self.ipam.set_pools(pools.clone());
        self.settings.pools = pools;
        self.reservations.stale = true;
        self.environment_changed(plan);
    }

    /// Nodes, interfaces or pools changed: rare, and nearly everything may follow from it, so every
    /// Service is looked at again. What did not change makes no difference to the plan.
    pub(super) fn environment_changed(&mut self, plan: &mut Plan) {
        let Some(interfaces) = self.interfaces.clone() else { return };
        self.uplinks = self.judged(&interfaces);
        self.node_addresses = uplinks::node_addresses(&interfaces, &self.uplinks);
        self.reservations.stale |= self.ipam.set_reserved(self.reserved(&interfaces));
        let wanted = self.settings.pools.iter().any(|pool| pool.has(Family::V6));
        let off = wanted && rank::ipv6_off(&interfaces, &self.uplinks);
        if off && !self.told_ipv6_off {
            let message = format!(
                "{}: IPv6 addresses of the pools are not announced here, IPv4 is served",
                rank::IPV6_OFF
            );
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: None,
                node: None,
                reason: "Ipv6Off",
                message,
            });
        }
        self.told_ipv6_off = off;
        self.nodes_changed(&interfaces);
        self.dirty.extend(self.index.services().map(|s| s.key.clone()));
        if self.started {
            self.review_vips(self.vips.keys().copied().collect::<Vec<IpAddr>>(), plan);
        }
    }

    /// Which of the interfaces are uplinks.
    fn judged(&self, interfaces: &Interfaces) -> uplinks::Uplinks {
        let node = self.index.node(&self.settings.node);
        uplinks::by_settings(interfaces, node, &self.settings.pools, &self.settings.interfaces)
    }

    pub(super) fn uplink_names(&self) -> BTreeSet<Box<str>> {
        let interfaces = self.interfaces.as_deref();
        let name = |index: &u32| {
            interfaces.and_then(|all| all.get(index)).map(|interface| interface.name.clone())
        };
        self.uplinks
            .iter()
            .filter(|(_, verdict)| verdict.is_ok())
            .filter_map(|(index, _)| name(index))
            .collect()
    }
}
