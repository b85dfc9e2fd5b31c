//! Nodes that are kept out of load balancing, said loudly: who labelled a node long ago, or never
//! knew of the label, looks for the fault everywhere else.

use std::collections::BTreeMap;

use super::Engine;
use super::election::rank;
use super::plan::Plan;
use crate::model::Exclusion;
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;
use crate::model::state::Reason;

/// What was said about them.
#[derive(Debug, Default)]
pub(super) struct Exclusions {
    told: BTreeMap<Box<str>, Exclusion>,
    /// Node objects, or who says it, changed since.
    pub stale: bool,
}

impl Engine {
    /// Says which nodes are excluded now and which no longer are. The writer says it about all,
    /// every other node in its own log about itself.
    pub(super) fn emit_exclusions(&mut self, plan: &mut Plan) {
        if !self.started || !std::mem::take(&mut self.exclusions.stale) {
            return;
        }
        let mut now = self.excluded();
        if self.role == Role::Follower {
            now.retain(|name, _| *name == self.settings.node);
        }
        let before = std::mem::take(&mut self.exclusions.told);
        for (name, exclusion) in &now {
            if before.get(name) != Some(exclusion) {
                let label = *exclusion == Exclusion::Label;
                let until = if label { "; until then it answers for no Service" } else { "" };
                let message =
                    format!("{}{until}", rank::excluded(&format!("node {name}"), *exclusion));
                // The others are what somebody is just doing.
                plan.diagnostics.push(Diagnostic {
                    warning: label,
                    service: None,
                    node: Some(name.clone()),
                    reason: "NodeExcluded",
                    message,
                });
            }
        }
        for name in
            before.keys().filter(|name| !now.contains_key(*name) && self.index.node(name).is_some())
        {
            let message = format!("node {name} takes part in load balancing again");
            plan.diagnostics.push(Diagnostic {
                warning: false,
                service: None,
                node: Some(name.clone()),
                reason: "NodeIncluded",
                message,
            });
        }
        self.exclusions.told = now;
    }

    /// Who said it before may have been another node, whose Events may be gone.
    pub(super) fn reemit_exclusions(&mut self) {
        self.exclusions = Exclusions { told: BTreeMap::new(), stale: true };
    }

    fn excluded(&self) -> BTreeMap<Box<str>, Exclusion> {
        self.index.nodes().filter_map(|node| Some((node.name.clone(), node.excluded?))).collect()
    }

    /// For `status`.
    pub(super) fn exclusion_warnings(&self) -> impl Iterator<Item = Reason> {
        let said = |(name, exclusion): (Box<str>, Exclusion)| {
            Reason::new("NodeExcluded", rank::excluded(&format!("node {name}"), exclusion))
        };
        self.excluded().into_iter().map(said)
    }

    /// Every node is kept out of load balancing, so nobody may answer for a virtual address.
    pub(super) fn everybody_excluded(&self) -> Option<Reason> {
        let mut why = Vec::new();
        for node in self.index.nodes() {
            why.push(rank::excluded(&format!("node {}", node.name), node.excluded?));
        }
        (!why.is_empty()).then(|| {
            Reason::new(
                "UnAvailableLoadBalancer",
                format!("There are no available nodes for LoadBalancer: {}", why.join("; ")),
            )
        })
    }
}
