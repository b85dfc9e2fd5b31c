//! What was last emitted, in one place: a plan holds only what differs from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::election::Vips;
use super::eligibility;
use super::plan::{Plan, Sessions};
use super::world::{Derived, World};
use super::{exclusion, reservations};
use crate::model::Exclusion;
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;

/// Values last emitted.
#[derive(Debug, Default)]
pub(super) struct Emitted {
    uplinks: Option<BTreeSet<Box<str>>>,
    /// Revisions of `carrying` and `announcements` of [`Vips`].
    vips: Option<u64>,
    announcements: u64,
    announce_interval: Option<Duration>,
    sessions: Sessions,
    exclusions: BTreeMap<Box<str>, Exclusion>,
    /// The role in which exclusions were reported.
    role: Role,
    reserved: BTreeMap<Box<str>, String>,
    ipv6_off: bool,
}

impl Emitted {
    /// Puts into the plan what differs from what was emitted before, and remembers it.
    pub fn diff(
        &mut self,
        world: &World,
        derived: &Derived,
        vips: &Vips,
        announce_interval: Option<Duration>,
        plan: &mut Plan,
    ) {
        self.diff_announcements(vips, plan);
        self.diff_ipv6_off(derived, plan);
        if !world.started {
            return;
        }
        self.diff_ruleset(derived, vips, plan);
        self.diff_exclusions(world, derived, plan);
        plan.diagnostics.extend(reservations::diff(&self.reserved, &derived.reserved_in_pools));
        self.reserved.clone_from(&derived.reserved_in_pools);
        if self.announce_interval != announce_interval {
            self.announce_interval = announce_interval;
            plan.announce_interval = Some(announce_interval);
        }
        let sessions = Sessions {
            peers: world.membership.sessions(),
            local_addresses: world.membership.local_addresses().clone(),
        };
        if self.sessions != sessions {
            plan.sessions = Some(sessions.clone());
            self.sessions = sessions;
        }
    }

    fn diff_ruleset(&mut self, derived: &Derived, vips: &Vips, plan: &mut Plan) {
        if self.uplinks.as_ref() != Some(&derived.uplink_names) {
            self.uplinks = Some(derived.uplink_names.clone());
            plan.rule_set.uplinks.clone_from(&self.uplinks);
        }
        if self.vips != Some(vips.carrying.revision()) {
            self.vips = Some(vips.carrying.revision());
            plan.rule_set.vips = Some(vips.carrying.clone());
        }
    }

    fn diff_announcements(&mut self, vips: &Vips, plan: &mut Plan) {
        if self.announcements != vips.announcements.revision() {
            self.announcements = vips.announcements.revision();
            plan.announcements = Some(vips.announcements.clone());
        }
    }

    /// Whether announcements changed since they were last emitted.
    pub fn announcements_changed(&self, vips: &Vips) -> bool {
        self.announcements != vips.announcements.revision()
    }

    fn diff_ipv6_off(&mut self, derived: &Derived, plan: &mut Plan) {
        if derived.ipv6_off && !self.ipv6_off {
            let message = format!(
                "{}: IPv6 addresses of the pools are not announced here, IPv4 is served",
                eligibility::IPV6_OFF
            );
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: None,
                node: None,
                reason: "Ipv6Off",
                message,
            });
        }
        self.ipv6_off = derived.ipv6_off;
    }

    /// The leader reports all excluded nodes; every follower reports itself in its own log. A new
    /// leader reports them again, as the Events of the one before may be gone.
    fn diff_exclusions(&mut self, world: &World, derived: &Derived, plan: &mut Plan) {
        let reports = |name: &str| world.role != Role::Follower || name == &*world.settings.node;
        if self.role != world.role {
            self.role = world.role;
            if world.role == Role::Leader {
                self.exclusions.clear();
            } else {
                self.exclusions.retain(|name, _| reports(name));
            }
        }
        let now: BTreeMap<Box<str>, Exclusion> = derived
            .excluded
            .iter()
            .filter(|(name, _)| reports(name))
            .map(|(name, exclusion)| (name.clone(), *exclusion))
            .collect();
        plan.diagnostics.extend(exclusion::diff(&self.exclusions, &now, &world.index));
        self.exclusions = now;
    }
}
