//! Which addresses a Service gets: those it asks for, or free ones out of the pools that are open
//! to it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::pool::Pool;
use super::reserved::Count;
use super::{Ipam, Refusal, reserved};
use crate::model::{Family, Service};

impl Ipam {
    /// Exactly the addresses the Service asks for.
    pub(super) fn requested(&self, service: &Service) -> Result<(Vec<IpAddr>, Box<str>), Refusal> {
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
            if let Some(wanted) =
                service.request.pool.as_ref().filter(|wanted| **wanted != pool.name)
            {
                return Err(Refusal::NotInPool { address: *address, pool: wanted.clone() });
            }
            name.get_or_insert(pool.name.clone());
        }
        if service.require_dual_stack && families.len() < 2 {
            return Err(Refusal::DualStack);
        }
        let mut addresses = asked.clone();
        let rank = |address: &IpAddr| {
            service.families.iter().position(|family| *family == Family::of(*address))
        };
        addresses.sort_by_key(rank);
        Ok((addresses, name.unwrap_or_default()))
    }

    /// Free addresses out of the first pool that has them all, else out of the first that has some.
    /// Those that it has had, `kept`, come first.
    pub(super) fn choose(
        &self,
        service: &Service,
        kept: &[IpAddr],
    ) -> Result<(Vec<IpAddr>, Box<str>), Refusal> {
        let mut candidates = self.candidates(service)?;
        candidates
            .sort_by_key(|index| !kept.iter().any(|address| self.pools[*index].contains(*address)));
        let mut best: Option<(Vec<IpAddr>, Box<str>)> = None;
        for index in &candidates {
            let pool = &self.pools[*index];
            let first_family = Family::ALL.into_iter().find(|family| pool.has(*family));
            let families: Vec<Family> = if service.families.is_empty() {
                first_family.into_iter().collect()
            } else {
                service.families.clone()
            };
            let found: Vec<IpAddr> = families
                .iter()
                .filter_map(|family| self.find(service, kept, Some(*index), *family))
                .collect();
            let complete = found.len() == families.len();
            if found.len() > best.as_ref().map_or(0, |(addresses, _)| addresses.len()) {
                best = Some((found, pool.name.clone()));
            }
            if complete {
                break;
            }
        }
        match best {
            Some((addresses, _)) if service.require_dual_stack && addresses.len() < 2 => {
                Err(Refusal::DualStack)
            }
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
            let index = index.ok_or_else(|| Refusal::NoSuchPool {
                pool: name.clone(),
                known: self.pools.iter().map(|p| p.name.clone()).collect(),
            })?;
            return if self.pools[index].admits(namespace) {
                Ok(vec![index])
            } else {
                Err(Refusal::PoolReserved { pool: name.clone(), namespace: namespace.into() })
            };
        }
        let open = (0..self.pools.len())
            .filter(|i| !self.pools[*i].on_request && self.pools[*i].admits(namespace));
        let (reserved, general): (Vec<usize>, Vec<usize>) =
            open.partition(|i| !self.pools[*i].namespaces.is_empty());
        let all: Vec<usize> = reserved.into_iter().chain(general).collect();
        if all.is_empty() {
            Err(Refusal::NoPoolForNamespace { namespace: namespace.into() })
        } else {
            Ok(all)
        }
    }

    /// A free address: the one it had, by what is kept or according to its status, else one it may
    /// share, else the first that is free.
    pub(super) fn find(
        &self,
        service: &Service,
        kept: &[IpAddr],
        pool: Option<usize>,
        family: Family,
    ) -> Option<IpAddr> {
        let index = pool?;
        let pool = self.pools.get(index)?;
        let fits = |address: &IpAddr| {
            Family::of(*address) == family
                && pool.contains(*address)
                && self.usable(service, *address).is_ok()
        };
        if let Some(address) = kept.iter().chain(&service.published).find(|a| fits(a)) {
            return Some(*address);
        }
        if service.request.sharing.is_some()
            && let Some(address) = self.holders.keys().find(|a| fits(a))
        {
            return Some(*address);
        }
        let free = |address: &IpAddr| {
            !self.free_for_nobody(*address) && self.usable(service, *address).is_ok()
        };
        let skip = self.taken.get(&(index, family)).copied().unwrap_or(0);
        pool.addresses(family, skip).find(free)
    }

    /// Whether no Service can be given this address unless it asks for it.
    fn free_for_nobody(&self, address: IpAddr) -> bool {
        let buggy = self.options.avoid_buggy_ips && reserved::is_buggy(address);
        let held = self.holders.contains_key(&address) || self.elsewhere.contains(address);
        buggy
            || held
            || self.reserved.contains_key(&address)
            || self.conflicts.contains_key(&address)
    }

    /// Somebody holds the address now: the next search begins behind it if nothing before it is
    /// free.
    pub(super) fn is_taken(&mut self, address: IpAddr) {
        let family = Family::of(address);
        let Some(index) = self.pools.iter().position(|pool| pool.contains(address)) else { return };
        let taken = self.taken.get(&(index, family)).copied().unwrap_or(0);
        let more = self.pools[index]
            .addresses(family, taken)
            .take_while(|address| self.free_for_nobody(*address))
            .count();
        self.taken.insert((index, family), taken.saturating_add(more as u128));
    }

    /// Nobody holds the address any more.
    pub(super) fn is_free(&mut self, address: IpAddr) {
        let Some(index) = self.pools.iter().position(|pool| pool.contains(address)) else { return };
        if let (Some(taken), Some(position)) =
            (self.taken.get_mut(&(index, Family::of(address))), self.pools[index].position(address))
        {
            *taken = position.min(*taken);
        }
    }

    fn exhausted(&self, candidates: &[usize], families: &[Family]) -> Refusal {
        let pools: Vec<&Pool> = candidates.iter().map(|i| &self.pools[*i]).collect();
        let ranges = reserved::ranges(&pools, families);
        let in_use: BTreeSet<IpAddr> = self
            .conflicts
            .keys()
            .copied()
            .chain(self.elsewhere.addresses().filter(|address| !self.holders.contains_key(address)))
            .collect();
        let Count { usable: size, withheld, in_use } = reserved::count(
            &ranges,
            &self.reserved,
            self.options.avoid_buggy_ips,
            in_use.into_iter(),
        );
        let names = pools.iter().map(|pool| pool.name.clone()).collect();
        Refusal::Exhausted { pools: names, families: families.to_vec(), size, withheld, in_use }
    }
}
