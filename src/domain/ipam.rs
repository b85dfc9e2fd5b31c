//! Address management: which Service has which virtual address. Sticky: what a Service has it keeps while it may; what it had
//! before a restart it gets again. Only addresses of our own pools are ever given, whatever an object says (CVE-2020-8554).

mod claim;
mod ports;
#[cfg(test)]
mod ports_tests;
mod refusal;
mod reserved;
mod retiring;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::model::{Family, ObjectKey, Service};
use super::pool::Pool;
use crate::wire::ethernet::Mac;
use claim::Claim;
pub use ports::{Contender, HeldPorts, NodePorts, Port, refusals};
pub use refusal::Refusal;
use reserved::Count;
pub use reserved::{Reserved, ReservedAddresses, reserve_ends, sentence as reserved_sentence, usable};

/// What Services have been given, for the next start.
pub type Allocations = BTreeMap<ObjectKey, Allocation>;

/// What one Service has been given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// At most one per family, the Service's first family first.
    pub addresses: Vec<IpAddr>,
    /// The pool they are from.
    pub pool: Box<str>,
    /// Those of them that nobody on the network objected to.
    #[serde(default)]
    pub probed: Vec<IpAddr>,
    /// Of a Service in node mode, which has no addresses of its own: its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Box<HeldPorts>>,
}

/// The answer to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// As in [`Allocation`].
    pub addresses: Vec<IpAddr>,
    /// What is less than the Service asked for, or new, in plain sentences.
    pub notes: Vec<String>,
}

/// How to choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Never give out IPv4 addresses that end in .0 or .255: some old equipment drops them.
    pub avoid_buggy_ips: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
    options: Options,
    /// Shared with whoever writes it down.
    allocations: Arc<Allocations>,
    /// Address → holders, mostly one. None: remembered from before a restart, the Service has not been seen yet.
    holders: BTreeMap<IpAddr, Vec<(ObjectKey, Option<Claim>)>>,
    reserved: ReservedAddresses,
    conflicts: BTreeMap<IpAddr, (Mac, Duration)>,
    /// Pool index and family → how many of its first addresses are known to be free for nobody: of 5,000 Services each would
    /// otherwise search through what all before it were given.
    taken: BTreeMap<(usize, Family), u128>,
    /// What Services keep for a while beside what they were given.
    retiring: BTreeMap<ObjectKey, Vec<IpAddr>>,
    changed: bool,
    reclaimed: bool,
}

impl Ipam {
    /// What was saved is remembered even where a pool no longer has it: the Service is told when it is asked about.
    pub fn new(pools: Vec<Pool>, options: Options, saved: Allocations) -> Ipam {
        let mut holders = BTreeMap::new();
        for (key, allocation) in &saved {
            for address in &allocation.addresses {
                add_holder(holders.entry(*address).or_default(), key, None);
            }
        }
        Ipam {
            pools,
            options,
            allocations: Arc::new(saved),
            holders,
            reserved: ReservedAddresses::new(),
            conflicts: BTreeMap::new(),
            taken: BTreeMap::new(),
            retiring: BTreeMap::new(),
            changed: false,
            reclaimed: false,
        }
    }

    /// Everything given out.
    pub fn allocations(&self) -> &Arc<Allocations> {
        &self.allocations
    }

    /// Whether the allocations changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whether since this was last asked a Service came to hold an address on other terms: another may now share it.
    pub fn take_reclaimed(&mut self) -> bool {
        std::mem::take(&mut self.reclaimed)
    }

    /// Other pools than so far. As after a restart, Services are told when they are asked about.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.pools = pools;
        self.taken.clear();
    }

    /// Addresses that are never given out, whatever the pools say. True when they are others than before.
    pub fn set_reserved(&mut self, reserved: ReservedAddresses) -> bool {
        let changed = self.reserved != reserved;
        if changed {
            self.reserved = reserved;
            self.taken.clear();
        }
        changed
    }

    /// The same.
    pub fn reserved(&self) -> &ReservedAddresses {
        &self.reserved
    }

    /// Another machine uses this address: it is left alone until `until`, and taken from whoever had just been given it.
    pub fn conflict(&mut self, address: IpAddr, mac: Mac, until: Duration) {
        self.conflicts.insert(address, (mac, until));
    }

    /// Forgets conflicts that are over; true when there were any.
    pub fn expire_conflicts(&mut self, now: Duration) -> bool {
        let before = self.conflicts.len();
        self.conflicts.retain(|_, (_, until)| *until > now);
        let expired = self.conflicts.len() != before;
        if expired {
            self.taken.clear();
        }
        expired
    }

    /// Whether nobody on the network objected to this address when it was new.
    pub fn probed(&self, address: IpAddr) -> bool {
        let holders = self.holders.get(&address).into_iter().flatten();
        holders.filter_map(|(key, _)| self.allocations.get(key)).any(|allocation| allocation.probed.contains(&address))
    }

    /// Nobody objected.
    pub fn mark_probed(&mut self, address: IpAddr) {
        for (key, _) in self.holders.get(&address).into_iter().flatten() {
            if self.allocations.get(key).is_none_or(|allocation| allocation.probed.contains(&address)) {
                continue;
            }
            if let Some(allocation) = Arc::make_mut(&mut self.allocations).get_mut(key) {
                allocation.probed.push(address);
                self.changed = true;
            }
        }
    }

    /// The Service gives back what it has; true when it had something.
    pub fn release(&mut self, key: &ObjectKey) -> bool {
        let retired = self.retiring.remove(key);
        retired.iter().flatten().for_each(|address| self.drop_holder(key, *address));
        // Looked up first: the whole map is copied when it changes while somebody writes it down.
        let Some(allocation) = self.allocations.get(key).cloned() else { return retired.is_some() };
        Arc::make_mut(&mut self.allocations).remove(key);
        allocation.addresses.iter().for_each(|address| self.drop_holder(key, *address));
        self.changed = true;
        true
    }

    /// Gives the Service its addresses: those it has, else those it asks for, else free ones. After a refusal it has none.
    pub fn assign(&mut self, service: &Service) -> Result<Assignment, Refusal> {
        let had = self.allocations.get(&service.key).cloned();
        let mut notes = Vec::new();
        if let Some(allocation) = &had {
            match self.still_good(service, allocation) {
                Ok(()) => {
                    self.hold(service, allocation.clone());
                    notes.extend(lacks(service, &allocation.addresses, &allocation.pool));
                    return Ok(Assignment { addresses: allocation.addresses.clone(), notes });
                }
                Err(Some(why)) => notes.push(format!("gave up {}: {why}", super::engine::list(&allocation.addresses))),
                Err(None) => {}
            }
            self.release(&service.key);
        }
        let kept = had.as_ref().map_or(&[][..], |had| &had.addresses);
        let (addresses, pool) = if service.request.addresses.is_empty() { self.choose(service, kept)? } else { self.requested(service)? };
        notes.extend(lacks(service, &addresses, &pool));
        // What was probed before and is still ours need not be probed again.
        let probed = had.map(|had| had.probed).unwrap_or_default().into_iter().filter(|a| addresses.contains(a)).collect();
        self.hold(service, Allocation { addresses: addresses.clone(), pool, probed, ports: None });
        addresses.iter().for_each(|address| self.is_taken(*address));
        Ok(Assignment { addresses, notes })
    }

    /// Holds what the status of the Service says, as far as it is ours to serve, and takes it from younger Services that may not share it:
    /// they are returned and have to be decided about again. What the status does not say the Service has no more. Such
    /// addresses count as probed: somebody did when they were new, and a failover must not wait.
    pub fn adopt(&mut self, service: &Service) -> (Result<Assignment, Refusal>, Vec<ObjectKey>) {
        let (mut addresses, mut notes, mut evicted) = (Vec::<IpAddr>::new(), Vec::new(), Vec::new());
        let mut refusal = None;
        let mut pool_name = Box::<str>::default();
        for address in service.published.iter().copied() {
            let family = Family::of(address);
            let wrong_family = !service.families.is_empty() && !service.families.contains(&family);
            let verdict = if wrong_family {
                Err(Refusal::WrongFamily { address })
            } else if addresses.iter().any(|had| Family::of(*had) == family) {
                Err(Refusal::TwoOfOneFamily { family })
            } else {
                self.admissible(service, address).map(|pool| pool.name.clone()).and_then(|name| match self.rivals(service, address) {
                    Ok(younger) => Ok((name, younger)),
                    Err(holder) => Err(Refusal::Held { address, holder }),
                })
            };
            match verdict {
                Ok((name, younger)) => {
                    pool_name = name;
                    addresses.push(address);
                    for key in younger {
                        self.release(&key);
                        evicted.push(key);
                    }
                }
                Err(why) => {
                    notes.push(format!("status says {address}: {why}"));
                    refusal.get_or_insert(why);
                }
            }
        }
        let before = self.allocations.get(&service.key);
        if before.is_some_and(|before| before.addresses != addresses) {
            self.release(&service.key);
        }
        if addresses.is_empty() {
            return (refusal.map_or(Ok(Assignment { addresses: Vec::new(), notes: Vec::new() }), Err), evicted);
        }
        self.hold(service, Allocation { addresses: addresses.clone(), pool: pool_name, probed: addresses.clone(), ports: None });
        (Ok(Assignment { addresses, notes }), evicted)
    }

    /// Holders of the address that may not share it with this Service and have to give way; Err: one that does not.
    fn rivals(&self, service: &Service, address: IpAddr) -> Result<Vec<ObjectKey>, ObjectKey> {
        let claim = Claim::of(service);
        let mut younger = Vec::new();
        for (holder, held) in self.holders.get(&address).into_iter().flatten().filter(|(holder, _)| *holder != service.key) {
            match held {
                Some(held) if held.agrees(&claim) => {}
                Some(held) if held.rank(holder, address) < claim.rank(&service.key, address) => return Err(holder.clone()),
                _ => younger.push(holder.clone()),
            }
        }
        Ok(younger)
    }

    fn hold(&mut self, service: &Service, allocation: Allocation) {
        for address in &allocation.addresses {
            self.reclaimed |= add_holder(self.holders.entry(*address).or_default(), &service.key, Some(Claim::of(service)));
        }
        if self.allocations.get(&service.key) != Some(&allocation) {
            Arc::make_mut(&mut self.allocations).insert(service.key.clone(), allocation);
            self.changed = true;
        }
    }

    /// Whether what a Service has is what it should have now. Err(None): it asks for something else, which needs no comment.
    fn still_good(&self, service: &Service, allocation: &Allocation) -> Result<(), Option<Refusal>> {
        let asked = &service.request.addresses;
        if !asked.is_empty() && asked.iter().collect::<BTreeSet<_>>() != allocation.addresses.iter().collect() {
            return Err(None);
        }
        let family_gone = |address: &IpAddr| !service.families.is_empty() && !service.families.contains(&Family::of(*address));
        if allocation.addresses.iter().any(family_gone) || allocation.addresses.is_empty() {
            return Err(None);
        }
        for address in &allocation.addresses {
            let pool = self.usable(service, *address).map_err(Some)?;
            if service.request.pool.as_ref().is_some_and(|wanted| *wanted != pool.name) {
                return Err(None);
            }
        }
        // A family that was added, or could not be had before, is worth another try.
        let could_have = |family| self.find(service, &[], self.pools.iter().position(|p| p.name == allocation.pool), family).is_some();
        if asked.is_empty() && lacking(service, &allocation.addresses).any(could_have) {
            return Err(None);
        }
        Ok(())
    }

    /// Whether this Service may hold this address as far as others do not, and from which pool it is.
    fn admissible(&self, service: &Service, address: IpAddr) -> Result<&Pool, Refusal> {
        let pool = self.pools.iter().find(|pool| pool.contains(address)).ok_or(Refusal::OutsidePools { address })?;
        if !pool.admits(&service.key.namespace) {
            return Err(Refusal::PoolReserved { pool: pool.name.clone(), namespace: (*service.key.namespace).into() });
        }
        if let Some(reserved) = self.reserved.get(&address) {
            return Err(Refusal::Reserved { address, reserved: reserved.clone() });
        }
        if let Some((mac, _)) = self.conflicts.get(&address) {
            return Err(Refusal::InUse { address, mac: *mac });
        }
        Ok(pool)
    }

    /// Whether this Service may hold this address, and from which pool it is.
    fn usable(&self, service: &Service, address: IpAddr) -> Result<&Pool, Refusal> {
        let pool = self.admissible(service, address)?;
        let claim = Claim::of(service);
        for (holder, held) in self.holders.get(&address).into_iter().flatten().filter(|(holder, _)| *holder != service.key) {
            // One that is only remembered shared the address before the restart, if this Service had it too.
            let remembered = held.is_none() && self.allocations.get(&service.key).is_some_and(|a| a.addresses.contains(&address));
            if !remembered && !held.as_ref().is_some_and(|held| held.agrees(&claim)) {
                return Err(Refusal::Held { address, holder: holder.clone() });
            }
        }
        Ok(pool)
    }

    /// Exactly the addresses the Service asks for.
    fn requested(&self, service: &Service) -> Result<(Vec<IpAddr>, Box<str>), Refusal> {
        let asked = &service.request.addresses;
        let mut families = BTreeSet::new();
        let mut name: Option<Box<str>> = None;
        for address in asked {
            let family = Family::of(*address);
            if !families.insert(family) {
                return Err(Refusal::TwoOfOneFamily { family });
            }
            if !service.families.is_empty() && !service.families.contains(&family) {
                return Err(Refusal::WrongFamily { address: *address });
            }
            let pool = self.usable(service, *address)?;
            if let Some(wanted) = service.request.pool.as_ref().filter(|wanted| **wanted != pool.name) {
                return Err(Refusal::NotInPool { address: *address, pool: wanted.clone() });
            }
            name.get_or_insert(pool.name.clone());
        }
        if service.require_dual_stack && families.len() < 2 {
            return Err(Refusal::DualStack);
        }
        let mut addresses = asked.clone();
        let rank = |address: &IpAddr| service.families.iter().position(|family| *family == Family::of(*address));
        addresses.sort_by_key(rank);
        Ok((addresses, name.unwrap_or_default()))
    }

    /// Free addresses out of the first pool that has them all, else out of the first that has some. Those that it has had, `kept`, come first.
    fn choose(&self, service: &Service, kept: &[IpAddr]) -> Result<(Vec<IpAddr>, Box<str>), Refusal> {
        let mut candidates = self.candidates(service)?;
        candidates.sort_by_key(|index| !kept.iter().any(|address| self.pools[*index].contains(*address)));
        let mut best: Option<(Vec<IpAddr>, Box<str>)> = None;
        for index in &candidates {
            let pool = &self.pools[*index];
            let first_family = Family::ALL.into_iter().find(|family| pool.has(*family));
            let families: Vec<Family> =
                if service.families.is_empty() { first_family.into_iter().collect() } else { service.families.clone() };
            let found: Vec<IpAddr> = families.iter().filter_map(|family| self.find(service, kept, Some(*index), *family)).collect();
            let complete = found.len() == families.len();
            if found.len() > best.as_ref().map_or(0, |(addresses, _)| addresses.len()) {
                best = Some((found, pool.name.clone()));
            }
            if complete {
                break;
            }
        }
        match best {
            Some((addresses, _)) if service.require_dual_stack && addresses.len() < 2 => Err(Refusal::DualStack),
            Some(best) => Ok(best),
            None => Err(self.exhausted(&candidates, &service.families)),
        }
    }

    /// The pools that may serve this Service, those for its namespace first.
    fn candidates(&self, service: &Service) -> Result<Vec<usize>, Refusal> {
        if self.pools.is_empty() {
            return Err(Refusal::NoPools);
        }
        let namespace = &*service.key.namespace;
        if let Some(name) = &service.request.pool {
            let index = self.pools.iter().position(|pool| pool.name == *name);
            let index = index
                .ok_or_else(|| Refusal::NoSuchPool { pool: name.clone(), known: self.pools.iter().map(|p| p.name.clone()).collect() })?;
            return match self.pools[index].admits(namespace) {
                true => Ok(vec![index]),
                false => Err(Refusal::PoolReserved { pool: name.clone(), namespace: namespace.into() }),
            };
        }
        let open = (0..self.pools.len()).filter(|i| !self.pools[*i].on_request && self.pools[*i].admits(namespace));
        let (reserved, general): (Vec<usize>, Vec<usize>) = open.partition(|i| !self.pools[*i].namespaces.is_empty());
        let all: Vec<usize> = reserved.into_iter().chain(general).collect();
        if all.is_empty() { Err(Refusal::NoPoolForNamespace { namespace: namespace.into() }) } else { Ok(all) }
    }

    /// A free address: the one it had, by what is kept or according to its status, else one it may share, else the first that is free.
    fn find(&self, service: &Service, kept: &[IpAddr], pool: Option<usize>, family: Family) -> Option<IpAddr> {
        let index = pool?;
        let pool = self.pools.get(index)?;
        let fits = |address: &IpAddr| Family::of(*address) == family && pool.contains(*address) && self.usable(service, *address).is_ok();
        if let Some(address) = kept.iter().chain(&service.published).find(|a| fits(a)) {
            return Some(*address);
        }
        if service.request.sharing.is_some()
            && let Some(address) = self.holders.keys().find(|a| fits(a))
        {
            return Some(*address);
        }
        let free = |address: &IpAddr| !self.free_for_nobody(*address) && self.usable(service, *address).is_ok();
        let skip = self.taken.get(&(index, family)).copied().unwrap_or(0);
        pool.addresses(family, skip).find(free)
    }

    /// Whether no Service can be given this address unless it asks for it.
    fn free_for_nobody(&self, address: IpAddr) -> bool {
        let buggy = self.options.avoid_buggy_ips && reserved::is_buggy(address);
        buggy || self.holders.contains_key(&address) || self.reserved.contains_key(&address) || self.conflicts.contains_key(&address)
    }

    /// Somebody holds the address now: the next search begins behind it if nothing before it is free.
    fn is_taken(&mut self, address: IpAddr) {
        let family = Family::of(address);
        let Some(index) = self.pools.iter().position(|pool| pool.contains(address)) else { return };
        let taken = self.taken.get(&(index, family)).copied().unwrap_or(0);
        let more = self.pools[index].addresses(family, taken).take_while(|address| self.free_for_nobody(*address)).count();
        self.taken.insert((index, family), taken.saturating_add(more as u128));
    }

    /// Nobody holds the address any more.
    fn is_free(&mut self, address: IpAddr) {
        let Some(index) = self.pools.iter().position(|pool| pool.contains(address)) else { return };
        if let (Some(taken), Some(position)) = (self.taken.get_mut(&(index, Family::of(address))), self.pools[index].position(address)) {
            *taken = position.min(*taken);
        }
    }

    fn exhausted(&self, candidates: &[usize], families: &[Family]) -> Refusal {
        let pools: Vec<&Pool> = candidates.iter().map(|i| &self.pools[*i]).collect();
        let ranges = reserved::ranges(&pools, families);
        let in_use = self.conflicts.keys().copied();
        let Count { usable: size, withheld, in_use } = reserved::count(&ranges, &self.reserved, self.options.avoid_buggy_ips, in_use);
        let names = pools.iter().map(|pool| pool.name.clone()).collect();
        Refusal::Exhausted { pools: names, families: families.to_vec(), size, withheld, in_use }
    }
}

/// Families the Service wants and `addresses` do not have.
fn lacking<'s>(service: &'s Service, addresses: &[IpAddr]) -> impl Iterator<Item = Family> + use<'s> {
    let have: BTreeSet<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
    service.families.iter().copied().filter(move |family| !have.contains(family))
}

/// The same in sentences. Who names addresses gets no others.
fn lacks(service: &Service, addresses: &[IpAddr], pool: &str) -> Vec<String> {
    let sentence = |family| match service.request.addresses.is_empty() {
        true => format!("the pool {pool} has no free {family} address; serving without"),
        false => format!("none of the requested addresses is of {family}; serving without"),
    };
    lacking(service, addresses).map(sentence).collect()
}

/// Puts the Service among the holders, or its new claim in place of the old.
/// True when it held the address before, on other terms.
fn add_holder(holders: &mut Vec<(ObjectKey, Option<Claim>)>, key: &ObjectKey, claim: Option<Claim>) -> bool {
    match holders.iter_mut().find(|(holder, _)| holder == key) {
        Some((_, held)) => {
            let before = std::mem::replace(held, claim);
            before.as_ref().map(Claim::terms) != held.as_ref().map(Claim::terms)
        }
        None => {
            holders.reserve_exact(1);
            holders.push((key.clone(), claim));
            false
        }
    }
}
