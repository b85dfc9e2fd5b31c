//! The objects as the source last reported them, joined by their references. Computes which Services
//! a change affects.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::model::{EndpointSlice, Kind, Node, ObjectKey, Service, SourceChange};

/// Interned names that many objects share.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<Arc<str>>);

impl Names {
    /// Maximum number of interned names; any further name has its own allocation.
    const MOST: usize = 1024;

    /// Replaces the name by an equal interned one.
    pub fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.0.get(name) {
            *name = known.clone();
            return;
        }
        if self.0.len() >= Self::MOST {
            // A name with a single reference is used by no object any more.
            self.0.retain(|name| Arc::strong_count(name) > 1);
        }
        if self.0.len() < Self::MOST {
            self.0.insert(name.clone());
        }
    }
}

/// The cluster's objects.
#[derive(Debug, Default)]
pub struct Index {
    services: BTreeMap<ObjectKey, Box<Service>>,
    /// Service → its slices by name. Slices may arrive before their Service. Mostly it is one: a
    /// map each would be far larger than that.
    // Boxed: a vector grows by doubling, and its spare capacity would be whole slices.
    #[allow(clippy::vec_box)]
    slices: BTreeMap<ObjectKey, Vec<Box<EndpointSlice>>>,
    /// Slice → the Service it belongs to: a slice that is deleted or relabelled no longer says.
    slice_services: BTreeMap<ObjectKey, Arc<str>>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// Names of nodes that endpoints are on, whether or not the Node is known: in a first list,
    /// slices may come before Nodes.
    names: Names,
    listing: Listing,
}

/// Objects known when the source began to relist, and not listed since. None: no relist is in
/// progress.
#[derive(Debug, Default)]
struct Listing {
    services: Option<BTreeSet<ObjectKey>>,
    slices: Option<BTreeSet<ObjectKey>>,
    nodes: Option<BTreeSet<Arc<str>>>,
}

/// What must be reconciled after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The Service or its endpoints changed.
    Service(ObjectKey),
    /// A Node changed: the serving nodes or their addresses may differ.
    Node(Box<str>),
}

impl Index {
    /// Applies one change and passes what it affects to `touched`; nothing when the object is
    /// unchanged.
    pub fn apply<F: FnMut(Touched)>(&mut self, change: SourceChange, touched: &mut F) {
        match change {
            SourceChange::ListStart(kind) => self.list_start(kind),
            SourceChange::ListEnd(kind) => self.list_end(kind, touched),
            SourceChange::Service(mut key, mut service) => {
                mention(&mut self.listing.services, &key);
                self.share_namespace(&mut key);
                if let Some(service) = &mut service {
                    service.key = key.clone();
                    service.shrink_to_fit();
                }
                if replace(&mut self.services, &key, service) {
                    touched(Touched::Service(key));
                }
            }
            SourceChange::Node(name, node) => {
                let shared = Arc::from(&*name);
                mention(&mut self.listing.nodes, &shared);
                if replace(&mut self.nodes, &shared, node.map(|n| *n)) {
                    touched(Touched::Node(name));
                }
            }
            SourceChange::Slice(key, slice) => {
                mention(&mut self.listing.slices, &key);
                self.apply_slice(key, slice, touched);
            }
        }
    }

    fn list_start(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.listing.services = Some(self.services.keys().cloned().collect()),
            Kind::EndpointSlice => {
                self.listing.slices = Some(self.slice_services.keys().cloned().collect())
            }
            Kind::Node => self.listing.nodes = Some(self.nodes.keys().cloned().collect()),
        }
    }

    fn list_end(&mut self, kind: Kind, touched: &mut impl FnMut(Touched)) {
        let gone: Vec<SourceChange> = match kind {
            Kind::Service => self
                .listing
                .services
                .take()
                .into_iter()
                .flatten()
                .map(|key| SourceChange::Service(key, None))
                .collect(),
            Kind::EndpointSlice => self
                .listing
                .slices
                .take()
                .into_iter()
                .flatten()
                .map(|key| SourceChange::Slice(key, None))
                .collect(),
            Kind::Node => self
                .listing
                .nodes
                .take()
                .into_iter()
                .flatten()
                .map(|name| SourceChange::Node((*name).into(), None))
                .collect(),
        };
        for change in gone {
            self.apply(change, touched);
        }
        match kind {
            Kind::Service => fill_up(&mut self.services),
            Kind::EndpointSlice => {
                fill_up(&mut self.slices);
                fill_up(&mut self.slice_services);
            }
            Kind::Node => {}
        }
    }

    /// Shares one allocation among all objects with the same text.
    fn share_namespace(&self, key: &mut ObjectKey) {
        let below = self.services.range(..=&*key).next_back();
        let above = self.services.range(&*key..).next();
        if let Some((known, _)) =
            below.into_iter().chain(above).find(|(known, _)| known.namespace == key.namespace)
        {
            key.namespace = known.namespace.clone();
        }
    }

    fn apply_slice(
        &mut self,
        mut key: ObjectKey,
        slice: Option<Box<EndpointSlice>>,
        touched: &mut impl FnMut(Touched),
    ) {
        let before = self.slice_services.get(&key).cloned();
        let after = slice.as_ref().map(|s| s.service.clone());
        if before != after
            && let Some(service) = before
        {
            let service = ObjectKey { namespace: key.namespace.clone(), name: service };
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.retain(|slice| slice.key.name != key.name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.slice_services.remove(&key);
            touched(Touched::Service(service));
        }
        let Some(mut slice) = slice else { return };
        let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
        let service =
            self.services.get_key_value(&service).map_or(service, |(known, _)| known.clone());
        key.namespace = service.namespace.clone();
        slice.key = key.clone();
        slice.service = service.name.clone();
        slice.shrink_to_fit();
        for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
            match self.nodes.get_key_value(node) {
                Some((known, _)) => *node = known.clone(),
                None => self.names.share(node),
            }
        }
        self.slice_services.insert(key, slice.service.clone());
        let slices = self.slices.entry(service.clone()).or_default();
        match slices.binary_search_by(|other| other.key.name.cmp(&slice.key.name)) {
            Ok(at) if slices[at] == slice => return,
            Ok(at) => slices[at] = slice,
            Err(at) => {
                slices.reserve_exact(1);
                slices.insert(at, slice);
            }
        }
        touched(Touched::Service(service));
    }

    /// A Service by name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    /// All Services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// The slices of a Service, by name.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(service).into_iter().flatten().map(|slice| &**slice)
    }

    /// The first Service after this one, for walking through all of them while they change.
    pub fn service_after(&self, after: Option<&ObjectKey>) -> Option<&Service> {
        next_after(&self.services, after).map(|(_, service)| &**service)
    }

    /// The first Service after this one that has slices, and these. It may not be known itself.
    pub fn slices_after(
        &self,
        after: Option<&ObjectKey>,
    ) -> Option<(&ObjectKey, impl Iterator<Item = &EndpointSlice>)> {
        next_after(&self.slices, after)
            .map(|(key, slices)| (key, slices.iter().map(|slice| &**slice)))
    }

    /// The first Node after this one.
    pub fn node_after(&self, after: Option<&str>) -> Option<&Node> {
        next_after(&self.nodes, after).map(|(_, node)| node)
    }

    /// The Services with endpoints on a node. Looks at every endpoint: nodes die seldom, and a map
    /// of it would be as large as the slices.
    pub fn services_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
        let there = move |slice: &EndpointSlice| {
            slice.endpoints.iter().any(|endpoint| endpoint.node.as_deref() == Some(node))
        };
        self.slices
            .iter()
            .filter(move |(_, slices)| slices.iter().any(|slice| there(slice)))
            .map(|(key, _)| key)
    }

    /// A Node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> + Clone {
        self.nodes.values()
    }
}

fn next_after<'a, Q: Ord + ?Sized, K: Ord + Borrow<Q>, V>(
    map: &'a BTreeMap<K, V>,
    after: Option<&Q>,
) -> Option<(&'a K, &'a V)> {
    match after {
        Some(after) => map.range::<Q, _>((Bound::Excluded(after), Bound::Unbounded)).next(),
        None => map.first_key_value(),
    }
}

/// Rebuilds a map: B-tree nodes are half empty after insertion in key order, as in an initial list,
/// and full after bulk construction.
fn fill_up<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

fn mention<K: Ord>(unmentioned: &mut Option<BTreeSet<K>>, key: &K) {
    if let Some(keys) = unmentioned {
        keys.remove(key);
    }
}

/// Inserts, replaces or removes; true when that changed anything.
fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    value: Option<V>,
) -> bool {
    match value {
        None => map.remove(key).is_some(),
        Some(value) => match map.get_mut(key) {
            Some(old) if *old == value => false,
            Some(old) => {
                *old = value;
                true
            }
            None => map.insert(key.clone(), value).is_none(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    fn slice(name: &str, service: &str) -> SourceChange {
        let key = ObjectKey::new("default", name);
        let value = EndpointSlice {
            key: key.clone(),
            service: service.into(),
            family: Family::V4,
            ports: vec![],
            endpoints: vec![],
        };
        SourceChange::Slice(key, Some(Box::new(value)))
    }

    fn touched(index: &mut Index, change: SourceChange) -> Vec<String> {
        let mut all = Vec::new();
        index.apply(change, &mut |t| {
            all.push(match t {
                Touched::Service(key) => key.to_string(),
                Touched::Node(name) => name.to_string(),
            })
        });
        all
    }

    #[test]
    fn what_a_new_listing_does_not_mention_is_gone() {
        let mut index = Index::default();
        for name in ["a", "b"] {
            touched(&mut index, slice(name, "web"));
        }
        assert_eq!(touched(&mut index, SourceChange::ListStart(Kind::EndpointSlice)), [""; 0]);
        assert_eq!(touched(&mut index, slice("b", "web")), [""; 0], "as before");
        assert_eq!(
            touched(&mut index, SourceChange::ListEnd(Kind::Service)),
            [""; 0],
            "another kind"
        );
        assert_eq!(
            touched(&mut index, SourceChange::ListEnd(Kind::EndpointSlice)),
            ["default/web"]
        );
        assert_eq!(index.slices(&ObjectKey::new("default", "web")).count(), 1);
        assert_eq!(
            touched(&mut index, SourceChange::ListEnd(Kind::EndpointSlice)),
            [""; 0],
            "an end without a start"
        );
    }

    #[test]
    fn a_slice_that_moves_touches_both_services() {
        let mut index = Index::default();
        assert_eq!(touched(&mut index, slice("a", "web")), ["default/web"]);
        assert_eq!(touched(&mut index, slice("a", "web")), [""; 0], "unchanged");
        assert_eq!(touched(&mut index, slice("a", "api")), ["default/web", "default/api"]);
        assert_eq!(index.slices(&ObjectKey::new("default", "web")).count(), 0);
        assert_eq!(index.slices(&ObjectKey::new("default", "api")).count(), 1);
        assert_eq!(
            touched(&mut index, SourceChange::Slice(ObjectKey::new("default", "a"), None)),
            ["default/api"]
        );
        assert_eq!(
            touched(&mut index, SourceChange::Slice(ObjectKey::new("default", "a"), None)),
            [""; 0],
            "already gone"
        );
    }
}
