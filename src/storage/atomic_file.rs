//! A file of the state directory that is replaced whole: after a power cut either the old or the new
//! contents are there.
//!
//! Its first line is a JSON header with the version of the format. What cannot be trusted is renamed
//! to `<name>.damaged-<seconds since the epoch>` and reported; it is never fatal.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use siphasher::sip::SipHasher13;

/// A file by its directory and name.
#[derive(Clone, Debug)]
pub(super) struct AtomicFile {
    directory: PathBuf,
    name: &'static str,
}

impl AtomicFile {
    pub fn new(directory: &Path, name: &'static str) -> AtomicFile {
        AtomicFile { directory: directory.to_path_buf(), name }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join(self.name)
    }

    /// Opens it for reading; None when it does not exist.
    ///
    /// # Errors
    /// What is wrong with it, to follow its name in a sentence.
    pub fn open(&self) -> Result<Option<File>, String> {
        match File::open(self.path()) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Renames a file that cannot be trusted.
    pub fn set_aside(&self) {
        let damaged = format!("{}.damaged-{}", self.name, seconds_since_epoch());
        // A failure to rename it does not prevent the start: the next write replaces it.
        let _ = fs::rename(self.path(), self.directory.join(damaged));
    }

    /// A sentence about a file with this defect.
    pub fn problem(&self, defect: &str) -> String {
        format!("{} {defect}; starting without it", self.path().display())
    }

    /// Begins to write new contents beside the old.
    pub fn replace(&self) -> io::Result<Replacement> {
        let temporary = self.directory.join(format!(".{}.new", self.name));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        Ok(Replacement { target: self.clone(), temporary, out: Some(BufWriter::new(file)) })
    }
}

/// New contents of an [`AtomicFile`]. Dropped before [`Replacement::commit`], the old ones stay.
#[derive(Debug)]
pub(super) struct Replacement {
    target: AtomicFile,
    temporary: PathBuf,
    /// None once committed.
    out: Option<BufWriter<File>>,
}

impl Replacement {
    /// Makes the contents durable and puts them in the place of the old ones.
    pub fn commit(mut self) -> io::Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let replaced = out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, self.target.path()));
        if replaced.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        replaced?;
        File::open(&self.target.directory)?.sync_all()
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.as_mut().ok_or(io::ErrorKind::NotConnected)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().ok_or(io::ErrorKind::NotConnected)?.flush()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Reads the header, the first line of a file, which has a field `version`.
///
/// # Errors
/// What is wrong with it, to follow the file's name in a sentence.
pub(super) fn read_header<H: DeserializeOwned>(line: &[u8], version: u32) -> Result<H, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }

    let damaged = |_| "has a damaged header".to_owned();
    let found: Version = serde_json::from_slice(line).map_err(damaged)?;
    if found.version != version {
        return Err(format!(
            "is of version {}, this program reads version {version}",
            found.version
        ));
    }
    serde_json::from_slice(line).map_err(damaged)
}

/// The defect of a file that cannot be read.
pub(super) fn unreadable(error: &io::Error) -> String {
    format!("cannot be read ({error})")
}

/// The defect of a file whose checksum is wrong.
pub(super) const WRONG_CHECKSUM: &str = "is damaged (its checksum is wrong)";

/// SipHash-1-3 of what was written. It detects damage, not manipulation: whoever may write to the
/// state directory may do anything.
#[derive(Default)]
pub(super) struct Checksum(SipHasher13);

impl Checksum {
    pub fn of(bytes: &[u8]) -> Checksum {
        let mut checksum = Checksum::default();
        checksum.add(bytes);
        checksum
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub fn value(&self) -> u64 {
        self.0.finish()
    }

    /// As it stands in the file: 16 hexadecimal digits.
    pub fn text(&self) -> String {
        format!("{:016x}", self.value())
    }
}

/// The time of the system's clock.
pub(super) fn seconds_since_epoch() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_contents_stay_until_the_new_ones_are_committed() {
        let directory =
            std::env::temp_dir().join(format!("pinnace-atomic-file-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let file = AtomicFile::new(&directory, "file");
        assert!(file.open().unwrap().is_none());

        let write = |text: &str| {
            let mut replacement = file.replace().unwrap();
            replacement.write_all(text.as_bytes()).unwrap();
            replacement
        };
        write("old").commit().unwrap();
        drop(write("given up"));
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "old");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "and nothing beside it");
        write("new").commit().unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "new");

        file.set_aside();
        assert!(file.open().unwrap().is_none());
        let names: Vec<String> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.len() == 1 && names[0].starts_with("file.damaged-"), "{names:?}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_header_of_another_version_is_told_from_a_damaged_one() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Header {
            version: u32,
            length: usize,
        }

        let read = |line: &str| read_header::<Header>(line.as_bytes(), 1);
        assert_eq!(read(r#"{"version":1,"length":2}"#), Ok(Header { version: 1, length: 2 }));
        assert!(read(r#"{"version":2}"#).unwrap_err().contains("version 2"));
        assert!(read(r#"{"version":1}"#).unwrap_err().contains("damaged header"));
        assert!(read("").unwrap_err().contains("damaged header"));
    }
}
