//! Node mode: who has which port on which node.
//!
//! Of each port there is one per node and address family, so two Services are in each other's way
//! only where both the nodes and the families that they are for meet. On each node, for each
//! family, a Service has all of its ports or none: an address at which one of its ports leads to
//! another Service must not be published as its own. First come those that had their ports there
//! already, then the older ones. Nothing else counts, least of all what was heard first: every node
//! works this out for itself, for all nodes, from what all know.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::allocation::Port;
use super::node_mode;
use super::refusal::Refusal;
use crate::model::{Family, ObjectKey, Service};

/// A Service, and what decides where it has its ports.
#[derive(Debug)]
pub struct PortClaim<'a> {
    /// What it wants, and how old it is.
    pub service: &'a Service,
    /// The nodes that are to serve it.
    pub nodes: Rc<BTreeSet<&'a str>>,
    /// Where it had ports, and which.
    pub had: BTreeMap<(&'a str, Family), Rc<[Port]>>,
}

/// Another Service has one of the ports there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConflict {
    /// Which port; there may be more.
    pub port: Port,
    /// Who has it.
    pub holder: ObjectKey,
    /// At the addresses of this family.
    pub family: Family,
    /// Of these nodes, by name, sorted.
    pub nodes: Vec<Box<str>>,
}

/// Who wants which ports, and where each does not get them. A Service whose ports nobody else wants
/// costs O(ports × log all ports).
#[derive(Debug, Default)]
pub struct NodePorts {
    /// None of the lists is empty; mostly it is one Service.
    claimants: BTreeMap<Port, Vec<ObjectKey>>,
    /// The same by Service, sorted.
    claims: BTreeMap<ObjectKey, Box<[Port]>>,
    /// Nothing is here of a Service that has its ports everywhere.
    losses: BTreeMap<ObjectKey, Vec<PortConflict>>,
    /// Who has these may have changed.
    unsettled: BTreeSet<Port>,
}

impl NodePorts {
    /// The Service wants its ports, and no others any more. To be said again whenever anything
    /// about it changed, or about the nodes.
    pub fn claim(&mut self, service: &Service) {
        let ports = sorted(service);
        if self.claims.get(&service.key).map(|ports| &**ports) != Some(&*ports) {
            self.release(&service.key);
            for port in &ports {
                let claimants = self.claimants.entry(*port).or_default();
                claimants.reserve_exact(1);
                claimants.push(service.key.clone());
            }
            self.claims.insert(service.key.clone(), ports.clone().into());
        }
        let contested =
            |port: &&Port| self.claimants.get(port).is_some_and(|claimants| claimants.len() > 1);
        self.unsettled.extend(ports.iter().filter(contested));
    }

    /// The Service wants no port of the nodes.
    pub fn release(&mut self, key: &ObjectKey) {
        self.losses.remove(key);
        for port in self.claims.remove(key).unwrap_or_default() {
            if let Some(claimants) = self.claimants.get_mut(&port) {
                claimants.retain(|claimant| claimant != key);
                if claimants.is_empty() {
                    self.claimants.remove(&port);
                }
            }
            self.unsettled.insert(port);
        }
    }

    /// Whether [`NodePorts::settle`] has something to do.
    pub fn unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Works out anew who has the ports about which something changed. Returns the Services for
    /// which it came out otherwise than before.
    pub fn settle<'a>(
        &mut self,
        contender: impl Fn(&ObjectKey) -> Option<PortClaim<'a>>,
    ) -> BTreeSet<ObjectKey> {
        let involved = self.involved();
        let mut before: BTreeMap<ObjectKey, Vec<PortConflict>> =
            involved.iter().filter_map(|key| self.losses.remove_entry(key)).collect();
        let alone =
            |port: &Port| self.claimants.get(port).is_none_or(|claimants| claimants.len() == 1);
        let contested = involved
            .iter()
            .filter(|key| !self.claims.get(key).is_none_or(|ports| ports.iter().all(alone)));
        let mut contenders: Vec<PortClaim> = contested.filter_map(contender).collect();
        contenders.sort_by_key(|contender| (contender.service.created, &contender.service.key));
        for (key, losses) in contest(&contenders) {
            self.losses.insert(key, losses);
        }
        involved
            .into_iter()
            .filter(|key| before.remove(key).as_deref().unwrap_or_default() != self.losses(key))
            .collect()
    }

    /// Where the Service does not have its ports.
    pub fn losses(&self, key: &ObjectKey) -> &[PortConflict] {
        self.losses.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether the Service, if it is for this node and family, has its ports there.
    pub fn has(&self, key: &ObjectKey, node: &str, family: Family) -> bool {
        !self.losses(key).iter().any(|loss| {
            loss.family == family && loss.nodes.binary_search_by(|name| (**name).cmp(node)).is_ok()
        })
    }

    /// The other Services that want a port which this one wants.
    pub fn rivals(&self, key: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        let ports = self.claims.get(key).into_iter().flatten();
        ports
            .filter_map(|port| self.claimants.get(port))
            .flatten()
            .filter(move |claimant| *claimant != key)
    }

    /// Everybody whose outcome the unsettled ports may change: who wants one of them, or a port
    /// that such a Service wants as well.
    fn involved(&mut self) -> BTreeSet<ObjectKey> {
        let mut seen = std::mem::take(&mut self.unsettled);
        let mut next: Vec<Port> = seen.iter().copied().collect();
        let mut involved = BTreeSet::new();
        while let Some(port) = next.pop() {
            for key in self.claimants.get(&port).into_iter().flatten() {
                if involved.insert(key.clone()) {
                    next.extend(
                        self.claims
                            .get(key)
                            .into_iter()
                            .flatten()
                            .copied()
                            .filter(|port| seen.insert(*port)),
                    );
                }
            }
        }
        involved
    }
}

fn sorted(service: &Service) -> Vec<Port> {
    let ports: BTreeSet<Port> =
        service.ports.iter().map(|port| (port.protocol, port.port)).collect();
    ports.into_iter().collect()
}

/// How much of what it wants a Service had on one node, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ClaimRank {
    Whole,
    /// It asks for more now: those it had stay, those that others had it does not get.
    Part,
    /// It is served on other nodes, or its address here is not one of those that are published.
    Elsewhere,
    Nothing,
}

impl PortClaim<'_> {
    fn wants(&self, node: &str, family: Family) -> bool {
        self.nodes.contains(node) && node_mode::families(self.service).contains(&family)
    }

    fn standing(&self, node: &str, family: Family) -> ClaimRank {
        let Some(had) = self.had.get(&(node, family)) else {
            return if self.had.is_empty() { ClaimRank::Nothing } else { ClaimRank::Elsewhere };
        };
        match self
            .service
            .ports
            .iter()
            .filter(|port| had.contains(&(port.protocol, port.port)))
            .count()
        {
            0 => ClaimRank::Elsewhere,
            some if some == self.service.ports.len() => ClaimRank::Whole,
            _ => ClaimRank::Part,
        }
    }
}

/// Who loses what to whom. `contenders` are sorted, the older first.
fn contest(contenders: &[PortClaim]) -> BTreeMap<ObjectKey, Vec<PortConflict>> {
    let nodes: BTreeSet<&str> =
        contenders.iter().flat_map(|contender| contender.nodes.iter().copied()).collect();
    // By loser, family, port and holder.
    let mut lost: BTreeMap<(usize, Family, Port, usize), Vec<Box<str>>> = BTreeMap::new();
    for node in nodes {
        for family in Family::ALL {
            let here = contenders
                .iter()
                .enumerate()
                .filter(|(_, contender)| contender.wants(node, family));
            let mut here: Vec<(ClaimRank, usize)> = here
                .map(|(number, contender)| (contender.standing(node, family), number))
                .collect();
            here.sort_unstable();
            let mut taken: BTreeMap<Port, usize> = BTreeMap::new();
            for (_, number) in here {
                let ports = || {
                    contenders[number].service.ports.iter().map(|port| (port.protocol, port.port))
                };
                match ports().find_map(|port| Some((port, *taken.get(&port)?))) {
                    Some((port, holder)) => {
                        lost.entry((number, family, port, holder)).or_default().push(node.into())
                    }
                    None => taken.extend(ports().map(|port| (port, number))),
                }
            }
        }
    }
    let mut losses = BTreeMap::<ObjectKey, Vec<PortConflict>>::new();
    for ((loser, family, port, holder), mut nodes) in lost {
        nodes.shrink_to_fit();
        let [loser, holder] = [loser, holder].map(|number| contenders[number].service.key.clone());
        losses.entry(loser).or_default().push(PortConflict { port, holder, family, nodes });
    }
    losses
}

/// What has to be said about the losses of one Service: for whoever holds a port against it one
/// reason, which names the nodes. Both families are one where they come out alike, or where
/// `families` says that the Service has but one.
pub fn refusals(losses: Vec<PortConflict>, families: &[Family]) -> Vec<Refusal> {
    let mut grouped = BTreeMap::<(Port, ObjectKey), Vec<(Family, Vec<Box<str>>)>>::new();
    for loss in losses {
        grouped.entry((loss.port, loss.holder)).or_default().push((loss.family, loss.nodes));
    }
    let mut refusals = Vec::new();
    for (((protocol, port), holder), mut places) in grouped {
        let alike =
            places.len() == families.len() && places.iter().all(|(_, nodes)| *nodes == places[0].1);
        if alike {
            places.truncate(1);
        }
        for (family, nodes) in places {
            let family = (!alike).then_some(family);
            refusals.push(Refusal::PortTaken {
                protocol,
                port,
                holder: holder.clone(),
                family,
                nodes,
            });
        }
    }
    refusals
}
