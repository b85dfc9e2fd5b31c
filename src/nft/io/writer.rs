//! Brings changes of the ruleset into the kernel over raw netlink, one transaction each. No `nft`
//! program is involved.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::attr::*;
use super::encode::{Label, Object, Transaction, request};
use super::netlink::{Socket, be32, find};
use super::{live, value};
use crate::model::Family;
use crate::model::ruleset_changes::RulesetChanges;
use crate::nft::compiler::{Compiler, Staged};
use crate::nft::element::Element;
use crate::nft::skeleton::SetId;
use crate::nft::table::{TABLE, Table};

/// How long the rules outlive the last [`RulesetWriter::refresh_alive`].
pub const ALIVE: Duration = Duration::from_secs(15 * 60);

/// Why a change is not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused a transaction and executed none of it.
    #[error("nftables: cannot {label}: {source}{}{}", detail(.words), further(*.others))]
    Refused {
        /// The first object that it refused.
        label: Box<str>,
        /// Its family, if it belongs to one.
        family: Option<Family>,
        /// Why.
        #[source]
        source: io::Error,
        /// The kernel's own explanation.
        words: Option<String>,
        /// How many further messages it refused.
        others: usize,
    },
    /// The kernel did not answer a transaction; whether it executed it is unknown.
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

/// Effect of [`RulesetWriter::apply`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Elements added and deleted.
    pub elements: usize,
    /// Size of the transaction in bytes; 0 when there was nothing to do.
    pub bytes: usize,
    /// Both tables were replaced.
    pub reset: bool,
}

/// Owns the tables `ip pinnace` and `ip6 pinnace` of the network namespace in which it was opened.
pub struct RulesetWriter {
    socket: Socket,
    compiler: Compiler,
    /// Handle of each family's table; None before the first load.
    handles: BTreeMap<Family, Option<u64>>,
    /// Families that the kernel does not support, and why.
    absent: BTreeMap<Family, Box<str>>,
    /// The tables exist, as far as is known.
    loaded: bool,
    /// Generation of the kernel's ruleset at which our tables were known to be in sync.
    generation: Option<u32>,
    alive: Duration,
    /// Elements in the kernel, the dead man's switch not counted.
    elements: usize,
}

impl RulesetWriter {
    /// Opens the socket. The kernel's ruleset does not change before the first
    /// [`RulesetWriter::apply`].
    pub fn open() -> Result<RulesetWriter, Error> {
        RulesetWriter::with_timeout(ALIVE)
    }

    /// As [`RulesetWriter::open`], with another timeout of the dead man's switch.
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

    /// Families that the kernel does not support, and why.
    pub fn absent(&self) -> &BTreeMap<Family, Box<str>> {
        &self.absent
    }

    /// Number of set elements in our tables.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// What the kernel acknowledged.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Applies a change in one transaction. The first change and every change with `reset` replace
    /// the tables, including those of a predecessor. An error leaves the kernel and this writer
    /// unchanged, except for [`Error::Unanswered`], after which the next change replaces
    /// everything.
    pub fn apply(&mut self, changes: &RulesetChanges) -> Result<Applied, Error> {
        if self.loaded || changes.reset {
            match self.commit(self.compiler.stage(changes)) {
                // A set is full and cannot grow. The tables are replaced in one transaction.
                Err(Error::Refused { source, .. })
                    if !changes.reset && source.raw_os_error() == Some(libc::ENFILE) => {}
                other => return other,
            }
        }
        let mut all = self.compiler.everything();
        all.merge(changes.clone());
        self.commit(self.compiler.stage(&all))
    }

    /// Creates empty tables with room for this load, unless the kernel has tables of ours. The load
    /// can then follow in steps, because there is nothing that it must replace at once. Returns
    /// whether the tables were created.
    pub fn create_tables(&mut self, load: &RulesetChanges) -> Result<bool, Error> {
        if self.loaded
            || Family::ALL.into_iter().any(|family| matches!(self.handle(family), Ok(Some(_))))
        {
            return Ok(false);
        }
        self.commit(self.compiler.stage_tables(load)).map(|_| true)
    }

    /// Replaces both tables by what was committed: the repair after drift.
    pub fn reload(&mut self) -> Result<Applied, Error> {
        self.commit(self.compiler.stage(&self.compiler.everything()))
    }

    /// Has the kernel execute a staged change, and remembers it when the kernel acknowledged it.
    fn commit(&mut self, staged: Staged<'_>) -> Result<Applied, Error> {
        let batch = &staged.batch;
        if batch.is_empty() {
            self.compiler.commit(staged);
            return Ok(Applied::default());
        }
        if batch.reset {
            // If another program commits in between, `in_sync` compares in full.
            self.generation = Some(self.generation()?);
        }
        let bytes = loop {
            let families = self.families();
            let transaction = Transaction::from_batch(batch, &families, self.alive);
            match self.send(transaction) {
                // The kernel lacks tables or chains of this family: serve the other one.
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

    /// Restarts the timeout of the dead man's switch. To be called several times within it.
    pub fn refresh_alive(&mut self) -> Result<(), Error> {
        if !self.loaded {
            return Ok(());
        }
        let mut transaction = Transaction::begin();
        for family in self.families() {
            // An add does not prolong an existing element, and a delete fails without one (it may
            // have timed out).
            transaction.alive(family, true, self.alive);
            transaction.alive(family, false, self.alive);
            transaction.alive(family, true, self.alive);
        }
        self.send(transaction.finish()).map(|_| ())
    }

    /// Whether the kernel still holds what was committed. While no other program commits to
    /// nftables this is one request; otherwise it compares the table handles, the number of rules
    /// in every chain and one element of every set.
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
                || !self.chains_in_sync(family)?
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

    /// Removes both tables; no error when they do not exist.
    pub fn cleanup(&mut self) -> Result<(), Error> {
        self.loaded = false;
        for family in Family::ALL {
            // Without a table the family's module may be missing too: any refusal of the look-up
            // means absence.
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

    /// Reads our tables from the kernel, without objects of other programs in them.
    pub fn live(&self) -> Result<Vec<Table>, Error> {
        let mut tables = Vec::new();
        for family in Family::ALL {
            if matches!(self.handle(family), Ok(Some(_))) {
                tables.push(live::table(&self.socket, family)?);
            }
        }
        Ok(tables)
    }

    fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| !self.absent.contains_key(family)).collect()
    }

    /// Sends a transaction and reads the kernel's answer. Returns the number of bytes sent.
    fn send(&mut self, transaction: Transaction) -> Result<usize, Error> {
        let Transaction { messages, labels } = transaction;
        if labels.len() < 3 {
            return Ok(0); // Only begin and end.
        }
        self.socket.send(messages.bytes())?;
        let last = messages.count.saturating_sub(1);
        // The kernel has executed a transaction that was sent, whether or not its answers arrive.
        let answers =
            self.socket.answers().map_err(|_| Error::Unanswered { messages: labels.len() })?;
        let mut refused = answers.iter().filter(|answer| answer.error != 0);
        if let Some(first) = refused.next() {
            let label = first.sequence.checked_sub(1).and_then(|at| labels.get(at as usize));
            let unknown = Label { verb: "execute", family: None, object: Object::Transaction };
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
        // Each commit increments the generation. If another program commits too, the numbers
        // differ and `in_sync` compares in full.
        self.generation = self.generation.map(|generation| generation.wrapping_add(1).max(1));
        Ok(messages.bytes().len())
    }

    fn generation(&self) -> Result<u32, Error> {
        let mut generation = 0;
        self.socket.query(&request(libc::NFT_MSG_GETGEN, 0, 0, |_| {}), |body| {
            generation = find(body, NFTA_GEN_ID).and_then(be32).unwrap_or(0);
        })?;
        Ok(generation)
    }

    /// The handle of our table; None without a table.
    fn handle(&self, family: Family) -> Result<Option<u64>, Error> {
        let mut handle = None;
        let request = request(libc::NFT_MSG_GETTABLE, 0, family.af(), |m| {
            m.put_str(NFTA_TABLE_NAME, TABLE);
        });
        let answer = self.socket.query(&request, |body| {
            handle = find(body, NFTA_TABLE_HANDLE)
                .and_then(|bytes| bytes.first_chunk())
                .map(|bytes| u64::from_be_bytes(*bytes));
        });
        match answer {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(|()| handle).map_err(Error::from),
        }
    }

    /// Whether every chain has the expected number of rules and references. Chains are requested
    /// by name: kube-proxy has tens of thousands of its own, and a dump may be inconsistent while
    /// kube-proxy commits.
    fn chains_in_sync(&self, family: Family) -> Result<bool, Error> {
        for (chain, uses) in self.compiler.uses(family) {
            let request = request(libc::NFT_MSG_GETCHAIN, 0, family.af(), |m| {
                m.put_str(NFTA_CHAIN_TABLE, TABLE);
                m.put_str(NFTA_CHAIN_NAME, &chain.to_string());
            });
            let mut found = None;
            let answer = self.socket.query(&request, |body| {
                found = find(body, NFTA_CHAIN_USE).and_then(be32);
            });
            match answer {
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
        let request = request(libc::NFT_MSG_GETSETELEM, 0, family.af(), |m| {
            m.put_str(NFTA_SET_ELEM_LIST_TABLE, TABLE);
            m.put_str(NFTA_SET_ELEM_LIST_SET, set.name());
            m.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                m.nest(NFTA_LIST_ELEM, |m| value::element(m, element, false, None));
            });
        });
        match self.socket.query(&request, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true).map_err(Error::from),
        }
    }
}

/// Whether the kernel was built or started without an address family.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT)
    )
}
