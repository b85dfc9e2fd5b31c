//! Node mode: who has which port.

use std::collections::{BTreeMap, BTreeSet};

use super::super::model::{ObjectKey, Protocol, Service};
use super::Refusal;

/// Who has which port of the nodes' own addresses: there is one of each. Costs O(ports of the Service × log all ports) per call.
#[derive(Debug, Default)]
pub struct NodePorts {
    /// The lower rank has it where a status says who does: published, then older.
    holders: BTreeMap<(Protocol, u16), (bool, i64, ObjectKey)>,
    /// The same by Service; none of the lists is empty.
    held: BTreeMap<ObjectKey, Vec<(Protocol, u16)>>,
}

impl NodePorts {
    /// Takes the ports of the Service, all or none; ports it no longer has are given back.
    pub fn claim(&mut self, service: &Service) -> Result<(), Refusal> {
        self.release(&service.key);
        for port in &service.ports {
            if let Some((_, _, holder)) = self.holders.get(&(port.protocol, port.port)) {
                return Err(Refusal::PortTaken { protocol: port.protocol, port: port.port, holder: holder.clone() });
            }
        }
        let rank = (service.published.is_empty(), service.created, service.key.clone());
        let ports: Vec<(Protocol, u16)> = service.ports.iter().map(|port| (port.protocol, port.port)).collect();
        self.holders.extend(ports.iter().map(|port| (*port, rank.clone())));
        if !ports.is_empty() {
            self.held.insert(service.key.clone(), ports);
        }
        Ok(())
    }

    /// As [`NodePorts::claim`], but those of a higher rank give way, so that all nodes agree whatever they heard first. They are returned.
    pub fn contend(&mut self, service: &Service) -> (Result<(), Refusal>, Vec<ObjectKey>) {
        let rank = (service.published.is_empty(), service.created, service.key.clone());
        let held = service.ports.iter().filter_map(|port| self.holders.get(&(port.protocol, port.port)));
        let others: BTreeSet<_> = held.filter(|(_, _, holder)| *holder != service.key).cloned().collect();
        let younger: Vec<ObjectKey> = match others.first() {
            Some(first) if *first < rank => Vec::new(),
            _ => others.into_iter().map(|(_, _, key)| key).collect(),
        };
        for key in &younger {
            self.release(key);
        }
        (self.claim(service), younger)
    }

    /// What the Service has.
    pub fn held(&self, key: &ObjectKey) -> &[(Protocol, u16)] {
        self.held.get(key).map_or(&[], Vec::as_slice)
    }

    /// Gives back what the Service has; true when it had something.
    pub fn release(&mut self, key: &ObjectKey) -> bool {
        let Some(ports) = self.held.remove(key) else { return false };
        for port in &ports {
            self.holders.remove(port);
        }
        true
    }
}
