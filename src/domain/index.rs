//! The objects as the source last told them, joined by what refers to what. Answers "which Services does this change touch?".

use std::collections::{BTreeMap, BTreeSet};

use super::model::{EndpointSlice, Kind, Node, ObjectKey, Service, SourceChange};

/// Everything known about the cluster.
#[derive(Debug, Default)]
pub struct Index {
    services: BTreeMap<ObjectKey, Service>,
    /// Service → slice name → slice. Slices may arrive before their Service.
    slices: BTreeMap<ObjectKey, BTreeMap<Box<str>, EndpointSlice>>,
    /// Slice → the Service it belongs to: a slice that is deleted or relabelled no longer says.
    slice_services: BTreeMap<ObjectKey, Box<str>>,
    nodes: BTreeMap<Box<str>, Node>,
    /// Node → Service → how many of its slices have an endpoint there.
    node_services: BTreeMap<Box<str>, BTreeMap<ObjectKey, u32>>,
    listing: Listing,
}

/// What was known when the source began to tell everything anew, and has not been mentioned since. None: it is not doing so.
#[derive(Debug, Default)]
struct Listing {
    services: Option<BTreeSet<ObjectKey>>,
    slices: Option<BTreeSet<ObjectKey>>,
    nodes: Option<BTreeSet<Box<str>>>,
}

/// What has to be looked at again after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// This Service: itself or its endpoints.
    Service(ObjectKey),
    /// A Node: which nodes serve, and with which addresses.
    Node(Box<str>),
}

impl Index {
    /// Takes in one change; what it touches is passed to `touched`, nothing when the object is as before.
    pub fn apply<F: FnMut(Touched)>(&mut self, change: SourceChange, touched: &mut F) {
        match change {
            SourceChange::ListStart(kind) => self.list_start(kind),
            SourceChange::ListEnd(kind) => self.list_end(kind, touched),
            SourceChange::Service(key, service) => {
                mention(&mut self.listing.services, &key);
                if replace(&mut self.services, &key, service.map(|s| *s)) {
                    touched(Touched::Service(key));
                }
            }
            SourceChange::Node(name, node) => {
                mention(&mut self.listing.nodes, &name);
                if replace(&mut self.nodes, &name, node.map(|n| *n)) {
                    touched(Touched::Node(name));
                }
            }
            SourceChange::Slice(key, slice) => {
                mention(&mut self.listing.slices, &key);
                self.apply_slice(key, slice.map(|s| *s), touched);
            }
        }
    }

    fn list_start(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.listing.services = Some(self.services.keys().cloned().collect()),
            Kind::EndpointSlice => self.listing.slices = Some(self.slice_services.keys().cloned().collect()),
            Kind::Node => self.listing.nodes = Some(self.nodes.keys().cloned().collect()),
        }
    }

    fn list_end(&mut self, kind: Kind, touched: &mut impl FnMut(Touched)) {
        let gone: Vec<SourceChange> = match kind {
            Kind::Service => self.listing.services.take().into_iter().flatten().map(|key| SourceChange::Service(key, None)).collect(),
            Kind::EndpointSlice => self.listing.slices.take().into_iter().flatten().map(|key| SourceChange::Slice(key, None)).collect(),
            Kind::Node => self.listing.nodes.take().into_iter().flatten().map(|name| SourceChange::Node(name, None)).collect(),
        };
        for change in gone {
            self.apply(change, touched);
        }
    }

    fn apply_slice(&mut self, key: ObjectKey, slice: Option<EndpointSlice>, touched: &mut impl FnMut(Touched)) {
        let before = self.slice_services.get(&key).cloned();
        let after = slice.as_ref().map(|s| s.service.clone());
        if before != after
            && let Some(service) = before
        {
            let service = ObjectKey { namespace: key.namespace.clone(), name: service };
            if let Some(slices) = self.slices.get_mut(&service) {
                if let Some(old) = slices.remove(&key.name) {
                    count(&mut self.node_services, &service, &old, -1);
                }
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.slice_services.remove(&key);
            touched(Touched::Service(service));
        }
        let Some(slice) = slice else { return };
        let service = ObjectKey { namespace: key.namespace.clone(), name: slice.service.clone() };
        let slices = self.slices.entry(service.clone()).or_default();
        let name = key.name.clone();
        self.slice_services.insert(key, slice.service.clone());
        if slices.get(&name) != Some(&slice) {
            count(&mut self.node_services, &service, &slice, 1);
            if let Some(old) = slices.get(&name) {
                count(&mut self.node_services, &service, old, -1);
            }
        }
        if replace(slices, &name, Some(slice)) {
            touched(Touched::Service(service));
        }
    }

    /// A Service by name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All Services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The slices of a Service, by name.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices.get(service).into_iter().flat_map(|slices| slices.values())
    }

    /// The Services with endpoints on a node.
    pub fn services_on(&self, node: &str) -> impl Iterator<Item = &ObjectKey> {
        self.node_services.get(node).into_iter().flat_map(|services| services.keys())
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

fn count(nodes: &mut BTreeMap<Box<str>, BTreeMap<ObjectKey, u32>>, service: &ObjectKey, slice: &EndpointSlice, by: i32) {
    let named: BTreeSet<&str> = slice.endpoints.iter().filter_map(|endpoint| endpoint.node.as_deref()).collect();
    for node in named {
        if !nodes.contains_key(node) {
            nodes.insert(node.into(), BTreeMap::new());
        }
        let Some(services) = nodes.get_mut(node) else { continue };
        let slices = services.entry(service.clone()).or_default();
        *slices = slices.saturating_add_signed(by);
        if *slices == 0 {
            services.remove(service);
        }
        if services.is_empty() {
            nodes.remove(node);
        }
    }
}

fn mention<K: Ord>(unmentioned: &mut Option<BTreeSet<K>>, key: &K) {
    if let Some(keys) = unmentioned {
        keys.remove(key);
    }
}

/// Puts, replaces or removes; true when that changed anything.
fn replace<K: Ord + Clone, V: PartialEq>(map: &mut BTreeMap<K, V>, key: &K, value: Option<V>) -> bool {
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
    use super::super::model::Family;
    use super::*;

    fn slice(name: &str, service: &str) -> SourceChange {
        let key = ObjectKey::new("default", name);
        let value = EndpointSlice { key: key.clone(), service: service.into(), family: Family::V4, ports: vec![], endpoints: vec![] };
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
        assert_eq!(touched(&mut index, SourceChange::ListEnd(Kind::Service)), [""; 0], "another kind");
        assert_eq!(touched(&mut index, SourceChange::ListEnd(Kind::EndpointSlice)), ["default/web"]);
        assert_eq!(index.slices(&ObjectKey::new("default", "web")).count(), 1);
        assert_eq!(touched(&mut index, SourceChange::ListEnd(Kind::EndpointSlice)), [""; 0], "an end without a start");
    }

    #[test]
    fn a_slice_that_moves_touches_both_services() {
        let mut index = Index::default();
        assert_eq!(touched(&mut index, slice("a", "web")), ["default/web"]);
        assert_eq!(touched(&mut index, slice("a", "web")), [""; 0], "unchanged");
        assert_eq!(touched(&mut index, slice("a", "api")), ["default/web", "default/api"]);
        assert_eq!(index.slices(&ObjectKey::new("default", "web")).count(), 0);
        assert_eq!(index.slices(&ObjectKey::new("default", "api")).count(), 1);
        assert_eq!(touched(&mut index, SourceChange::Slice(ObjectKey::new("default", "a"), None)), ["default/api"]);
        assert_eq!(touched(&mut index, SourceChange::Slice(ObjectKey::new("default", "a"), None)), [""; 0], "already gone");
    }
}
