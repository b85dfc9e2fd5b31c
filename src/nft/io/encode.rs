//! The rule set in netlink messages (linux/netfilter/nf_tables.h). Registers are chosen as the nft
//! program chooses them, so that it can print what it finds.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::expression::statement;
use super::netlink::{LIST_LIMIT, Messages, flag};
use crate::model::Family;
use crate::model::forwarding::FrontendKey;
use crate::nft::skeleton::{Chain, Data, PRIORITY, Type, class_chain, skeleton};
use crate::nft::{Batch, ChainId, Element, Key, SetId, TABLE, Value, Verdict};

/// `NFNL_SUBSYS_NFTABLES`
pub const SUBSYSTEM: u16 = 10;

/// `NFT_MSG_*`
pub mod kind {
    #![allow(missing_docs)]
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const NEW_RULE: u16 = 6;
    pub const NEW_SET: u16 = 9;
    pub const NEW_ELEMENTS: u16 = 12;
    pub const GET_ELEMENTS: u16 = 13;
    pub const DELETE_ELEMENTS: u16 = 14;
    pub const GET_GENERATION: u16 = 16;
}

/// What a message of a transaction is about, for the report of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// "add" or "delete"
    pub verb: &'static str,
    /// Which table; None: the transaction as a whole.
    pub family: Option<Family>,
    /// Which object in it.
    pub object: Object,
}

/// An object of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The table itself.
    Table,
    /// A set or map.
    Set(SetId),
    /// A chain.
    Chain(ChainId),
    /// A rule of a chain.
    Rule(ChainId),
    /// Elements of a set.
    Elements(SetId),
    /// Begin or end of the transaction.
    Transaction,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.verb)?;
        match self.object {
            Object::Table => f.write_str("table")?,
            Object::Set(set) => write!(f, "set {}", set.name())?,
            Object::Chain(chain) => write!(f, "chain {chain}")?,
            Object::Rule(chain) => write!(f, "rule in chain {chain}")?,
            Object::Elements(set) => write!(f, "elements of {}", set.name())?,
            Object::Transaction => f.write_str("transaction")?,
        }
        match self.family {
            Some(family) => {
                write!(f, " of table {} {TABLE}", if family == Family::V4 { "ip" } else { "ip6" })
            }
            None => Ok(()),
        }
    }
}

/// A transaction ready to be sent. The sequence number of a message is its place in `labels`,
/// counted from 1.
#[derive(Default)]
pub struct Transaction {
    /// The bytes.
    pub messages: Messages,
    /// One per message.
    pub labels: Vec<Label>,
}

/// `AF_INET` or `AF_INET6`, which is also the family of the table.
pub fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

impl Transaction {
    /// An open transaction.
    pub fn begin() -> Transaction {
        let mut transaction = Transaction::default();
        transaction.boundary("begin", 16);
        transaction
    }

    /// Closes it. The last message before the end is acknowledged: errors of all others come by
    /// themselves, before it.
    pub fn finish(mut self) -> Transaction {
        self.messages.acknowledge();
        self.boundary("end", 17);
        self
    }

    /// Everything a batch asks for, in these families.
    pub fn batch(batch: &Batch, families: &[Family], alive: Duration) -> Transaction {
        let mut transaction = Transaction::begin();
        if batch.reset {
            for &family in families {
                let room = |set| room(set, batch.room.get(&(family, set)).copied().unwrap_or(0));
                transaction.reset(family, alive, room);
            }
        }
        let here = |family: &Family| families.contains(family);
        for ((family, set), elements) in
            batch.deletes.iter().filter(|((family, _), _)| here(family))
        {
            transaction.elements(*family, *set, false, elements, None);
        }
        for (family, class) in batch.classes.iter().filter(|(family, _)| here(family)) {
            let chain = class_chain(*class);
            transaction.chain(*family, &chain);
            transaction.rules(*family, &chain);
        }
        batch.each_add(|family, set, elements| {
            if here(&family) {
                transaction.elements(family, set, true, elements, None);
            }
        });
        transaction.finish()
    }

    /// Replaces the table by a fresh skeleton, whether or not there is one.
    fn reset(&mut self, family: Family, alive: Duration, room: impl Fn(SetId) -> Option<u32>) {
        self.table(family, true);
        self.table(family, false);
        self.table(family, true);
        for (number, set) in SetId::ALL.into_iter().enumerate() {
            self.message("add", family, Object::Set(set), kind::NEW_SET, flag::CREATE, |m| {
                self::set(m, family, set, number as u32 + 1, room(set))
            });
        }
        let chains = skeleton(family);
        chains.iter().for_each(|chain| self.chain(family, chain));
        chains.iter().for_each(|chain| self.rules(family, chain));
        self.alive(family, true, alive);
    }

    /// Adds (or deletes) the element without which the table does nothing.
    pub fn alive(&mut self, family: Family, add: bool, timeout: Duration) {
        let element = Element { key: Key::EtherType(family), value: None };
        self.elements(family, SetId::Alive, add, &[element], add.then_some(timeout));
    }

    /// Adds or deletes the table.
    pub fn table(&mut self, family: Family, add: bool) {
        let (verb, kind, flags) = if add {
            ("add", kind::NEW_TABLE, flag::CREATE)
        } else {
            ("delete", kind::DELETE_TABLE, 0)
        };
        self.message(verb, family, Object::Table, kind, flags, |_| {});
    }

    fn chain(&mut self, family: Family, chain: &Chain) {
        self.message("add", family, Object::Chain(chain.id), kind::NEW_CHAIN, flag::CREATE, |m| {
            m.put_str(3, &chain.id.to_string());
            if let Some(base) = chain.base {
                m.nest(4, |m| {
                    m.put_u32(1, base.hook as u32);
                    m.put(2, &PRIORITY.to_be_bytes());
                });
                m.put_u32(5, 1); // policy accept
                m.put_str(7, if base.nat { "nat" } else { "filter" });
            }
        });
    }

    fn rules(&mut self, family: Family, chain: &Chain) {
        for rule in &chain.rules {
            self.message(
                "add",
                family,
                Object::Rule(chain.id),
                kind::NEW_RULE,
                flag::CREATE | flag::APPEND,
                |m| {
                    m.put_str(2, &chain.id.to_string());
                    m.nest(4, |m| rule.iter().for_each(|one| statement(m, family, one)));
                },
            );
        }
    }

    fn elements(
        &mut self,
        family: Family,
        set: SetId,
        add: bool,
        elements: &[Element],
        timeout: Option<Duration>,
    ) {
        let (verb, kind, flags) = if add {
            ("add", kind::NEW_ELEMENTS, flag::CREATE)
        } else {
            ("delete", kind::DELETE_ELEMENTS, 0)
        };
        let mut elements = elements.iter().peekable();
        while elements.peek().is_some() {
            self.message(verb, family, Object::Elements(set), kind, flags, |m| {
                m.put_str(2, set.name());
                let list = m.open(3);
                while m.length_since(list) < LIST_LIMIT {
                    let Some(element) = elements.next() else { break };
                    m.nest(1, |m| self::element(m, element, add, timeout));
                }
                m.close(list);
            });
        }
    }

    fn message(
        &mut self,
        verb: &'static str,
        family: Family,
        object: Object,
        kind: u16,
        flags: u16,
        inside: impl FnOnce(&mut Messages),
    ) {
        self.labels.push(Label { verb, family: Some(family), object });
        self.messages.begin(SUBSYSTEM << 8 | kind, flags, number(family), 0);
        self.messages.put_str(1, TABLE);
        inside(&mut self.messages);
        self.messages.end();
    }

    fn boundary(&mut self, verb: &'static str, kind: u16) {
        self.labels.push(Label { verb, family: None, object: Object::Transaction });
        self.messages.begin(kind, 0, 0, SUBSYSTEM);
        self.messages.end();
    }
}

/// Number and length in bytes of a type, as the nft program numbers and orders them.
fn datatype(family: Family, part: Type) -> (u32, u32) {
    match (part, family) {
        (Type::Address, Family::V4) => (7, 4),
        (Type::Address, Family::V6) => (8, 16),
        (Type::EtherType, _) => (10, 2),
        (Type::Transport, _) => (12, 1),
        (Type::Port, _) => (13, 2),
        (Type::Mark, _) => (19, 4),
        (Type::Interface, _) => (41, 16),
    }
}

/// Number and length of a concatenation: six bits per type, every part padded to four bytes.
fn concatenation(family: Family, parts: &[Type]) -> (u32, u32) {
    match parts {
        [part] => datatype(family, *part),
        parts => parts.iter().map(|part| datatype(family, *part)).fold(
            (0, 0),
            |(number, length), (part, bytes)| {
                (number << 6 | part, length + bytes.next_multiple_of(4))
            },
        ),
    }
}

/// From this number of elements on, a set is made with a size.
const LARGE: usize = 4000;

/// For how many elements a set that is loaded with `count` is made: at least as many again; None
/// without a limit.
///
/// With a size the kernel makes the whole hash table at once (`nft_hash`,
/// net/netfilter/nft_set_hash.c) where it would otherwise double it again and again while it fills
/// (`nft_rhash`): half of the time that 50,000 elements take. It refuses what goes beyond with
/// ENFILE; the writer then builds the table anew with more room, in one long transaction, which is
/// why there is so much of it: some 20 bytes an element.
fn room(set: SetId, count: usize) -> Option<u32> {
    let hashed = !set.interval() && !set.timeout();
    let room = u32::try_from(2 * count).ok()?.checked_next_power_of_two()?;
    (hashed && count >= LARGE).then_some(room)
}

fn set(m: &mut Messages, family: Family, set: SetId, id: u32, room: Option<u32>) {
    const INTERVAL: u32 = 0x4;
    const MAP: u32 = 0x8;
    const TIMEOUT: u32 = 0x10;
    const CONCATENATION: u32 = 0x80;
    let mut flags = 0;
    if set.interval() {
        flags |= INTERVAL | CONCATENATION;
    }
    if set.timeout() {
        flags |= TIMEOUT;
    }
    if set.data() != Data::None {
        flags |= MAP;
    }
    let (key, length) = concatenation(family, set.key());
    m.put_str(2, set.name());
    m.put_u32(3, flags);
    m.put_u32(4, key);
    m.put_u32(5, length);
    match set.data() {
        Data::None => {}
        Data::Verdict => {
            m.put_u32(6, 0xffff_ff00);
            m.put_u32(7, 0);
        }
        Data::Parts(parts) => {
            let (data, length) = concatenation(family, parts);
            m.put_u32(6, data);
            m.put_u32(7, length);
        }
    }
    if set.interval() {
        // NFTA_SET_DESC_CONCAT: only the kind of set that holds ranges of concatenations wants to
        // know the fields.
        m.nest(9, |m| {
            m.nest(2, |m| {
                set.key()
                    .iter()
                    .for_each(|part| m.nest(1, |m| m.put_u32(1, datatype(family, *part).1)))
            });
        });
    }
    if let Some(room) = room {
        m.nest(9, |m| m.put_u32(1, room)); // NFTA_SET_DESC_SIZE
    }
    m.put_u32(10, id);
    // What nft keeps for itself: the byte order of a key that is not a concatenation (1 host, 2
    // network), 0 otherwise.
    let order: u32 = match set.key() {
        [Type::Interface | Type::Mark] => 1,
        [_] => 2,
        _ => 0,
    };
    let mut userdata = vec![0, 4];
    userdata.extend_from_slice(&order.to_ne_bytes());
    if set.data() != Data::None {
        userdata.extend_from_slice(&[1, 4, 0, 0, 0, 0]);
    }
    m.put(13, &userdata);
}

/// An element; deletes name the key only.
pub fn element(m: &mut Messages, element: &Element, add: bool, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        m.put(4, &(timeout.as_millis() as u64).to_be_bytes());
    }
    let (key, end) = key(&element.key);
    m.nest(1, |m| m.put(1, key.bytes()));
    if let Some(end) = end {
        m.nest(10, |m| m.put(1, end.bytes()));
    }
    match &element.value {
        Some(value) if add => m.nest(2, |m| match value {
            Value::Verdict(to) => verdict(m, to),
            Value::Backend(address, port) => {
                let mut data = Bytes::default();
                data.address(*address);
                data.part(&port.to_be_bytes());
                m.put(1, data.bytes());
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
            let number: u16 = if *family == Family::V4 { 0x0800 } else { 0x86dd };
            bytes.part(&number.to_be_bytes());
            bytes.length = 2; // alone, it is not padded
        }
        Key::Interface(name) => {
            let mut padded = [0; 16];
            name.bytes().zip(padded.iter_mut().take(15)).for_each(|(byte, place)| *place = byte);
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
                end.address(last(net));
                return (bytes, Some(end));
            }
        }
    }
    (bytes, None)
}

/// The last address of a range.
fn last(net: &IpNet) -> IpAddr {
    net.broadcast()
}

pub(crate) fn verdict(m: &mut Messages, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(to) => (-3, Some(to)),
        Verdict::Goto(to) => (-4, Some(to)),
    };
    m.nest(2, |m| {
        m.put(1, &i32::to_be_bytes(code));
        if let Some(chain) = chain {
            m.put_str(2, &chain.to_string());
        }
    });
}
