//! Carries the rule set of [`crate::nft`] into the kernel over raw netlink: one transaction per
//! change, compared with memory, never with a listing. No `nft` program is involved.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::encode::{Label, Object, SUBSYSTEM, Transaction, kind, number};
use super::netlink::{Messages, Socket, be32, find, flag};
use crate::model::Family;
use crate::model::ruleset_changes::RulesetChanges;
use crate::nft::{Batch, Compiler, Element, SetId, Staged, TABLE, Table};

/// How long the rules outlive the last [`Writer::refresh_alive`].
pub const ALIVE: Duration = Duration::from_secs(15 * 60);

/// Why the kernel does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused a transaction; nothing of it was carried out.
    #[error("nftables: cannot {label}: {source}{}{}", detail(.words), further(*.others))]
    Refused {
        /// The first object that it refused.
        label: Box<str>,
        /// Its family, if it belongs to one.
        family: Option<Family>,
        /// Why.
        #[source]
        source: io::Error,
        /// The same in the kernel's words.
        words: Option<String>,
        /// How many further messages it refused.
        others: usize,
    },
    /// The kernel did not answer a transaction; whether it was carried out is unknown.
    #[error("nftables: the kernel did not answer a transaction of {messages} messages")]
    Unanswered {
        /// How many messages it had.
        messages: usize,
    },
    /// No address family can be served.
    #[error("nftables: this kernel offers neither family: {0}")]
    NoFamily(Box<str>),
}

fn detail(words: &Option<String>) -> String {
    words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default()
}

fn further(others: usize) -> String {
    if others == 0 { String::new() } else { format!(", and {others} more messages") }
}

/// What an [`Writer::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Elements added and deleted.
    pub elements: usize,
    /// Size of the transaction in bytes; 0 when there was nothing to do.
    pub bytes: usize,
    /// The tables were built from nothing.
    pub reset: bool,
}

/// Owns our two tables in the network namespace in which it was opened.
pub struct RulesetWriter {
    socket: Socket,
    compiler: Compiler,
    /// What each family's table is known by in the kernel; None before the first load.
    handles: BTreeMap<Family, Option<u64>>,
    /// Families the kernel does not offer, and why.
    absent: BTreeMap<Family, Box<str>>,
    /// The tables are there as far as we know.
    loaded: bool,
    /// Generation of the kernel's rule sets at which ours were known to be intact.
    generation: Option<u32>,
    alive: Duration,
    /// Elements in the kernel, the dead man's switch not counted.
    elements: usize,
}

impl RulesetWriter {
    /// Opens the socket. Nothing is changed in the kernel until the first [`Writer::apply`].
    pub fn open() -> Result<RulesetWriter, Error> {
        RulesetWriter::with_timeout(ALIVE)
    }

    /// As [`Writer::open`], with another time span for the dead man's switch.
    pub fn with_timeout(alive: Duration) -> Result<RulesetWriter, Error> {
        Ok(RulesetWriter {
            socket: Socket::open()?,
            compiler: Compiler::default(),
            handles: Family::ALL.into_iter().map(|family| (family, None)).collect(),
            absent: BTreeMap::new(),
            loaded: false,
            generation: None,
            alive,
            elements: 0,
        })
    }

    /// Families that the kernel does not offer, and why; the others are served.
    pub fn absent(&self) -> &BTreeMap<Family, Box<str>> {
        &self.absent
    }

    /// How many set elements the kernel holds for us.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// What is in the kernel, as far as we know.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Carries out a change in one transaction. The first one builds the tables, over whatever a
    /// predecessor left, and so does every change with `reset`. After an error nothing has
    /// changed, neither in the kernel nor here, except after [`Error::Unanswered`],
    /// when the next change rebuilds everything.
    pub fn apply(&mut self, changes: &RulesetChanges) -> Result<Applied, Error> {
        if self.loaded || changes.reset {
            match self.commit(changes.clone()) {
                // A set is full: it was made for fewer elements and cannot grow. The table is
                // replaced in one transaction.
                Err(Error::Refused { source, .. })
                    if !changes.reset && source.raw_os_error() == Some(libc::ENFILE) => {}
                other => return other,
            }
        }
        let mut all = self.compiler.everything();
        all.merge(changes.clone());
        self.commit(all)
    }

    /// Where the kernel has no tables of ours yet: makes them, empty, with room for these changes,
    /// which can then come in steps, as there is nothing that all of them together would have
    /// to replace. Says whether it did.
    pub fn create_tables(&mut self, changes: &RulesetChanges) -> Result<bool, Error> {
        if self.loaded
            || Family::ALL.into_iter().any(|family| matches!(self.handle(family), Ok(Some(_))))
        {
            return Ok(false);
        }
        self.carry(self.compiler.foundation(changes)).map(|_| true)
    }

    /// Builds everything anew from memory: the repair after somebody flushed us.
    pub fn reload(&mut self) -> Result<Applied, Error> {
        self.commit(self.compiler.everything())
    }

    fn commit(&mut self, changes: RulesetChanges) -> Result<Applied, Error> {
        self.carry(self.compiler.stage(changes))
    }

    fn carry(&mut self, staged: Staged) -> Result<Applied, Error> {
        let batch = &staged.batch;
        if batch.is_empty() {
            self.compiler.commit(staged);
            return Ok(Applied::default());
        }
        if batch.reset {
            // Whatever was known is replaced; should somebody else commit in between, `intact`
            // looks closer.
            self.generation = Some(self.generation()?);
        }
        let bytes = loop {
            let families = self.families();
            match self.transact(batch, &families) {
                // A family is absent when the kernel has no such tables or no such chains: keep
                // serving the other.
                Err(Error::Refused { family: Some(family), source, label, .. })
                    if batch.reset && is_absence(&source) =>
                {
                    self.absent.insert(family, format!("cannot {label}: {source}").into());
                    if self.families().is_empty() {
                        let reasons: Vec<&str> =
                            self.absent.values().map(|reason| &**reason).collect();
                        let error = Error::NoFamily(reasons.join("; ").into());
                        self.absent.clear();
                        return Err(error);
                    }
                }
                Err(error @ Error::Unanswered { .. }) => {
                    self.loaded = false;
                    self.generation = None;
                    return Err(error);
                }
                Err(error) => return Err(error),
                Ok(bytes) => break bytes,
            }
        };
        let (added, deleted) = batch.elements();
        let applied = Applied { elements: added + deleted, bytes, reset: batch.reset };
        let before = if batch.reset { 0 } else { self.elements };
        self.elements = (before + added).saturating_sub(deleted);
        self.compiler.commit(staged);
        if applied.reset {
            self.loaded = true;
            for family in self.families() {
                let handle = self.handle(family)?;
                self.handles.insert(family, handle);
            }
        }
        Ok(applied)
    }

    /// Keeps the rules in force for another [`ALIVE`]. To be called a few times within that span.
    pub fn refresh_alive(&mut self) -> Result<(), Error> {
        if !self.loaded {
            return Ok(());
        }
        let mut transaction = Transaction::begin();
        for family in self.families() {
            // The first makes sure that there is one to delete (it may have timed out); adding
            // alone would not prolong it.
            transaction.alive(family, true, self.alive);
            transaction.alive(family, false, self.alive);
            transaction.alive(family, true, self.alive);
        }
        self.send(transaction.finish()).map(|_| ())
    }

    /// Whether the kernel still has what we gave it. Cheap while nobody commits anything to
    /// nftables but us; else it looks at tables, at the number of rules in every chain and at
    /// one element of every set.
    pub fn in_sync(&mut self) -> Result<bool, Error> {
        let generation = self.generation()?;
        if self.loaded && self.generation == Some(generation) {
            return Ok(true);
        }
        if !self.loaded {
            return Ok(false);
        }
        for family in self.families() {
            if self.handle(family)? != self.handles.get(&family).copied().flatten()
                || !self.chains_intact(family)?
            {
                return Ok(false);
            }
            for (set, element) in self.compiler.samples(family) {
                if !self.has(family, set, &element)? {
                    return Ok(false);
                }
            }
        }
        self.generation = Some(generation);
        Ok(true)
    }

    /// Removes both tables; no error when they are not there.
    pub fn cleanup(&mut self) -> Result<(), Error> {
        self.loaded = false;
        for family in Family::ALL {
            // A table that is not there has no family module to ask for, either: any refusal of the
            // look-up means absence.
            if !matches!(self.handle(family), Ok(Some(_))) {
                continue;
            }
            let mut transaction = Transaction::begin();
            transaction.table(family, false);
            match self.send(transaction.finish()) {
                Err(Error::Refused { source, .. })
                    if source.raw_os_error() == Some(libc::ENOENT) => {}
                other => other.map(|_| ())?,
            }
        }
        Ok(())
    }

    /// Our tables as the kernel has them now. Objects in them that are not ours are left out.
    pub fn live(&self) -> Result<Vec<Table>, Error> {
        let mut tables = Vec::new();
        for family in Family::ALL {
            if matches!(self.handle(family), Ok(Some(_))) {
                tables.push(super::live::table(&self.socket, family)?);
            }
        }
        Ok(tables)
    }

    fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| !self.absent.contains_key(family)).collect()
    }

    fn transact(&mut self, batch: &Batch, families: &[Family]) -> Result<usize, Error> {
        let transaction = Transaction::batch(batch, families, self.alive);
        self.send(transaction)
    }

    /// Sends a transaction and reads what the kernel says to it.
    fn send(&mut self, transaction: Transaction) -> Result<usize, Error> {
        let Transaction { messages, labels } = transaction;
        if labels.len() < 3 {
            return Ok(0); // begin and end only
        }
        self.socket.send(messages.bytes())?;
        let last = messages.count.saturating_sub(1);
        // Once it is sent the kernel has acted on it, whether or not its answers can be read.
        let answers =
            self.socket.answers().map_err(|_| Error::Unanswered { messages: labels.len() })?;
        let mut refused = answers.iter().filter(|answer| answer.error != 0);
        if let Some(first) = refused.next() {
            let label = first.sequence.checked_sub(1).and_then(|at| labels.get(at as usize));
            let unknown = Label { verb: "carry out", family: None, object: Object::Transaction };
            let label = label.copied().unwrap_or(unknown);
            return Err(Error::Refused {
                label: label.to_string().into(),
                family: label.family,
                source: io::Error::from_raw_os_error(first.error),
                words: first.words.clone(),
                others: refused.count(),
            });
        }
        if !answers.iter().any(|answer| answer.sequence == last) {
            return Err(Error::Unanswered { messages: labels.len() });
        }
        // A commit counts the generation on by one; if somebody else commits too, the numbers
        // differ and `intact` looks closer.
        self.generation = self.generation.map(|generation| generation.wrapping_add(1).max(1));
        Ok(messages.bytes().len())
    }

    fn generation(&self) -> Result<u32, Error> {
        let mut generation = 0;
        self.socket.query(&request(kind::GET_GENERATION, 0, 0, |_| {}), |body| {
            generation = find(body, 1).and_then(be32).unwrap_or(0);
        })?;
        Ok(generation)
    }

    /// The handle of our table; None without a table.
    fn handle(&self, family: Family) -> Result<Option<u64>, Error> {
        let mut handle = None;
        let asked = self.socket.query(
            &request(kind::GET_TABLE, 0, number(family), |m| m.put_str(1, TABLE)),
            |body| {
                handle = find(body, 4)
                    .and_then(|bytes| bytes.first_chunk())
                    .map(|bytes| u64::from_be_bytes(*bytes));
            },
        );
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(|()| handle).map_err(Error::from),
        }
    }

    /// Whether every chain has as many rules and references as it should. Each is asked for by
    /// name: kube-proxy has tens of thousands of its own, and a dump of them all need not be
    /// whole while it commits.
    fn chains_intact(&self, family: Family) -> Result<bool, Error> {
        for (chain, uses) in self.compiler.uses(family) {
            let asked = request(kind::GET_CHAIN, 0, number(family), |m| {
                m.put_str(1, TABLE);
                m.put_str(3, &chain.to_string());
            });
            let mut found = None;
            match self.socket.query(&asked, |body| found = find(body, 6).and_then(be32)) {
                Ok(()) if found == Some(uses) => {}
                Ok(()) => return Ok(false),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Whether the set has this element.
    fn has(&self, family: Family, set: SetId, element: &Element) -> Result<bool, Error> {
        let request = request(kind::GET_ELEMENTS, 0, number(family), |m| {
            m.put_str(1, TABLE);
            m.put_str(2, set.name());
            m.nest(3, |m| m.nest(1, |m| super::encode::element(m, element, false, None)));
        });
        match self.socket.query(&request, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true).map_err(Error::from),
        }
    }
}

/// A single request outside of transactions.
pub(super) fn request(
    kind: u16,
    flags: u16,
    family: u8,
    inside: impl FnOnce(&mut Messages),
) -> Messages {
    let mut messages = Messages::default();
    let flags = if flags & flag::DUMP == 0 && kind != kind::GET_GENERATION {
        flags | flag::ACK
    } else {
        flags
    };
    messages.begin(SUBSYSTEM << 8 | kind, flags, family, 0);
    inside(&mut messages);
    messages.end();
    messages
}

/// Errors by which a kernel says that it was built or started without an address family.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)
    )
}
