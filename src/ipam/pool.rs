//! Pools: the addresses Pinnace may hand out, and the grammar in which they are written.
//!
//! ```text
//! pools   = ranges | pool *( ";" pool ) [ ";" ]
//! pool    = name [ "!" ] [ "[" namespace *( "," namespace ) "]" ] "=" ranges
//! ranges  = range *( "," range )
//! range   = address | address "-" address | address "/" prefix-length
//! ```
//!
//! Ranges without a name form one pool called `default`. `[a,b]` after the name admits Services of
//! these namespaces only. `!` after the name takes the pool out of automatic allocation: it serves
//! only Services that ask for it, or for an address in it, by name. Blanks and line breaks around
//! every part are ignored; both families may stand in one pool.
//!
//! `192.168.1.200-192.168.1.220,fd00:1::/120` or `lan=192.168.1.200-192.168.1.220;
//! dmz![web,mail]=10.9.0.0/28`

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::common::names::is_dns_label;
use crate::model::Family;

/// The name of the pool whose ranges are written without one.
pub const UNNAMED: &str = "default";

/// A named set of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// What `pinnace.dev/pool` asks for; a DNS label.
    pub name: Box<str>,
    /// Namespaces whose Services may use it, sorted; empty: all.
    pub namespaces: Vec<Box<str>>,
    /// Serves only Services that ask for it or for one of its addresses.
    pub on_request: bool,
    /// In the order written, which is the order of allocation; they never overlap, within a pool
    /// or between pools.
    pub ranges: Vec<AddressRange>,
}

impl Pool {
    /// Whether the address belongs to this pool.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether Services of this namespace may use it.
    pub fn admits(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|n| &**n == namespace)
    }

    /// Whether it has addresses of this family.
    pub fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }

    /// All addresses of one family in the order of allocation but the first `skip`, lazily: an IPv6
    /// range is never materialised.
    pub fn addresses(&self, family: Family, mut skip: u128) -> impl Iterator<Item = IpAddr> + '_ {
        self.ranges.iter().filter(move |range| range.family() == family).flat_map(move |range| {
            let here = skip.min(range.len());
            skip -= here;
            range.iter_from(here)
        })
    }

    /// How many addresses of its family come before it in the order of allocation; None when it is
    /// not in the pool.
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        let mut before: u128 = 0;
        for range in self.ranges.iter().filter(|range| range.family() == Family::of(address)) {
            if range.contains(address) {
                return Some(before + number(address) - number(range.first));
            }
            before = before.saturating_add(range.len());
        }
        None
    }
}

/// Addresses from `first` to `last`, both included and of one family. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// A range, or the reason why these two addresses make none.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<AddressRange, RangeError> {
        match (Family::of(first), Family::of(last)) {
            (a, b) if a != b => return Err(RangeError::MixedFamilies { first, last }),
            _ if last < first => return Err(RangeError::EndBeforeStart { first, last }),
            _ => {}
        }
        let range = AddressRange { first, last };
        match not_unicast(&range) {
            Some((of, kind)) => Err(RangeError::NotUnicast { range, of, kind }),
            None => Ok(range),
        }
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of every address in it.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && self.first <= address && address <= self.last
    }

    /// Number of addresses, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u128 {
        // No overflow: the whole IPv6 space is refused because it holds addresses that are not
        // unicast.
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &AddressRange) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// From lowest to highest, lazily, without the first `skip`.
    fn iter_from(&self, skip: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let family = self.family();
        (number(self.first).saturating_add(skip)..=number(self.last))
            .map(move |n| address(family, n))
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<AddressRange, RangeError> {
        let text = text.trim();
        if let Some((first, last)) = text.split_once('-') {
            AddressRange::new(parse_address(first)?, parse_address(last)?)
        } else if let Some((base, prefix)) = text.split_once('/') {
            from_cidr(text, parse_address(base)?, prefix.trim())
        } else {
            let only = parse_address(text)?;
            AddressRange::new(only, only)
        }
    }
}

/// Why a text is no range of addresses a Service could have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Garbage.
    #[error(
        "{0:?} is not an IP address; write 192.168.1.200, 192.168.1.200-192.168.1.220, 192.168.1.192/27 or the same in IPv6"
    )]
    NotAnAddress(String),
    /// The prefix length is no number, or too large for the family.
    #[error("the prefix length of {text} must be a number from 0 to {max}")]
    PrefixLength {
        /// As written.
        text: String,
        /// 32 or 128.
        max: u32,
    },
    /// A CIDR whose address is not the first of its network.
    #[error(
        "{text} has bits set beyond its prefix; write {network}/{prefix} for the whole network, or {address} for the single address"
    )]
    HostBits {
        /// As written.
        text: String,
        /// What was written before the slash.
        address: IpAddr,
        /// What should have been.
        network: IpAddr,
        /// Prefix length.
        prefix: u32,
    },
    /// `b-a`
    #[error("the range {first}-{last} ends before it starts; write {last}-{first}")]
    EndBeforeStart {
        /// As written.
        first: IpAddr,
        /// As written.
        last: IpAddr,
    },
    /// One end is IPv4, the other IPv6.
    #[error("the range {first}-{last} mixes IPv4 and IPv6; write two ranges separated by a comma")]
    MixedFamilies {
        /// As written.
        first: IpAddr,
        /// As written.
        last: IpAddr,
    },
    /// It contains an address no Service can have.
    #[error("{range} contains {kind} addresses ({of}), which no Service can have")]
    NotUnicast {
        /// As understood.
        range: AddressRange,
        /// The block it touches, as CIDR.
        of: &'static str,
        /// What the block is for.
        kind: &'static str,
    },
}

/// Why the pools as a whole cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A range of a pool.
    #[error("pool {pool}: {source}")]
    Range {
        /// Pool name.
        pool: Box<str>,
        /// The reason.
        source: RangeError,
    },
    /// `lan=` with nothing after it.
    #[error("pool {0} has no addresses; write {0}=192.168.1.200-192.168.1.220")]
    Empty(Box<str>),
    /// Several pools, and this one without a name.
    #[error("{0:?} has no pool name; with several pools each needs one: name={0}")]
    Unnamed(String),
    /// Not a DNS label.
    #[error(
        "{0:?} is not a pool name; use up to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Name(String),
    /// Not a DNS label.
    #[error(
        "pool {pool}: {namespace:?} is not a namespace; write {pool}[namespace-a,namespace-b]=…"
    )]
    Namespace {
        /// Pool name.
        pool: Box<str>,
        /// As written.
        namespace: String,
    },
    /// `lan[a=…`
    #[error("{0:?}: the list of namespaces is not closed; write name[namespace-a,namespace-b]=…")]
    Bracket(String),
    /// The name appears twice.
    #[error("pool {0} is defined twice; give all its ranges in one place, separated by commas")]
    Duplicate(Box<str>),
    /// An address would belong to two ranges.
    #[error(
        "{a} of pool {pool_a} and {b} of pool {pool_b} overlap; an address can belong to one range only"
    )]
    Overlap {
        /// The earlier range.
        a: AddressRange,
        /// Its pool.
        pool_a: Box<str>,
        /// The later range.
        b: AddressRange,
        /// Its pool.
        pool_b: Box<str>,
    },
}

/// Parses all pools. Every error is reported, in the order of the text; an empty text means no
/// pools.
pub fn parse_pools(text: &str) -> Result<Vec<Pool>, Vec<PoolError>> {
    let parts: Vec<&str> = text.split(';').map(str::trim).filter(|part| !part.is_empty()).collect();
    let mut pools: Vec<Pool> = Vec::new();
    let mut errors = Vec::new();
    for part in &parts {
        let (header, ranges) = match part.split_once('=') {
            Some((header, ranges)) => (header.trim(), ranges),
            None if parts.len() == 1 => (UNNAMED, *part),
            None => {
                errors.push(PoolError::Unnamed(part.to_string()));
                continue;
            }
        };
        let mut pool = match parse_header(header) {
            Ok(pool) => pool,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        if pools.iter().any(|other| other.name == pool.name) {
            errors.push(PoolError::Duplicate(pool.name.clone()));
        }
        for range in ranges.split(',').map(str::trim).filter(|range| !range.is_empty()) {
            match range.parse() {
                Ok(range) => pool.ranges.push(range),
                Err(source) => errors.push(PoolError::Range { pool: pool.name.clone(), source }),
            }
        }
        if ranges.split(',').all(|range| range.trim().is_empty()) {
            errors.push(PoolError::Empty(pool.name.clone()));
        }
        pools.push(pool);
    }
    errors.extend(overlaps(&pools));
    if errors.is_empty() { Ok(pools) } else { Err(errors) }
}

/// `name`, `name!`, `name[a,b]`, `name![a,b]`: a pool without ranges yet.
fn parse_header(header: &str) -> Result<Pool, PoolError> {
    let (name, namespaces) = match header.split_once('[') {
        None => (header, None),
        Some((name, rest)) => match rest.trim().strip_suffix(']') {
            Some(namespaces) => (name.trim(), Some(namespaces)),
            None => return Err(PoolError::Bracket(header.to_string())),
        },
    };
    let (name, on_request) = match name.strip_suffix('!') {
        Some(name) => (name.trim(), true),
        None => (name, false),
    };
    if !is_dns_label(name) {
        return Err(PoolError::Name(name.to_string()));
    }
    let mut pool =
        Pool { name: name.into(), namespaces: Vec::new(), on_request, ranges: Vec::new() };
    for namespace in namespaces.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
        if !is_dns_label(namespace) {
            return Err(PoolError::Namespace { pool: pool.name, namespace: namespace.to_string() });
        }
        pool.namespaces.push(namespace.into());
    }
    pool.namespaces.sort_unstable();
    pool.namespaces.dedup();
    Ok(pool)
}

/// Every pair of neighbours, in address order, that share an address.
fn overlaps(pools: &[Pool]) -> Vec<PoolError> {
    let mut ranges: Vec<(AddressRange, &str)> =
        pools.iter().flat_map(|p| p.ranges.iter().map(|r| (*r, &*p.name))).collect();
    ranges.sort_by_key(|(range, _)| *range);
    let mut found = Vec::new();
    // The range that reaches furthest so far: with it alone every overlap is found, also of ranges
    // inside a large one.
    let mut furthest: Option<(AddressRange, &str)> = None;
    for (range, pool) in ranges {
        if let Some((a, pool_a)) = furthest.filter(|(a, _)| a.overlaps(&range)) {
            found.push(PoolError::Overlap {
                a,
                pool_a: pool_a.into(),
                b: range,
                pool_b: pool.into(),
            });
        }
        if furthest.is_none_or(|(a, _)| a.last < range.last) {
            furthest = Some((range, pool));
        }
    }
    found
}

fn parse_address(text: &str) -> Result<IpAddr, RangeError> {
    let text = text.trim();
    text.parse().map_err(|_| RangeError::NotAnAddress(text.to_string()))
}

fn from_cidr(text: &str, base: IpAddr, prefix: &str) -> Result<AddressRange, RangeError> {
    let family = Family::of(base);
    let max = bits(family);
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix = prefix.parse().ok().filter(|p| digits && *p <= max);
    let prefix: u32 =
        prefix.ok_or_else(|| RangeError::PrefixLength { text: text.to_string(), max })?;
    // A network without host bits would shift by the whole width, which `>>` does not define.
    let host_bits = u128::MAX.checked_shr(128 - (max - prefix)).unwrap_or(0);
    let network = number(base) & !host_bits;
    if network != number(base) {
        return Err(RangeError::HostBits {
            text: text.to_string(),
            address: base,
            network: address(family, network),
            prefix,
        });
    }
    AddressRange::new(base, address(family, network | host_bits))
}

/// Blocks no Service address can come from, with the RFC that reserves them, in the order in which
/// they are reported.
const NOT_UNICAST: &[(&str, &str, IpAddr, IpAddr)] = {
    const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    }
    const fn v6(n: u128) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from_bits(n))
    }
    &[
        ("0.0.0.0/8", "unspecified", v4(0, 0, 0, 0), v4(0, 255, 255, 255)), // RFC 1122 §3.2.1.3
        ("127.0.0.0/8", "loopback", v4(127, 0, 0, 0), v4(127, 255, 255, 255)), // RFC 1122 §3.2.1.3
        ("169.254.0.0/16", "link-local", v4(169, 254, 0, 0), v4(169, 254, 255, 255)), // RFC 3927
        ("224.0.0.0/4", "multicast", v4(224, 0, 0, 0), v4(239, 255, 255, 255)), // RFC 5771
        ("240.0.0.0/4", "reserved and broadcast", v4(240, 0, 0, 0), v4(255, 255, 255, 255)), /* RFC 1112 §4, RFC 919 */
        ("::/128", "unspecified", v6(0), v6(0)), // RFC 4291 §2.5.2
        ("::1/128", "loopback", v6(1), v6(1)),   // RFC 4291 §2.5.3
        ("::ffff:0:0/96", "IPv4-mapped", v6(0xffff_0000_0000), v6(0xffff_ffff_ffff)), /* RFC 4291 §2.5.5.2 */
        ("fe80::/10", "link-local", v6(0xfe80 << 112), v6((0xfec0 << 112) - 1)), // RFC 4291 §2.5.6
        ("ff00::/8", "multicast", v6(0xff00 << 112), v6(u128::MAX)),             // RFC 4291 §2.7
    ]
};

fn not_unicast(range: &AddressRange) -> Option<(&'static str, &'static str)> {
    let hit = |block: &&(&str, &str, IpAddr, IpAddr)| {
        range.overlaps(&AddressRange { first: block.2, last: block.3 })
    };
    NOT_UNICAST.iter().find(hit).map(|(cidr, kind, ..)| (*cidr, *kind))
}

fn bits(family: Family) -> u32 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`number`]; for IPv4 the upper 96 bits are zero by construction.
fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
