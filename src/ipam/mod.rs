//! Address management: which Service has which virtual address. Sticky: what a Service has it keeps
//! while it may; what it had before a restart it gets again. Only addresses of our own pools are
//! ever given, whatever an object says (CVE-2020-8554).

mod allocate;
mod allocation;
mod claim;
mod draining;
mod foreign;
mod held_ports;
pub mod node_mode;
pub mod pool;
mod ports;
#[cfg(test)]
mod ports_tests;
mod refusal;
mod reserved;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use allocation::{Allocation, Allocations, HeldPorts, Port};
use claim::Claim;
use foreign::ForeignStatusAddresses;
use pool::Pool;
pub use ports::{NodePorts, PortClaim, refusals};
pub use refusal::Refusal;
pub use reserved::{
    IPVS_INTERFACE, Reserved, ReservedAddresses, reserve_own, sentence as reserved_sentence, usable,
};

use crate::model::mac::Mac;
use crate::model::{Family, ObjectKey, Service};

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

#[derive(Debug)]
pub struct Ipam {
    pools: Vec<Pool>,
    options: Options,
    /// Shared with whoever writes it down.
    allocations: Arc<Allocations>,
    /// Address → holders, mostly one. None: remembered from before a restart, the Service has not
    /// been seen yet.
    holders: BTreeMap<IpAddr, Vec<(ObjectKey, Option<Claim>)>>,
    reserved: ReservedAddresses,
    conflicts: BTreeMap<IpAddr, (Mac, Duration)>,
    elsewhere: ForeignStatusAddresses,
    /// Pool index and family → how many of its first addresses are known to be free for nobody: of
    /// 5,000 Services each would otherwise search through what all before it were given.
    taken: BTreeMap<(usize, Family), u128>,
    /// What Services keep for a while beside what they were given.
    retiring: BTreeMap<ObjectKey, Vec<IpAddr>>,
    changed: bool,
    reclaimed: bool,
}

impl Ipam {
    /// What was saved is remembered even where a pool no longer has it: the Service is told when it
    /// is asked about.
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
            elsewhere: ForeignStatusAddresses::default(),
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

    /// Whether since this was last asked a Service came to hold an address on other terms: another
    /// may now share it.
    pub fn take_reclaimed(&mut self) -> bool {
        std::mem::take(&mut self.reclaimed)
    }

    /// Other pools than so far. As after a restart, Services are told when they are asked about.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.pools = pools;
        self.taken.clear();
    }

    /// Addresses that are never given out, whatever the pools say. True when they are others than
    /// before.
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

    /// What stands in the status of a Service that somebody else serves: given only to who asks for
    /// it. Nothing: the Service is ours, or gone. True when an address may be free now.
    pub fn set_elsewhere(&mut self, key: &ObjectKey, addresses: &[IpAddr]) -> bool {
        let freed = self.elsewhere.set(key, addresses);
        if freed {
            self.taken.clear();
        }
        freed
    }

    /// Another machine uses this address: it is left alone until `until`, and taken from whoever
    /// had just been given it.
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
        holders
            .filter_map(|(key, _)| self.allocations.get(key))
            .any(|allocation| allocation.probed.contains(&address))
    }

    /// Nobody objected.
    pub fn mark_probed(&mut self, address: IpAddr) {
        for (key, _) in self.holders.get(&address).into_iter().flatten() {
            if self
                .allocations
                .get(key)
                .is_none_or(|allocation| allocation.probed.contains(&address))
            {
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

    /// Gives the Service its addresses: those it has, else those it asks for, else free ones. After
    /// a refusal it has none.
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
                Err(Some(why)) => notes.push(format!(
                    "gave up {}: {why}",
                    crate::common::printable::list(&allocation.addresses)
                )),
                Err(None) => {}
            }
            self.release(&service.key);
        }
        let kept = had.as_ref().map_or(&[][..], |had| &had.addresses);
        let (addresses, pool) = if service.request.addresses.is_empty() {
            self.choose(service, kept)?
        } else {
            self.requested(service)?
        };
        notes.extend(lacks(service, &addresses, &pool));
        // What was probed before and is still ours need not be probed again.
        let probed = had
            .map(|had| had.probed)
            .unwrap_or_default()
            .into_iter()
            .filter(|a| addresses.contains(a))
            .collect();
        self.hold(service, Allocation { addresses: addresses.clone(), pool, probed, ports: None });
        addresses.iter().for_each(|address| self.is_taken(*address));
        Ok(Assignment { addresses, notes })
    }

    /// Holds what the status of the Service says, as far as it is ours to serve, and takes it from
    /// younger Services that may not share it: they are returned and have to be decided about
    /// again. What the status does not say the Service has no more. Such addresses count as
    /// probed: somebody did when they were new, and a failover must not wait.
    pub fn adopt(&mut self, service: &Service) -> (Result<Assignment, Refusal>, Vec<ObjectKey>) {
        let (mut addresses, mut notes, mut evicted) =
            (Vec::<IpAddr>::new(), Vec::new(), Vec::new());
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
                self.admissible(service, address).map(|pool| pool.name.clone()).and_then(|name| {
                    match self.rivals(service, address) {
                        Ok(younger) => Ok((name, younger)),
                        Err(holder) => Err(Refusal::Held { address, holder }),
                    }
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
            return (
                refusal.map_or(Ok(Assignment { addresses: Vec::new(), notes: Vec::new() }), Err),
                evicted,
            );
        }
        self.hold(
            service,
            Allocation {
                addresses: addresses.clone(),
                pool: pool_name,
                probed: addresses.clone(),
                ports: None,
            },
        );
        (Ok(Assignment { addresses, notes }), evicted)
    }

    /// Holders of the address that may not share it with this Service and have to give way; Err:
    /// one that does not.
    fn rivals(&self, service: &Service, address: IpAddr) -> Result<Vec<ObjectKey>, ObjectKey> {
        let claim = Claim::of(service);
        let mut younger = Vec::new();
        for (holder, held) in self
            .holders
            .get(&address)
            .into_iter()
            .flatten()
            .filter(|(holder, _)| *holder != service.key)
        {
            match held {
                Some(held) if held.agrees(&claim) => {}
                Some(held) if held.rank(holder, address) < claim.rank(&service.key, address) => {
                    return Err(holder.clone());
                }
                _ => younger.push(holder.clone()),
            }
        }
        Ok(younger)
    }

    fn hold(&mut self, service: &Service, allocation: Allocation) {
        for address in &allocation.addresses {
            self.reclaimed |= add_holder(
                self.holders.entry(*address).or_default(),
                &service.key,
                Some(Claim::of(service)),
            );
        }
        if self.allocations.get(&service.key) != Some(&allocation) {
            Arc::make_mut(&mut self.allocations).insert(service.key.clone(), allocation);
            self.changed = true;
        }
    }

    /// Whether what a Service has is what it should have now. Err(None): it asks for something
    /// else, which needs no comment.
    fn still_good(
        &self,
        service: &Service,
        allocation: &Allocation,
    ) -> Result<(), Option<Refusal>> {
        let asked = &service.request.addresses;
        if !asked.is_empty()
            && asked.iter().collect::<BTreeSet<_>>() != allocation.addresses.iter().collect()
        {
            return Err(None);
        }
        let family_gone = |address: &IpAddr| {
            !service.families.is_empty() && !service.families.contains(&Family::of(*address))
        };
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
        let could_have = |family| {
            self.find(
                service,
                &[],
                self.pools.iter().position(|p| p.name == allocation.pool),
                family,
            )
            .is_some()
        };
        if asked.is_empty() && lacking(service, &allocation.addresses).any(could_have) {
            return Err(None);
        }
        Ok(())
    }

    /// Whether this Service may hold this address as far as others do not, and from which pool it
    /// is.
    fn admissible(&self, service: &Service, address: IpAddr) -> Result<&Pool, Refusal> {
        let pool = self
            .pools
            .iter()
            .find(|pool| pool.contains(address))
            .ok_or(Refusal::OutsidePools { address })?;
        if !pool.admits(&service.key.namespace) {
            return Err(Refusal::PoolReserved {
                pool: pool.name.clone(),
                namespace: (*service.key.namespace).into(),
            });
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
        for (holder, held) in self
            .holders
            .get(&address)
            .into_iter()
            .flatten()
            .filter(|(holder, _)| *holder != service.key)
        {
            // One that is only remembered shared the address before the restart, if this Service
            // had it too.
            let remembered = held.is_none()
                && self
                    .allocations
                    .get(&service.key)
                    .is_some_and(|a| a.addresses.contains(&address));
            if !remembered && !held.as_ref().is_some_and(|held| held.agrees(&claim)) {
                return Err(Refusal::Held { address, holder: holder.clone() });
            }
        }
        Ok(pool)
    }
}

/// Families the Service wants and `addresses` do not have.
fn lacking<'s>(
    service: &'s Service,
    addresses: &[IpAddr],
) -> impl Iterator<Item = Family> + use<'s> {
    let have: BTreeSet<Family> = addresses.iter().map(|a| Family::of(*a)).collect();
    service.families.iter().copied().filter(move |family| !have.contains(family))
}

/// The same in sentences. Who names addresses gets no others.
fn lacks(service: &Service, addresses: &[IpAddr], pool: &str) -> Vec<String> {
    let sentence = |family| {
        if service.request.addresses.is_empty() {
            format!("the pool {pool} has no free {family} address; serving without")
        } else {
            format!("none of the requested addresses is of {family}; serving without")
        }
    };
    lacking(service, addresses).map(sentence).collect()
}

/// Puts the Service among the holders, or its new claim in place of the old.
/// True when it held the address before, on other terms.
fn add_holder(
    holders: &mut Vec<(ObjectKey, Option<Claim>)>,
    key: &ObjectKey,
    claim: Option<Claim>,
) -> bool {
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
