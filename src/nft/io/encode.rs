//! nf_tables messages: transactions, and single requests outside of transactions.

use std::fmt;
use std::time::Duration;

use libc::c_int;

use super::attr::*;
use super::expression::statement;
use super::netlink::{LIST_LIMIT, Messages, message_type};
use super::value;
use crate::model::Family;
use crate::nft::batch::Batch;
use crate::nft::element::{Element, Key};
use crate::nft::skeleton::{Chain, ChainId, Data, PRIORITY, SetId, Type, class_chain, skeleton};
use crate::nft::table::TABLE;

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
            Some(family) => write!(f, " of table {} {TABLE}", family.nft()),
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

impl Transaction {
    /// Opens a transaction.
    pub fn begin() -> Transaction {
        let mut transaction = Transaction::default();
        transaction.boundary("begin", libc::NFNL_MSG_BATCH_BEGIN);
        transaction
    }

    /// Closes the transaction and requests an acknowledgement of its last message. The kernel
    /// reports errors of the other messages unasked, before that acknowledgement.
    pub fn finish(mut self) -> Transaction {
        self.messages.acknowledge();
        self.boundary("end", libc::NFNL_MSG_BATCH_END);
        self
    }

    /// Encodes what a batch changes in these families.
    pub fn from_batch(batch: &Batch, families: &[Family], alive: Duration) -> Transaction {
        let mut transaction = Transaction::begin();
        if batch.reset {
            for &family in families {
                let room = |set| room(set, batch.room.get(&(family, set)).copied().unwrap_or(0));
                transaction.reset(family, alive, room);
            }
        }
        let served = |family: &Family| families.contains(family);
        for ((family, set), elements) in
            batch.deletes.iter().filter(|((family, _), _)| served(family))
        {
            transaction.elements(*family, *set, false, elements, None);
        }
        for (family, class) in batch.classes.iter().filter(|(family, _)| served(family)) {
            let chain = class_chain(*class);
            transaction.chain(*family, &chain);
            transaction.rules(*family, &chain);
        }
        batch.each_add(|family, set, elements| {
            if served(&family) {
                transaction.elements(family, set, true, elements, None);
            }
        });
        transaction.finish()
    }

    /// Replaces the table by an empty skeleton, whether or not the table exists.
    fn reset(&mut self, family: Family, alive: Duration, room: impl Fn(SetId) -> Option<u32>) {
        self.table(family, true);
        self.table(family, false);
        self.table(family, true);
        for (number, set) in SetId::ALL.into_iter().enumerate() {
            let (message, flags) = (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE);
            self.message("add", family, Object::Set(set), message, flags, |m| {
                self::set(m, family, set, number as u32 + 1, room(set))
            });
        }
        let chains = skeleton(family);
        chains.iter().for_each(|chain| self.chain(family, chain));
        chains.iter().for_each(|chain| self.rules(family, chain));
        self.alive(family, true, alive);
    }

    /// Adds or deletes the element of the dead man's switch.
    pub fn alive(&mut self, family: Family, add: bool, timeout: Duration) {
        let element = Element { key: Key::EtherType(family), value: None };
        self.elements(family, SetId::Alive, add, &[element], add.then_some(timeout));
    }

    /// Adds or deletes the table.
    pub fn table(&mut self, family: Family, add: bool) {
        let (verb, message, flags) = if add {
            ("add", libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE)
        } else {
            ("delete", libc::NFT_MSG_DELTABLE, 0)
        };
        self.message(verb, family, Object::Table, message, flags, |m| {
            m.put_str(NFTA_TABLE_NAME, TABLE);
        });
    }

    fn chain(&mut self, family: Family, chain: &Chain) {
        let (message, flags) = (libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE);
        self.message("add", family, Object::Chain(chain.id), message, flags, |m| {
            m.put_str(NFTA_CHAIN_TABLE, TABLE);
            m.put_str(NFTA_CHAIN_NAME, &chain.id.to_string());
            if let Some(base) = chain.base {
                m.nest(NFTA_CHAIN_HOOK, |m| {
                    m.put_u32(NFTA_HOOK_HOOKNUM, base.hook as u32);
                    m.put_i32(NFTA_HOOK_PRIORITY, PRIORITY);
                });
                m.put_i32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT);
                m.put_str(NFTA_CHAIN_TYPE, if base.nat { "nat" } else { "filter" });
            }
        });
    }

    fn rules(&mut self, family: Family, chain: &Chain) {
        for rule in &chain.rules {
            let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
            self.message(
                "add",
                family,
                Object::Rule(chain.id),
                libc::NFT_MSG_NEWRULE,
                flags,
                |m| {
                    m.put_str(NFTA_RULE_TABLE, TABLE);
                    m.put_str(NFTA_RULE_CHAIN, &chain.id.to_string());
                    m.nest(NFTA_RULE_EXPRESSIONS, |m| {
                        rule.iter().for_each(|one| statement(m, family, one));
                    });
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
        let (verb, message, flags) = if add {
            ("add", libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE)
        } else {
            ("delete", libc::NFT_MSG_DELSETELEM, 0)
        };
        let mut elements = elements.iter().peekable();
        while elements.peek().is_some() {
            self.message(verb, family, Object::Elements(set), message, flags, |m| {
                m.put_str(NFTA_SET_ELEM_LIST_TABLE, TABLE);
                m.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
                let list = m.open(NFTA_SET_ELEM_LIST_ELEMENTS);
                while m.length_since(list) < LIST_LIMIT {
                    let Some(element) = elements.next() else { break };
                    m.nest(NFTA_LIST_ELEM, |m| value::element(m, element, add, timeout));
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
        message: c_int,
        flags: c_int,
        inside: impl FnOnce(&mut Messages),
    ) {
        self.labels.push(Label { verb, family: Some(family), object });
        let kind = message_type(libc::NFNL_SUBSYS_NFTABLES, message);
        self.messages.begin(kind, flags, family.af(), 0);
        inside(&mut self.messages);
        self.messages.end();
    }

    fn boundary(&mut self, verb: &'static str, message: c_int) {
        self.labels.push(Label { verb, family: None, object: Object::Transaction });
        let kind = message_type(libc::NFNL_SUBSYS_NONE, message);
        self.messages.begin(kind, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u16);
        self.messages.end();
    }
}

/// Encodes a single request outside of a transaction, about one table family or (0) about all. A
/// request that neither lists nor asks for the generation is acknowledged.
pub fn request(
    message: c_int,
    flags: c_int,
    family: u8,
    inside: impl FnOnce(&mut Messages),
) -> Messages {
    let answers_itself = flags & libc::NLM_F_DUMP != 0 || message == libc::NFT_MSG_GETGEN;
    let flags = if answers_itself { flags } else { flags | libc::NLM_F_ACK };
    let mut messages = Messages::default();
    messages.begin(message_type(libc::NFNL_SUBSYS_NFTABLES, message), flags, family, 0);
    inside(&mut messages);
    messages.end();
    messages
}

/// Number and length in bytes of a data type, as `enum datatypes` of the nft program has them.
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

/// Number of elements from which a set is created with a size.
const LARGE: usize = 4000;

/// Size of a set that is loaded with `count` elements: at least twice as many. None: no limit.
///
/// With a size the kernel allocates the whole hash table at once (`nft_hash`,
/// net/netfilter/nft_set_hash.c); without one it doubles the table repeatedly while it fills
/// (`nft_rhash`). A size halves the time that 50,000 elements take, at some 20 bytes of memory per
/// element. The kernel refuses further elements with ENFILE; the writer then replaces the table
/// by a larger one in one long transaction, so the size is generous.
fn room(set: SetId, count: usize) -> Option<u32> {
    let hashed = !set.interval() && !set.timeout();
    let room = u32::try_from(2 * count).ok()?.checked_next_power_of_two()?;
    (hashed && count >= LARGE).then_some(room)
}

fn set(m: &mut Messages, family: Family, set: SetId, id: u32, room: Option<u32>) {
    let mut flags = 0;
    if set.interval() {
        flags |= libc::NFT_SET_INTERVAL | NFT_SET_CONCAT;
    }
    if set.timeout() {
        flags |= libc::NFT_SET_TIMEOUT;
    }
    if set.data() != Data::None {
        flags |= libc::NFT_SET_MAP;
    }
    let (key, length) = concatenation(family, set.key());
    m.put_str(NFTA_SET_TABLE, TABLE);
    m.put_str(NFTA_SET_NAME, set.name());
    m.put_i32(NFTA_SET_FLAGS, flags);
    m.put_u32(NFTA_SET_KEY_TYPE, key);
    m.put_u32(NFTA_SET_KEY_LEN, length);
    match set.data() {
        Data::None => {}
        Data::Verdict => {
            m.put_u32(NFTA_SET_DATA_TYPE, libc::NFT_DATA_VERDICT);
            m.put_u32(NFTA_SET_DATA_LEN, 0);
        }
        Data::Parts(parts) => {
            let (data, length) = concatenation(family, parts);
            m.put_u32(NFTA_SET_DATA_TYPE, data);
            m.put_u32(NFTA_SET_DATA_LEN, length);
        }
    }
    if set.interval() {
        // Only the set type that holds ranges of concatenations (nft_set_pipapo) needs the fields.
        m.nest(NFTA_SET_DESC, |m| {
            m.nest(NFTA_SET_DESC_CONCAT, |m| {
                for part in set.key() {
                    let (_, length) = datatype(family, *part);
                    m.nest(NFTA_LIST_ELEM, |m| m.put_u32(NFTA_SET_FIELD_LEN, length));
                }
            });
        });
    }
    if let Some(room) = room {
        m.nest(NFTA_SET_DESC, |m| m.put_u32(NFTA_SET_DESC_SIZE, room));
    }
    m.put_u32(NFTA_SET_ID, id);
    // The nft program stores the byte order of key and data in the userdata of a set: 1 host, 2
    // network, 0 for a concatenation.
    let order: u32 = match set.key() {
        [Type::Interface | Type::Mark] => 1,
        [_] => 2,
        _ => 0,
    };
    let mut userdata = vec![NFTNL_UDATA_SET_KEYBYTEORDER, 4];
    userdata.extend_from_slice(&order.to_ne_bytes());
    if set.data() != Data::None {
        userdata.extend_from_slice(&[NFTNL_UDATA_SET_DATABYTEORDER, 4, 0, 0, 0, 0]);
    }
    m.put(NFTA_SET_USERDATA, &userdata);
}
