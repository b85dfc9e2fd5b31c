//! Settings of BFD between nodes.

use std::path::PathBuf;
use std::time::Duration;

use super::values;
use crate::bfd::packet::Key;

/// Maximum length of a key in bytes (RFC 5880 §4.4).
const SECRET_LEN: usize = 20;

/// Parses a transmit interval: 3 ms to 1 s.
pub fn interval(text: &str) -> Result<Duration, String> {
    values::duration(text, Duration::from_millis(3), Duration::from_secs(1))
}

/// Parses a detection multiplier: 2 to 50.
pub fn multiplier(text: &str) -> Result<u8, String> {
    text.parse()
        .ok()
        .filter(|number| (2..=50).contains(number))
        .ok_or_else(|| "write a number from 2 to 50".to_string())
}

/// The file that holds the shared secret, read by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// For messages.
    pub path: PathBuf,
    /// Contents and permission bits, or why there are none.
    pub contents: Result<(Vec<u8>, u32), String>,
}

/// A secret that works but is weaker than it seems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretWarning {
    #[error("{path} can be read by everybody on this host: chmod 600 {path}", path = .0.display())]
    WorldReadable(PathBuf),
    #[error("{path} holds {length} bytes, of which the first {SECRET_LEN} are the secret", path = .0.display(), length = .1)]
    Long(PathBuf, usize),
}

/// The secret in a file: its bytes without the line break at the end.
///
/// The error completes the sentence "NAME=value: …".
pub fn secret(file: &SecretFile) -> Result<(Key, Vec<SecretWarning>), String> {
    let (bytes, mode) =
        file.contents.as_ref().map_err(|reason| format!("the secret cannot be read: {reason}"))?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let key = Key::new(bytes).ok_or_else(|| {
        "the file is empty: put a secret of 1 to 20 bytes into it, the same on every node (openssl rand -hex 10)".to_string()
    })?;
    let mut warnings = Vec::new();
    if mode & 0o004 != 0 {
        warnings.push(SecretWarning::WorldReadable(file.path.clone()));
    }
    if bytes.len() > SECRET_LEN {
        warnings.push(SecretWarning::Long(file.path.clone(), bytes.len()));
    }
    Ok((key, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_multipliers_have_limits() {
        assert_eq!((interval("50ms"), multiplier("3")), (Ok(Duration::from_millis(50)), Ok(3)));
        assert_eq!(
            (interval("3ms"), interval("1s")),
            (Ok(Duration::from_millis(3)), Ok(Duration::from_secs(1)))
        );
        for wrong in ["2ms", "1001ms", "50", "fast", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
        assert_eq!((multiplier("2"), multiplier("50")), (Ok(2), Ok(50)));
        for wrong in ["1", "51", "-3", "256", "three", ""] {
            assert!(multiplier(wrong).is_err(), "{wrong}");
        }
    }

    fn read(text: &[u8], mode: u32) -> Result<(Key, Vec<SecretWarning>), String> {
        secret(&SecretFile {
            path: "/etc/pinnace/secret".into(),
            contents: Ok((text.to_vec(), mode)),
        })
    }

    #[test]
    fn a_secret_is_the_text_without_its_line_break() {
        let key = |text: &[u8]| Key::new(text).expect("not empty");
        for text in [&b"pinnace"[..], b"pinnace\n", b"pinnace\r\n"] {
            assert_eq!(read(text, 0o100600), Ok((key(b"pinnace"), vec![])));
        }
        let path = PathBuf::from("/etc/pinnace/secret");
        assert_eq!(
            read(b"pinnace\n", 0o100644),
            Ok((key(b"pinnace"), vec![SecretWarning::WorldReadable(path.clone())]))
        );
        assert_eq!(
            read(&[b'x'; 32], 0o400),
            Ok((key(&[b'x'; 20]), vec![SecretWarning::Long(path, 32)]))
        );
        assert!(read(b"\n", 0o600).is_err_and(|reason| reason.contains("empty")));
        let missing = SecretFile {
            path: "/nowhere".into(),
            contents: Err("No such file or directory".to_string()),
        };
        assert!(secret(&missing).is_err_and(|reason| reason.contains("No such file")));
        assert_eq!(
            read(b"x", 0o644).map(|(_, warnings)| warnings[0].to_string()),
            Ok("/etc/pinnace/secret can be read by everybody on this host: chmod 600 /etc/pinnace/secret".to_string())
        );
    }
}
