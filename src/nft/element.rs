//! What one frontend puts into the maps.

use std::net::IpAddr;

use ipnet::IpNet;

use super::maglev;
use super::skeleton::{ChainId, HashClass, Scope, SetId, Verdict};
use crate::model::Family;
use crate::model::forwarding::{Backend, Balancing, Forwarding, FrontendKey};

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Unique in its set.
    pub key: Key,
    /// None in plain sets.
    pub value: Option<Value>,
}

/// A key, in one of the shapes that [`SetId::key`] describes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The ether type of the table's family.
    EtherType(Family),
    /// An interface name of at most 15 bytes.
    Interface(Box<str>),
    /// One address.
    Address(IpAddr),
    /// The same address twice, as source and destination.
    Twice(IpAddr),
    /// address . protocol . port
    Frontend(FrontendKey),
    /// address . protocol . port . source range
    Source(FrontendKey, IpNet),
    /// address . protocol . port . bucket
    Bucket(FrontendKey, u32),
}

/// What a key maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// In verdict maps.
    Verdict(Verdict),
    /// address . port of a backend.
    Backend(IpAddr, u16),
}

/// The class of a target; None for those that translate nothing.
pub fn class_of(frontend: &FrontendKey, target: &Balancing, scope: Scope) -> Option<HashClass> {
    let (backends, affinity) = members(frontend, target)?;
    let count = backends.count();
    let modulus = if affinity { maglev::size_for(count) } else { count as u32 };
    Some(HashClass { scope, affinity, modulus })
}

/// Number of elements that map a bucket of this target.
fn buckets(frontend: &FrontendKey, target: &Balancing, scope: Scope) -> usize {
    class_of(frontend, target, scope).map_or(0, |class| class.modulus as usize)
}

/// How many [`elements`] there are.
pub fn count(frontend: &FrontendKey, forwarding: &Forwarding) -> usize {
    if forwarding.sources.is_some() {
        return elements(frontend, forwarding).len();
    }
    counts(frontend, forwarding).iter().map(|(_, count)| count).sum()
}

/// How many [`elements`] there are per set, source ranges and what belongs to them left out.
pub fn counts(frontend: &FrontendKey, forwarding: &Forwarding) -> [(SetId, usize); 5] {
    let internal = buckets(frontend, &forwarding.internal, Scope::Cluster);
    let external =
        forwarding.external.as_ref().map_or(0, |target| buckets(frontend, target, Scope::Local));
    [
        (SetId::Services, 1),
        (SetId::External, usize::from(forwarding.external.is_some())),
        (SetId::Backends, internal),
        (SetId::LocalBackends, external),
        (SetId::Frontends, usize::from(internal + external > 0)),
    ]
}

/// Both targets of a forwarding, with their scopes.
pub fn targets(forwarding: &Forwarding) -> impl Iterator<Item = (&Balancing, Scope)> {
    let external = forwarding.external.as_ref().map(|target| (target, Scope::Local));
    std::iter::once((&forwarding.internal, Scope::Cluster)).chain(external)
}

/// Addresses of the backends on this node, without duplicates.
pub fn local_endpoints(frontend: &FrontendKey, forwarding: &Forwarding) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = targets(forwarding)
        .filter_map(|(target, _)| members(frontend, target))
        .flat_map(|(backends, _)| backends.filter(|b| b.local).map(|b| b.address))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The classes to which the verdicts of a frontend lead.
pub fn classes(frontend: &FrontendKey, forwarding: &Forwarding) -> impl Iterator<Item = HashClass> {
    targets(forwarding).filter_map(|(target, scope)| class_of(frontend, target, scope))
}

/// Every element that belongs to one frontend alone, ascending by set and key. The compiler counts
/// the elements that frontends share.
pub fn elements(frontend: &FrontendKey, forwarding: &Forwarding) -> Vec<(SetId, Element)> {
    let family = Family::of(frontend.address);
    let key = Key::Frontend(*frontend);
    let mut out = Vec::with_capacity(
        targets(forwarding).map(|(target, scope)| buckets(frontend, target, scope)).sum::<usize>()
            + 4,
    );
    let verdict = |target: &Balancing, scope| match (target, class_of(frontend, target, scope)) {
        (_, Some(class)) => Verdict::Goto(ChainId::Class(class)),
        (Balancing::Drop, None) => Verdict::Drop,
        (_, None) => Verdict::Goto(ChainId::Refuse),
    };
    let map = |to: Verdict| Element { key: key.clone(), value: Some(Value::Verdict(to)) };

    out.push((SetId::Services, map(verdict(&forwarding.internal, Scope::Cluster))));
    if let Some(external) = &forwarding.external {
        out.push((SetId::External, map(verdict(external, Scope::Local))));
    }
    if let Some(sources) = &forwarding.sources {
        out.push((SetId::SourceRestricted, map(Verdict::Jump(ChainId::SourceRanges))));
        // The kernel refuses overlapping ranges, so they are merged; the result is sorted.
        let mine: Vec<IpNet> = sources
            .iter()
            .filter(|net| Family::of(net.addr()) == family)
            .map(IpNet::trunc)
            .collect();
        let mut merged = IpNet::aggregate(&mine);
        merged.sort_unstable();
        out.extend(merged.into_iter().map(|net| {
            (SetId::SourceRanges, Element { key: Key::Source(*frontend, net), value: None })
        }));
    }
    let mut translates = false;
    for (target, scope) in targets(forwarding) {
        let set = match scope {
            Scope::Cluster => SetId::Backends,
            Scope::Local => SetId::LocalBackends,
        };
        let (Some(class), Some((backends, _))) =
            (class_of(frontend, target, scope), members(frontend, target))
        else {
            continue;
        };
        let backends: Vec<Backend> = backends.copied().collect();
        translates = true;
        let mut bucket = |number: usize, backend: &Backend| {
            let value = Some(Value::Backend(backend.address, backend.port));
            out.push((set, Element { key: Key::Bucket(*frontend, number as u32), value }));
        };
        if class.affinity {
            let table = maglev::table(&backends, class.modulus);
            for (number, &index) in table.iter().enumerate() {
                if let Some(backend) = backends.get(usize::from(index)) {
                    bucket(number, backend);
                }
            }
        } else {
            backends.iter().enumerate().for_each(|(number, backend)| bucket(number, backend));
        }
    }
    if translates {
        out.push((SetId::Frontends, Element { key, value: None }));
    }
    out
}

/// Backends of the frontend's family and whether clients stick to them; None when there is nothing
/// to translate to.
fn members<'a>(
    frontend: &FrontendKey,
    target: &'a Balancing,
) -> Option<(impl Iterator<Item = &'a Backend> + Clone + use<'a>, bool)> {
    let (backends, affinity) = match target {
        Balancing::FlowHash(backends) => (backends, false),
        Balancing::ClientIp(backends) => (backends, true),
        Balancing::Reject | Balancing::Drop => return None,
    };
    let family = Family::of(frontend.address);
    let mut mine =
        backends.iter().filter(move |b| Family::of(b.address) == family && b.port != 0).peekable();
    mine.peek()?;
    Some((mine, affinity))
}
