//! Deletes conntrack entries that keep a client from being served: of UDP clients whose backend
//! went away (without a connection to end, they would go on to where nobody answers; TCP and SCTP
//! end by themselves), and of clients who began while the rules were away.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::attr::*;
use super::netlink::{Messages, NLA_F_NESTED, Socket, attributes, be32, find, message_type};
use crate::model::forwarding::FrontendKey;
use crate::model::{Family, Protocol};

/// Why entries could not be looked at or deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or the listing failed.
    #[error("conntrack: {0}")]
    Netlink(#[from] io::Error),
    /// The listing succeeded, but entries could not be deleted.
    #[error("conntrack: {failed} stale entries could not be deleted: {source}")]
    Delete {
        /// Number of entries that could not be deleted.
        failed: usize,
        /// The first reason.
        #[source]
        source: io::Error,
    },
}

/// Entries deleted per datagram.
const BATCH: usize = 256;

/// Deletes the UDP entries whose original destination is one of the frontends and whose replies
/// come from none of its serving backends, among them entries made before there was a rule (whose
/// replies come from the frontend itself). Frontends of other protocols are passed over. Returns
/// how many were deleted.
///
/// The table is listed once per address family concerned, whatever the number of frontends.
pub fn delete_stale(frontends: &[(FrontendKey, Vec<SocketAddr>)]) -> Result<usize, Error> {
    let serving: BTreeMap<SocketAddr, &[SocketAddr]> = frontends
        .iter()
        .filter(|(key, _)| key.protocol == Protocol::Udp)
        .map(|(key, backends)| (SocketAddr::new(key.address, key.port), backends.as_slice()))
        .collect();
    let families = families(serving.keys());
    delete_where(&families, Some(Protocol::Udp), |body| stale(body, &serving))
}

/// Deletes the entries whose original destination is one of the frontends and that nobody
/// translated. A translation is chosen for the first packet of a flow and never again, so one that
/// began while the rules were away passes them by for as long as it goes on. Of TCP and SCTP
/// only unanswered ones are deleted, whose client still tries: what was answered is a connection,
/// with a program on this host. Returns how many were deleted.
///
/// The table is listed once per address family concerned, whatever the number of frontends.
pub fn delete_untranslated(
    frontends: impl IntoIterator<Item = FrontendKey>,
) -> Result<usize, Error> {
    let frontends: BTreeSet<(SocketAddr, u8)> = frontends
        .into_iter()
        .map(|key| (SocketAddr::new(key.address, key.port), key.protocol.number()))
        .collect();
    let families = families(frontends.iter().map(|(frontend, _)| frontend));
    delete_where(&families, None, |body| untranslated(body, &frontends))
}

fn families<'a>(frontends: impl Iterator<Item = &'a SocketAddr> + Clone) -> Vec<Family> {
    let concerned =
        |family: &Family| frontends.clone().any(|frontend| Family::of(frontend.ip()) == *family);
    Family::ALL.into_iter().filter(concerned).collect()
}

/// Deletes the entries that are picked from a listing: of one protocol, or of all.
fn delete_where(
    families: &[Family],
    protocol: Option<Protocol>,
    pick: impl Fn(&[u8]) -> Option<Entry>,
) -> Result<usize, Error> {
    if families.is_empty() {
        return Ok(0);
    }
    let socket = Socket::open()?;
    let mut deleted = 0;
    for family in families {
        let entries = list(&socket, *family, protocol, &pick)?;
        deleted += delete(&socket, *family, &entries)?;
    }
    Ok(deleted)
}

/// An entry to delete: the attributes by which the kernel finds it.
struct Entry {
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Entry {
    fn new(original: &[u8], body: &[u8]) -> Entry {
        Entry { original: original.to_vec(), zone: find(body, CTA_ZONE).map(<[u8]>::to_vec) }
    }
}

fn list(
    socket: &Socket,
    family: Family,
    protocol: Option<Protocol>,
    pick: impl Fn(&[u8]) -> Option<Entry>,
) -> io::Result<Vec<Entry>> {
    let mut picked = Vec::new();
    let mut each = |body: &[u8]| picked.extend(pick(body));
    match socket.query(&dump(family, protocol), &mut each) {
        // Kernels before 5.8 know no filter; what they list is judged in full anyway.
        Err(error)
            if protocol.is_some()
                && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            socket.query(&dump(family, None), &mut each)?;
        }
        other => other?,
    }
    Ok(picked)
}

fn dump(family: Family, protocol: Option<Protocol>) -> Messages {
    let mut m = Messages::default();
    m.begin(
        message_type(libc::NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET),
        libc::NLM_F_DUMP,
        family.af(),
        0,
    );
    if let Some(protocol) = protocol {
        m.nest(CTA_TUPLE_ORIG, |m| {
            m.nest(CTA_TUPLE_PROTO, |m| m.put(CTA_PROTO_NUM, &[protocol.number()]));
        });
        m.nest(CTA_FILTER, |m| {
            m.put(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_PROTO_NUM.to_ne_bytes());
            m.put(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
        });
    }
    m.end();
    m
}

/// The entry, if its backend no longer serves.
fn stale(body: &[u8], serving: &BTreeMap<SocketAddr, &[SocketAddr]>) -> Option<Entry> {
    let original = find(body, CTA_TUPLE_ORIG)?;
    let to = Tuple::parse(original).filter(|tuple| tuple.protocol == Protocol::Udp.number())?;
    let backends = serving.get(&to.destination)?;
    let reply = Tuple::parse(find(body, CTA_TUPLE_REPLY)?)?;
    (!backends.contains(&reply.source)).then(|| Entry::new(original, body))
}

/// The entry, if it belongs to a frontend and was not translated.
fn untranslated(body: &[u8], frontends: &BTreeSet<(SocketAddr, u8)>) -> Option<Entry> {
    let original = find(body, CTA_TUPLE_ORIG)?;
    let to = Tuple::parse(original)
        .filter(|tuple| frontends.contains(&(tuple.destination, tuple.protocol)))?;
    let reply = Tuple::parse(find(body, CTA_TUPLE_REPLY)?)?;
    let answered = find(body, CTA_STATUS).and_then(be32)? & IPS_SEEN_REPLY != 0;
    let connection = answered && to.protocol != Protocol::Udp.number();
    (reply.source == to.destination && !connection).then(|| Entry::new(original, body))
}

fn delete(socket: &Socket, family: Family, entries: &[Entry]) -> Result<usize, Error> {
    let (mut deleted, mut failed) = (0, 0);
    let mut reason = None;
    for entries in entries.chunks(BATCH) {
        let mut m = Messages::default();
        for entry in entries {
            m.begin(
                message_type(libc::NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE),
                libc::NLM_F_ACK,
                family.af(),
                0,
            );
            m.put(CTA_TUPLE_ORIG | NLA_F_NESTED, &entry.original);
            if let Some(zone) = &entry.zone {
                m.put(CTA_ZONE, zone);
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
        for (kind, value) in attributes(find(bytes, CTA_TUPLE_IP)?) {
            match kind {
                CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
                CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
                _ => {}
            }
        }
        let transport = find(bytes, CTA_TUPLE_PROTO)?;
        let port = |kind| {
            find(transport, kind)
                .and_then(|bytes| bytes.first_chunk())
                .map(|bytes| u16::from_be_bytes(*bytes))
        };
        Some(Tuple {
            protocol: *find(transport, CTA_PROTO_NUM)?.first()?,
            source: SocketAddr::new(source?, port(CTA_PROTO_SRC_PORT)?),
            destination: SocketAddr::new(destination?, port(CTA_PROTO_DST_PORT)?),
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
