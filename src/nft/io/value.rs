//! Elements, keys and verdicts as netlink attributes.

use std::net::IpAddr;
use std::time::Duration;

use super::attr::*;
use super::netlink::Messages;
use crate::model::Family;
use crate::model::forwarding::FrontendKey;
use crate::nft::element::{Element, Key, Value};
use crate::nft::skeleton::Verdict;

/// Writes an element. A delete names the key only.
pub fn element(m: &mut Messages, element: &Element, add: bool, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        m.put(NFTA_SET_ELEM_TIMEOUT, &(timeout.as_millis() as u64).to_be_bytes());
    }
    let (key, end) = key(&element.key);
    m.nest(NFTA_SET_ELEM_KEY, |m| m.put(NFTA_DATA_VALUE, key.bytes()));
    if let Some(end) = end {
        m.nest(NFTA_SET_ELEM_KEY_END, |m| m.put(NFTA_DATA_VALUE, end.bytes()));
    }
    match &element.value {
        Some(value) if add => m.nest(NFTA_SET_ELEM_DATA, |m| match value {
            Value::Verdict(to) => verdict(m, to),
            Value::Backend(address, port) => {
                let mut data = Bytes::default();
                data.address(*address);
                data.part(&port.to_be_bytes());
                m.put(NFTA_DATA_VALUE, data.bytes());
            }
        }),
        _ => {}
    }
}

/// A key is at most 40 bytes: two IPv6 addresses, protocol and port.
#[derive(Clone, Copy)]
struct Bytes {
    data: [u8; 48],
    length: usize,
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes { data: [0; 48], length: 0 }
    }
}

impl Bytes {
    /// Appends a part, padded to four bytes.
    fn part(&mut self, part: &[u8]) {
        if let Some(place) = self.data.get_mut(self.length..self.length + part.len()) {
            place.copy_from_slice(part);
            self.length += part.len().next_multiple_of(4);
        }
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.part(&address.octets()),
            IpAddr::V6(address) => self.part(&address.octets()),
        }
    }

    fn frontend(&mut self, frontend: &FrontendKey) {
        self.address(frontend.address);
        self.part(&[frontend.protocol.number()]);
        self.part(&frontend.port.to_be_bytes());
    }

    fn bytes(&self) -> &[u8] {
        self.data.get(..self.length).unwrap_or_default()
    }
}

/// The key, and the end of its range if it is one.
fn key(key: &Key) -> (Bytes, Option<Bytes>) {
    let mut bytes = Bytes::default();
    match key {
        Key::EtherType(family) => {
            let ether_type = if *family == Family::V4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
            bytes.part(&(ether_type as u16).to_be_bytes());
            bytes.length = 2; // A key of one part is not padded.
        }
        Key::Interface(name) => {
            let mut padded = [0; libc::IFNAMSIZ];
            name.bytes()
                .zip(padded.iter_mut().take(libc::IFNAMSIZ - 1))
                .for_each(|(byte, place)| *place = byte);
            bytes.part(&padded);
        }
        Key::Address(address) => bytes.address(*address),
        Key::Twice(address) => {
            bytes.address(*address);
            bytes.address(*address);
        }
        Key::Frontend(frontend) => bytes.frontend(frontend),
        Key::Bucket(frontend, bucket) => {
            bytes.frontend(frontend);
            bytes.part(&bucket.to_ne_bytes());
        }
        Key::Source(frontend, net) => {
            bytes.frontend(frontend);
            let mut end = bytes;
            bytes.address(net.network());
            if net.prefix_len() < net.max_prefix_len() {
                end.address(net.broadcast());
                return (bytes, Some(end));
            }
        }
    }
    (bytes, None)
}

pub fn verdict(m: &mut Messages, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(to) => (libc::NFT_JUMP, Some(to)),
        Verdict::Goto(to) => (libc::NFT_GOTO, Some(to)),
    };
    m.nest(NFTA_DATA_VERDICT, |m| {
        m.put_i32(NFTA_VERDICT_CODE, code);
        if let Some(chain) = chain {
            m.put_str(NFTA_VERDICT_CHAIN, &chain.to_string());
        }
    });
}
