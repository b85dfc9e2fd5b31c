//! Addresses that stand in the status of a Service which somebody else serves: another load
//! balancer whose pool overlaps with ours, one that is being replaced, or Pinnace itself before it
//! was given another class. They may be in use, though no machine outside the cluster answers for
//! them, so they are given to nobody who does not ask for them by name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::ObjectKey;

/// By Service, and how many of them name an address.
#[derive(Debug, Default)]
pub(super) struct ForeignStatusAddresses {
    services: BTreeMap<ObjectKey, Box<[IpAddr]>>,
    named: BTreeMap<IpAddr, u32>,
}

impl ForeignStatusAddresses {
    /// What stands in the status of a Service; nothing when it is one of ours, or gone. True when
    /// an address may be free now.
    pub fn set(&mut self, key: &ObjectKey, addresses: &[IpAddr]) -> bool {
        if self.services.get(key).is_some_and(|before| **before == *addresses) {
            return false;
        }
        let before = self.services.remove(key);
        for address in before.iter().flatten() {
            if let Some(count) = self.named.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(address);
                }
            }
        }
        if !addresses.is_empty() {
            addresses.iter().for_each(|address| *self.named.entry(*address).or_default() += 1);
            self.services.insert(key.clone(), addresses.into());
        }
        before.is_some()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.named.contains_key(&address)
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.named.keys().copied()
    }
}
