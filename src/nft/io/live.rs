//! Reads our tables back from the kernel.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::attr::*;
use super::encode::request;
use super::netlink::{Socket, attributes, be32, find, string};
use crate::model::forwarding::FrontendKey;
use crate::model::{Family, Protocol};
use crate::nft::element::{Element, Key, Value};
use crate::nft::skeleton::{ChainId, Data, SetId, Type, Verdict, class_chain, skeleton};
use crate::nft::table::{TABLE, Table};

/// Maximum number of listings of a set that changes while it is listed.
const LISTINGS: usize = 200;
/// Pause between two listings. The kernel doubles a hash table of a million elements within some
/// 100 ms.
const PAUSE: Duration = Duration::from_millis(5);

/// Reads the table of a family. Elements are the kernel's. Chains are the kernel's by name; their
/// rules are those of the skeleton (the drift check compares the number of rules).
pub fn table(socket: &Socket, family: Family) -> io::Result<Table> {
    let mut present = BTreeSet::new();
    let request = request(libc::NFT_MSG_GETCHAIN, libc::NLM_F_DUMP, family.af(), |_| {});
    socket.query(&request, |body| {
        if find(body, NFTA_CHAIN_TABLE).and_then(string) == Some(TABLE) {
            present.extend(find(body, NFTA_CHAIN_NAME).and_then(string).and_then(ChainId::parse));
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
/// Some milliseconds after an insertion the kernel may still be resizing the hash table. It then
/// restarts a listing from the beginning (`nft_rhash_walk`, net/netfilter/nft_set_hash.c): some
/// elements appear twice, and others may be missing, because the kernel resumes a listing by the
/// number of elements already listed. At least as many appear twice as are missing, so a duplicate
/// reveals a listing that is not complete.
fn elements(socket: &Socket, family: Family, set: SetId) -> io::Result<Vec<Element>> {
    let request = request(libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP, family.af(), |m| {
        m.put_str(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        m.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
    });
    for _ in 0..LISTINGS {
        let mut elements = Vec::new();
        socket.query(&request, |body| {
            let list = find(body, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
            elements.extend(attributes(list).filter_map(|(_, bytes)| element(family, set, bytes)));
        })?;
        elements.sort_unstable();
        if elements.is_sorted_by(|one, next| one < next) {
            return Ok(elements);
        }
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::other(format!(
        "the {family} elements of {} kept changing while they were listed",
        set.name()
    )))
}

/// Decodes one element; None when it does not have the key and data types of the set.
fn element(family: Family, set: SetId, bytes: &[u8]) -> Option<Element> {
    let value = |kind| find(bytes, kind).and_then(|data| find(data, NFTA_DATA_VALUE));
    let mut key = Reader { family, bytes: value(NFTA_SET_ELEM_KEY)? };
    let end = value(NFTA_SET_ELEM_KEY_END);
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
    let verdict = || find(find(bytes, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT);
    let value = match set.data() {
        Data::None => None,
        Data::Verdict => Some(Value::Verdict(self::verdict(verdict()?)?)),
        Data::Parts(_) => {
            let mut data = Reader { family, bytes: value(NFTA_SET_ELEM_DATA)? };
            Some(Value::Backend(data.address()?, data.port()?))
        }
    };
    Some(Element { key, value })
}

fn verdict(bytes: &[u8]) -> Option<Verdict> {
    let chain = || find(bytes, NFTA_VERDICT_CHAIN).and_then(string).and_then(ChainId::parse);
    match be32(find(bytes, NFTA_VERDICT_CODE)?)? as i32 {
        libc::NF_DROP => Some(Verdict::Drop),
        libc::NFT_RETURN => Some(Verdict::Return),
        libc::NFT_JUMP => chain().map(Verdict::Jump),
        libc::NFT_GOTO => chain().map(Verdict::Goto),
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
