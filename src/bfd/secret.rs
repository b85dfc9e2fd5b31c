//! The shared secret of all nodes, from a file that the caller has read.

use std::path::PathBuf;

use thiserror::Error;

use super::packet::Key;

/// Bytes of a secret that count (RFC 5880 §4.4).
const SECRET_LEN: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// For messages.
    pub path: PathBuf,
    /// Contents and permission bits, or why the file cannot be read.
    pub contents: Result<(Vec<u8>, u32), String>,
}

/// A defect of a secret that works.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretWarning {
    #[error("{path} is world-readable: chmod 600 {path}", path = .0.display())]
    WorldReadable(PathBuf),
    /// Longer than the keys of the protocol.
    #[error("{path} holds {length} bytes, of which the first {SECRET_LEN} are the secret", path = .0.display(), length = .1)]
    Long(PathBuf, usize),
}

/// Takes the bytes of the file without a line break at the end.
///
/// # Errors
/// A text that completes the sentence "NAME=value: …".
pub fn parse(file: &SecretFile) -> Result<(Key, Vec<SecretWarning>), String> {
    let (bytes, mode) =
        file.contents.as_ref().map_err(|reason| format!("the secret cannot be read: {reason}"))?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let key = Key::new(bytes).ok_or_else(|| {
        "the file is empty: write a secret of 1 to 20 bytes into it, the same on every node (openssl rand -hex 10)".to_string()
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

    fn read(text: &[u8], mode: u32) -> Result<(Key, Vec<SecretWarning>), String> {
        parse(&SecretFile {
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
        assert!(parse(&missing).is_err_and(|reason| reason.contains("No such file")));
        assert_eq!(
            read(b"x", 0o644).map(|(_, warnings)| warnings[0].to_string()),
            Ok("/etc/pinnace/secret is world-readable: chmod 600 /etc/pinnace/secret".to_string())
        );
    }
}
