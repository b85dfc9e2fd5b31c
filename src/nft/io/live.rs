//! Reads our tables back from the kernel.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::encode::{kind, number};
use super::netlink::{Socket, attributes, be32, find, flag, string};
use super::writer::request;
use crate::model::forwarding::FrontendKey;
use crate::model::{Family, Protocol};
use crate::nft::skeleton::{Data, Type, class_chain, skeleton};
use crate::nft::{ChainId, Element, Key, SetId, TABLE, Table, Value, Verdict};

/// How often a set is listed before we give up, and the pause in between. A hash table of a million
/// elements is doubled within some 100 ms.
const LISTINGS: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// The table of a family: the elements as the kernel has them; chains by their names, with the
/// rules that chains of these names have (the drift check compares the number of rules).
pub fn table(socket: &Socket, family: Family) -> io::Result<Table> {
    let mut present = BTreeSet::new();
    socket.query(&request(kind::GET_CHAIN, flag::DUMP, number(family), |_| {}), |body| {
        if find(body, 1).and_then(string) == Some(TABLE) {
            present.extend(find(body, 3).and_then(string).and_then(ChainId::parse));
        }
    })?;
    let mut chains: Vec<_> =
        skeleton(family).into_iter().filter(|chain| present.contains(&chain.id)).collect();
    chains.extend(present.iter().filter_map(|id| match id {
        ChainId::Class(class) => Some(class_chain(*class)),
        _ => None,
    }));
    let mut sets = Vec::new();
    for set in SetId::ALL {
        match elements(socket, family, set) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => sets.push((set, other?)),
        }
    }
    Ok(Table { family, sets, chains })
}

/// The elements of a set, sorted.
///
/// Some milliseconds after elements came the kernel may still be doubling the hash table under
/// them, and a listing that it overtakes begins anew (`nft_rhash_walk`,
/// net/netfilter/nft_set_hash.c): some elements come twice, and as the kernel goes on by their
/// count from one part of the listing to the next, others may not come at all. At least as many
/// come twice as are left out, so twice is the sign to look for.
fn elements(socket: &Socket, family: Family, set: SetId) -> io::Result<Vec<Element>> {
    let request = request(kind::GET_ELEMENTS, flag::DUMP, number(family), |m| {
        m.put_str(1, TABLE);
        m.put_str(2, set.name());
    });
    for _ in 0..LISTINGS {
        let mut elements = Vec::new();
        socket.query(&request, |body| {
            let list = find(body, 3).unwrap_or_default();
            elements.extend(attributes(list).filter_map(|(_, bytes)| element(family, set, bytes)));
        })?;
        elements.sort_unstable();
        if elements.is_sorted_by(|one, next| one < next) {
            return Ok(elements);
        }
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::other(format!(
        "the {family} elements of {} never stood still while they were listed",
        set.name()
    )))
}

/// One element; None when it has not the shape of the set's elements.
fn element(family: Family, set: SetId, bytes: &[u8]) -> Option<Element> {
    let mut key = Reader { family, bytes: find(find(bytes, 1)?, 1)? };
    let end = find(bytes, 10).and_then(|end| find(end, 1));
    let key = match set.key() {
        [Type::EtherType] => Key::EtherType(family),
        [Type::Interface] => Key::Interface(string(key.bytes)?.into()),
        [Type::Address] => Key::Address(key.address()?),
        [Type::Address, Type::Address] => Key::Twice(key.address()?),
        [_, _, _] => Key::Frontend(key.frontend()?),
        [_, _, _, Type::Mark] => Key::Bucket(key.frontend()?, u32::from_ne_bytes(*key.part()?)),
        _ => {
            let frontend = key.frontend()?;
            let first = key.address()?;
            let last = match end {
                None => first,
                Some(end) => {
                    let mut end = Reader { family, bytes: end };
                    end.frontend()?;
                    end.address()?
                }
            };
            Key::Source(frontend, network(first, last)?)
        }
    };
    let data = find(bytes, 2);
    let value = match set.data() {
        Data::None => None,
        Data::Verdict => Some(Value::Verdict(verdict(find(data?, 2)?)?)),
        Data::Parts(_) => {
            let mut data = Reader { family, bytes: find(data?, 1)? };
            Some(Value::Backend(data.address()?, data.port()?))
        }
    };
    Some(Element { key, value })
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let chain = || find(bytes, 2).and_then(string).and_then(ChainId::parse);
    match be32(find(bytes, 1)?)? as i32 {
        0 => Some(Verdict::Drop),
        -5 => Some(Verdict::Return),
        -3 => chain().map(Verdict::Jump),
        -4 => chain().map(Verdict::Goto),
        _ => None,
    }
}

/// The prefix that reaches from the first address to the last.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let bits = |address| match address {
        IpAddr::V4(address) => u128::from(Ipv4Addr::to_bits(address)),
        IpAddr::V6(address) => Ipv6Addr::to_bits(address),
    };
    let width = if first.is_ipv4() { 32 } else { 128 };
    let free = 128 - (bits(first) ^ bits(last)).leading_zeros();
    IpNet::new(first, u8::try_from(width - free).ok()?).ok()
}

struct Reader<'a> {
    family: Family,
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn part<const N: usize>(&mut self) -> Option<&[u8; N]> {
        let (part, _) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = self.bytes.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => self.part::<4>().map(|octets| IpAddr::from(*octets)),
            Family::V6 => self.part::<16>().map(|octets| IpAddr::from(*octets)),
        }
    }

    fn port(&mut self) -> Option<u16> {
        self.part().map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn frontend(&mut self) -> Option<FrontendKey> {
        let address = self.address()?;
        let [number] = *self.part::<1>()?;
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|p| p.number() == number)?;
        Some(FrontendKey { address, protocol, port: self.port()? })
    }
}
