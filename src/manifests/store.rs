//! What every file defines, which file owns each object, and what changed. Files are ordered by
//! name: of two definitions of one object the first is used and the other reported. Objects are not
//! kept: a digest shows whether one changed, and a file whose values are needed again is read again
//! ([`ManifestStore::take_reread`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::head::ObjectId;
use super::parse::{Object, Parsed, parse};
use super::split::{Document, Format, split};
use super::text::Fault;
use crate::model::state::SourceProblem;
use crate::model::{Kind, SourceChange};

/// The files of the directory.
#[derive(Debug, Default)]
pub struct ManifestStore {
    files: BTreeMap<Arc<str>, File>,
    held: BTreeMap<Arc<ObjectId>, Held>,
    /// Objects that several files define, with these files.
    contested: BTreeMap<Arc<ObjectId>, BTreeSet<Arc<str>>>,
    pending: BTreeMap<Arc<ObjectId>, Pending>,
    reread: BTreeSet<Arc<str>>,
    /// Files that may have problems.
    with_problems: BTreeSet<Arc<str>>,
    /// The namespace read last: consecutive objects share one allocation of it.
    namespace: Option<Arc<str>>,
}

/// The definition that is used.
#[derive(Debug)]
struct Held {
    file: Arc<str>,
    digest: Digest,
}

/// Digest of an object; [`ABSENT`] where there is none or it is of no concern.
type Digest = u128;
const ABSENT: Digest = 0;

#[derive(Debug)]
struct Pending {
    before: Digest,
    value: Option<Object>,
}

#[derive(Debug, Default)]
struct File {
    documents: Box<[StoredDocument]>,
    /// As set by [`ManifestStore::set_version`]; 0 before.
    version: u64,
    /// Boxed: nearly all of possibly ten thousand files have none.
    trouble: Option<Box<Trouble>>,
}

/// Why a file, or a part of it, is not read.
#[derive(Debug, Default)]
struct Trouble {
    /// Objects that are kept because a broken document may define them.
    retained: Vec<Arc<ObjectId>>,
    /// Why the file as a whole could not be read.
    fault: Option<String>,
}

/// What is remembered of one document.
#[derive(Debug)]
struct StoredDocument {
    text: u64,
    line: u32,
    id: Option<Arc<ObjectId>>,
    state: DocumentState,
    /// Lines are counted from the first of the document.
    faults: Box<[Fault]>,
}

#[derive(Debug, PartialEq, Eq)]
enum DocumentState {
    Defines,
    Duplicate,
    Foreign(Box<str>),
    Noted(Box<str>),
    Broken,
}

impl File {
    fn ids(&self) -> impl Iterator<Item = &Arc<ObjectId>> {
        let retained = self.trouble.iter().flat_map(|trouble| &trouble.retained);
        self.documents
            .iter()
            .filter_map(|document| {
                document.id.as_ref().filter(|_| document.state == DocumentState::Defines)
            })
            .chain(retained)
    }
}

impl ManifestStore {
    /// The file now has this text. Documents whose text is unchanged are not parsed again, unless
    /// `afresh` asks for every value.
    pub fn put(&mut self, file: &str, format: Format, text: &str, afresh: bool) {
        let name: Arc<str> =
            self.files.get_key_value(file).map_or_else(|| file.into(), |(name, _)| name.clone());
        let old = self.files.remove(&name).unwrap_or_default();
        let old_ids: BTreeSet<Arc<ObjectId>> = old.ids().cloned().collect();
        let mut known: HashMap<u64, StoredDocument> = HashMap::new();
        if !afresh {
            let reusable = |document: &StoredDocument| {
                matches!(
                    document.state,
                    DocumentState::Defines | DocumentState::Foreign(_) | DocumentState::Noted(_)
                )
            };
            known.extend(
                old.documents
                    .into_iter()
                    .filter(reusable)
                    .map(|document| (document.text, document)),
            );
        }
        let mut documents = Vec::new();
        let mut defined: BTreeSet<Arc<ObjectId>> = BTreeSet::new();
        split(text, format, &mut |document| {
            let document = match document {
                Ok(document) => document,
                Err(fault) => {
                    let line = fault.line;
                    let fault = Fault { line: 1, ..fault };
                    return documents.push(StoredDocument {
                        text: 0,
                        line,
                        id: None,
                        state: DocumentState::Broken,
                        faults: Box::new([fault]),
                    });
                }
            };
            let text = text_digest(&document);
            let (remembered, value) = match known.remove(&text) {
                Some(remembered) => (StoredDocument { line: document.line, ..remembered }, None),
                None => self.read(&document, text),
            };
            documents.push(remembered);
            let Some(remembered) =
                documents.last_mut().filter(|document| document.state == DocumentState::Defines)
            else {
                return;
            };
            let Some(id) = remembered.id.clone() else { return };
            if defined.insert(id.clone()) {
                self.claim(id, &name, value);
            } else {
                remembered.state = DocumentState::Duplicate;
            }
        });
        let retained = retain_broken(&mut documents, &old_ids, &mut defined);
        for gone in old_ids.difference(&defined) {
            self.release(gone, &name);
        }
        if documents
            .iter()
            .any(|document| document.state != DocumentState::Defines || !document.faults.is_empty())
        {
            self.with_problems.insert(name.clone());
        } else {
            self.with_problems.remove(&name);
        }
        let trouble = (!retained.is_empty()).then(|| Box::new(Trouble { retained, fault: None }));
        self.files.insert(name, File { documents: documents.into(), version: 0, trouble });
    }

    /// Sets the version of a known file that was read last: any number but 0 that differs from the
    /// next version's.
    pub fn set_version(&mut self, file: &str, version: u64) {
        if let Some(file) = self.files.get_mut(file) {
            file.version = version;
        }
    }

    /// The version that was read last; None for an unknown file and one that could not be read.
    pub fn version(&self, file: &str) -> Option<u64> {
        self.files.get(file).map(|file| file.version).filter(|version| *version != 0)
    }

    /// The file cannot be read; what it defined stays in force.
    pub fn fail(&mut self, file: &str, reason: String) {
        let name: Arc<str> = file.into();
        self.with_problems.insert(name.clone());
        let file = self.files.entry(name).or_default();
        file.version = 0;
        file.trouble.get_or_insert_default().fault = Some(reason);
    }

    /// The file and what it defined are gone.
    pub fn remove(&mut self, file: &str) {
        let Some((name, old)) = self.files.remove_entry(file) else { return };
        self.with_problems.remove(&name);
        for id in old.ids().cloned().collect::<BTreeSet<_>>() {
            self.release(&id, &name);
        }
    }

    /// Names of all files, in order.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(|name| &**name)
    }

    /// Files that now own an object whose value is not at hand. The caller puts each again,
    /// `afresh`, before it takes the changes.
    pub fn take_reread(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.reread).into_iter().collect()
    }

    /// The objects that differ from the last call: Nodes, then Services, then EndpointSlices, each
    /// in order of name.
    pub fn take_changes(&mut self) -> Vec<SourceChange> {
        let mut changes = Vec::new();
        for (id, Pending { before, value }) in std::mem::take(&mut self.pending) {
            if before == self.digest_of(&id) {
                continue;
            }
            let key = || id.key.clone();
            changes.push(match (id.kind, value) {
                (_, Some(Object::Node(node))) => SourceChange::Node(node.name.clone(), Some(node)),
                (_, Some(Object::Service(service))) => SourceChange::Service(key(), Some(service)),
                (_, Some(Object::EndpointSlice(slice))) => SourceChange::Slice(key(), Some(slice)),
                (Kind::Node, None) => SourceChange::Node((*id.key.name).into(), None),
                (Kind::Service, None) => SourceChange::Service(key(), None),
                (Kind::EndpointSlice, None) => SourceChange::Slice(key(), None),
            });
        }
        changes
    }

    /// Everything that is wrong at present, by file and line; at most 1,000 problems.
    pub fn problems(&self) -> Vec<SourceProblem> {
        const MAX: usize = 1000;
        let mut problems = Vec::new();
        let mut more = 0_usize;
        let mut report = |problem| {
            if problems.len() < MAX {
                problems.push(problem);
            } else {
                more += 1;
            }
        };
        // Nearly all files have no problem and are not visited.
        let names: BTreeSet<&Arc<str>> =
            self.with_problems.iter().chain(self.contested.values().flatten()).collect();
        for (name, file) in names.into_iter().filter_map(|name| self.files.get_key_value(name)) {
            self.report_file(name, file, &mut report);
        }
        if more > 0 {
            let reason = format!("and {more} more problems in all files");
            problems.push(SourceProblem {
                source: String::new(),
                object: None,
                note: false,
                reason,
            });
        }
        problems
    }

    fn report_file(&self, name: &Arc<str>, file: &File, report: &mut dyn FnMut(SourceProblem)) {
        if let Some(fault) = file.trouble.as_ref().and_then(|trouble| trouble.fault.as_ref()) {
            report(SourceProblem {
                source: name.to_string(),
                object: None,
                note: false,
                reason: fault.clone(),
            });
        }
        let mut foreign = BTreeSet::new();
        for document in &file.documents {
            let id = document.id.as_deref();
            let problem = |line: u32, object: Option<&ObjectId>, reason: String| SourceProblem {
                source: format!("{name}:{line}"),
                object: object.map(ObjectId::to_string),
                note: false,
                reason,
            };
            for fault in &document.faults {
                let line = fault.clone().after(document.line).line;
                report(problem(line, id, fault.reason.to_string()));
            }
            let line = document.line;
            match &document.state {
                DocumentState::Foreign(kind) if foreign.insert(kind) => {
                    report(SourceProblem { note: true, ..problem(line, None, foreign_note(kind)) });
                }
                DocumentState::Noted(note) => {
                    report(SourceProblem { note: true, ..problem(line, None, note.to_string()) });
                }
                DocumentState::Duplicate => {
                    let reason = "defined twice in this file; the first definition is used";
                    report(problem(line, id, reason.into()));
                }
                DocumentState::Defines if !self.contested.is_empty() => {
                    if let Some(winner) = id.and_then(|id| self.overruled(id, name)) {
                        let reason = format!(
                            "also defined in {winner}, which comes first by name and is used"
                        );
                        report(problem(line, id, reason));
                    }
                }
                _ => {}
            }
        }
    }

    /// Parses a document that is new or changed. The value is beside it, None when there is nothing to
    /// claim.
    fn read(
        &mut self,
        document: &Document<'_>,
        text: u64,
    ) -> (StoredDocument, Option<Option<Object>>) {
        let (id, state, faults, value) = match parse(document) {
            Parsed::Object { mut id, mut value, problems } => {
                match &self.namespace {
                    Some(known) if *known == id.key.namespace => id.key.namespace = known.clone(),
                    _ => self.namespace = Some(id.key.namespace.clone()),
                }
                // Everything that names the object shares one allocation.
                let id = self
                    .held
                    .get_key_value(&id)
                    .map_or_else(|| Arc::new(id), |(known, _)| known.clone());
                match &mut value {
                    Some(Object::Service(service)) => service.key = id.key.clone(),
                    Some(Object::EndpointSlice(slice)) => slice.key = id.key.clone(),
                    Some(Object::Node(_)) | None => {}
                }
                let faults = problems
                    .into_iter()
                    .map(|reason| Fault { line: 1, reason: reason.into() })
                    .collect();
                (Some(id), DocumentState::Defines, faults, Some(value))
            }
            Parsed::Foreign { kind } => (None, DocumentState::Foreign(kind), Vec::new(), None),
            Parsed::Noted { note } => (None, DocumentState::Noted(note), Vec::new(), None),
            Parsed::Broken { fault, about } => {
                (about.map(Arc::new), DocumentState::Broken, vec![fault], None)
            }
        };
        (StoredDocument { text, line: document.line, id, state, faults: faults.into() }, value)
    }

    /// The file defines the object. `value` is None when the definition is the one already known.
    fn claim(&mut self, id: Arc<ObjectId>, file: &Arc<str>, value: Option<Option<Object>>) {
        let before = self.digest_of(&id);
        let mut new_holder = false;
        match self.held.get_mut(&id) {
            Some(held) if held.file != *file => {
                let claimants = self.contested.entry(id.clone()).or_default();
                claimants.extend([held.file.clone(), file.clone()]);
                if *held.file < **file {
                    return;
                }
                held.file = file.clone();
                new_holder = true;
            }
            Some(_) => {}
            None => {
                self.held.insert(id.clone(), Held { file: file.clone(), digest: ABSENT });
                new_holder = true;
            }
        }
        let Some(value) = value else {
            if new_holder {
                self.reread.insert(file.clone());
            }
            return;
        };
        let digest = value.as_ref().map_or(ABSENT, object_digest);
        if digest != before || self.pending.contains_key(&id) {
            self.pend(&id, before, value);
        }
        if let Some(held) = self.held.get_mut(&id) {
            held.digest = digest;
        }
    }

    /// The file defines the object no longer: the next file that does takes over, else it is gone.
    fn release(&mut self, id: &Arc<ObjectId>, file: &Arc<str>) {
        let mut successor = None;
        if let Some(claimants) = self.contested.get_mut(id) {
            claimants.remove(file);
            successor = claimants.first().cloned();
            if claimants.len() < 2 {
                self.contested.remove(id);
            }
        }
        let before = self.digest_of(id);
        let Some(held) = self.held.get_mut(id).filter(|held| held.file == *file) else { return };
        match successor {
            // What is served stays until the successor has been read.
            Some(successor) => {
                held.file = successor.clone();
                self.reread.insert(successor);
            }
            None => {
                self.held.remove(id);
                self.pend(id, before, None);
            }
        }
    }

    fn pend(&mut self, id: &Arc<ObjectId>, before: Digest, value: Option<Object>) {
        self.pending.entry(id.clone()).or_insert(Pending { before, value: None }).value = value;
    }

    fn digest_of(&self, id: &ObjectId) -> Digest {
        self.held.get(id).map_or(ABSENT, |held| held.digest)
    }

    /// The file whose definition is used in place of this file's.
    fn overruled(&self, id: &ObjectId, file: &Arc<str>) -> Option<&str> {
        self.contested.get(id)?;
        self.held.get(id).filter(|held| held.file != *file).map(|held| &*held.file)
    }
}

/// Keeps the objects that broken documents define. Where a document's object cannot be determined,
/// or the file never had it (its name may just be edited), everything the file had and no longer
/// defines is kept.
fn retain_broken(
    documents: &mut [StoredDocument],
    old_ids: &BTreeSet<Arc<ObjectId>>,
    defined: &mut BTreeSet<Arc<ObjectId>>,
) -> Vec<Arc<ObjectId>> {
    const KEPT: &str = "its last good version goes on serving";
    let mut retained = Vec::new();
    let mut all = false;
    for document in documents.iter_mut().filter(|document| document.state == DocumentState::Broken)
    {
        let id = document.id.as_ref().and_then(|id| old_ids.get(id));
        match id {
            Some(id) if defined.insert(id.clone()) => {
                for fault in &mut document.faults {
                    fault.reason = format!("{}; {KEPT}", fault.reason).into();
                }
                retained.push(id.clone());
            }
            Some(_) => {}
            None => all = true,
        }
    }
    if all {
        let kept: Vec<_> = old_ids.difference(defined).cloned().collect();
        defined.extend(kept.iter().cloned());
        retained.extend(kept);
    }
    retained
}

fn foreign_note(kind: &str) -> String {
    match kind {
        "Endpoints" => {
            "kind Endpoints is not read; write an EndpointSlice (discovery.k8s.io/v1)".into()
        }
        kind => format!("kind {kind} is not read; only Service, EndpointSlice and Node are"),
    }
}

fn object_digest(object: &Object) -> Digest {
    let mut hasher = SipHasher13::new();
    object.hash(&mut hasher);
    hasher.finish128().as_u128().max(ABSENT + 1)
}

fn text_digest(document: &Document<'_>) -> u64 {
    let mut hasher = SipHasher13::new();
    (document.shape, &document.implied).hash(&mut hasher);
    hasher.write(document.text.as_bytes());
    hasher.finish()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
