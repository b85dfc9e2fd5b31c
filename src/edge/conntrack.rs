//! Deletes conntrack entries of UDP clients whose backend went away: without a connection to end, they would go on to where nobody
//! answers. TCP and SCTP end by themselves.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::nft::netlink::{Messages, Socket, attributes, find, flag};
use crate::domain::forwarding::FrontendKey;
use crate::domain::model::{Family, Protocol};

/// Why entries could not be looked at or deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or the listing failed.
    #[error("conntrack: {0}")]
    Netlink(#[from] io::Error),
    /// Listing went well, but this many entries could not be deleted.
    #[error("conntrack: {failed} stale entries could not be deleted: {source}")]
    Delete {
        /// How many.
        failed: usize,
        /// The first reason.
        #[source]
        source: io::Error,
    },
}

// linux/netfilter/nfnetlink_conntrack.h
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const ZONE: u16 = 18;
/// `CTA_FILTER_FLAG_CTA_PROTO_NUM`: compare the protocol.
const FILTER_PROTOCOL: u32 = 1 << 4;

/// Entries deleted per datagram.
const BATCH: usize = 256;

/// Deletes the UDP entries whose original destination is one of the frontends and whose replies come from none of its serving backends,
/// among them entries made before there was a rule (whose replies come from the frontend itself). Frontends of other protocols are
/// passed over. Returns how many were deleted.
///
/// The table is listed once per address family concerned, whatever the number of frontends.
pub fn delete_stale(frontends: &[(FrontendKey, Vec<SocketAddr>)]) -> Result<usize, Error> {
    let serving: BTreeMap<SocketAddr, &[SocketAddr]> = frontends
        .iter()
        .filter(|(key, _)| key.protocol == Protocol::Udp)
        .map(|(key, backends)| (SocketAddr::new(key.address, key.port), backends.as_slice()))
        .collect();
    if serving.is_empty() {
        return Ok(0);
    }
    let socket = Socket::open()?;
    let mut deleted = 0;
    for family in Family::ALL {
        if serving.keys().any(|frontend| Family::of(frontend.ip()) == family) {
            let stale = list(&socket, family, &serving)?;
            deleted += delete(&socket, family, &stale)?;
        }
    }
    Ok(deleted)
}

/// An entry to delete: the attributes by which the kernel finds it.
struct Entry {
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

fn list(socket: &Socket, family: Family, serving: &BTreeMap<SocketAddr, &[SocketAddr]>) -> io::Result<Vec<Entry>> {
    let mut stale = Vec::new();
    let mut each = |body: &[u8]| stale.extend(judge(body, serving));
    match socket.query(&dump(family, true), &mut each) {
        // Kernels before 5.8 know no filter; what they list is judged in full anyway.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            socket.query(&dump(family, false), &mut each)?;
        }
        other => other?,
    }
    Ok(stale)
}

fn dump(family: Family, filtered: bool) -> Messages {
    let mut m = Messages::default();
    m.begin(GET, flag::DUMP, number(family), 0);
    if filtered {
        m.nest(TUPLE_ORIGINAL, |m| m.nest(2, |m| m.put(1, &[Protocol::Udp.number()])));
        m.nest(FILTER, |m| {
            m.put(FILTER_ORIGINAL, &FILTER_PROTOCOL.to_ne_bytes());
            m.put(FILTER_REPLY, &0u32.to_ne_bytes());
        });
    }
    m.end();
    m
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// The entry, if it is stale.
fn judge(body: &[u8], serving: &BTreeMap<SocketAddr, &[SocketAddr]>) -> Option<Entry> {
    let original = find(body, TUPLE_ORIGINAL)?;
    let to = Tuple::parse(original).filter(|tuple| tuple.protocol == Protocol::Udp.number())?;
    let backends = serving.get(&to.destination)?;
    let reply = Tuple::parse(find(body, TUPLE_REPLY)?)?;
    let zone = find(body, ZONE).map(<[u8]>::to_vec);
    (!backends.contains(&reply.source)).then(|| Entry { original: original.to_vec(), zone })
}

fn delete(socket: &Socket, family: Family, stale: &[Entry]) -> Result<usize, Error> {
    let (mut deleted, mut failed) = (0, 0);
    let mut reason = None;
    for entries in stale.chunks(BATCH) {
        let mut m = Messages::default();
        for entry in entries {
            m.begin(DELETE, flag::ACK, number(family), 0);
            m.put(TUPLE_ORIGINAL | 0x8000, &entry.original);
            if let Some(zone) = &entry.zone {
                m.put(ZONE, zone);
            }
            m.end();
        }
        socket.send(m.bytes())?;
        for answer in socket.answers()? {
            match answer.error {
                0 => deleted += 1,
                libc::ENOENT => {} // timed out meanwhile
                error => {
                    failed += 1;
                    reason.get_or_insert_with(|| io::Error::from_raw_os_error(error));
                }
            }
        }
    }
    match reason {
        Some(source) => Err(Error::Delete { failed, source }),
        None => Ok(deleted),
    }
}

/// One direction of a connection.
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Option<Tuple> {
        let (mut source, mut destination) = (None, None);
        for (kind, value) in attributes(find(bytes, 1)?) {
            match kind {
                1 | 3 => source = address(value),
                2 | 4 => destination = address(value),
                _ => {}
            }
        }
        let transport = find(bytes, 2)?;
        let port = |kind| find(transport, kind).and_then(|bytes| bytes.first_chunk()).map(|bytes| u16::from_be_bytes(*bytes));
        Some(Tuple {
            protocol: *find(transport, 1)?.first()?,
            source: SocketAddr::new(source?, port(2)?),
            destination: SocketAddr::new(destination?, port(3)?),
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
