//! Addresses on their way out: the status of a Service still names them, and clients use them,
//! while it is about to get others.

use std::net::IpAddr;

use super::{Claim, Ipam, add_holder};
use crate::model::{ObjectKey, Service};

impl Ipam {
    /// Keeps these addresses, and none from before, for the Service beside what it was given, so
    /// that nobody else gets them. Returns those that nobody else had yet.
    pub fn retire(&mut self, service: &Service, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let given = self
            .allocations
            .get(&service.key)
            .map(|allocation| allocation.addresses.clone())
            .unwrap_or_default();
        for address in self
            .retiring
            .remove(&service.key)
            .into_iter()
            .flatten()
            .filter(|address| !given.contains(address))
        {
            self.drop_holder(&service.key, address);
        }
        addresses.retain(|address| self.usable(service, *address).is_ok());
        for address in &addresses {
            add_holder(
                self.holders.entry(*address).or_default(),
                &service.key,
                Some(Claim::of(service)),
            );
            self.is_taken(*address);
        }
        if !addresses.is_empty() {
            self.retiring.insert(service.key.clone(), addresses.clone());
        }
        addresses
    }

    /// The Service has this address no more.
    pub(super) fn drop_holder(&mut self, key: &ObjectKey, address: IpAddr) {
        if let Some(holders) = self.holders.get_mut(&address) {
            holders.retain(|(holder, _)| holder != key);
            if holders.is_empty() {
                self.holders.remove(&address);
                self.is_free(address);
            }
        }
    }
}
