//! BFD control packets (RFC 5880 §4), as UDP payloads, with the SHA1 authentication sections
//! (§4.4).
//!
//! [`Repr::parse`] applies every reception rule of §6.8.6 that looks at the packet alone; what
//! needs a session is in [`crate::bfd`].

use std::fmt;

use sha1::{Digest as _, Sha1};
use thiserror::Error;

/// UDP destination port of single-hop sessions (RFC 5881 §4).
pub const PORT: u16 = 3784;
/// UDP destination port of multihop sessions (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;
/// Length of the mandatory section in bytes.
pub const HEADER_LEN: usize = 24;
/// `Auth Len` of both SHA1 types.
const SHA1_LEN: usize = 28;
/// Length of the longest packet that is sent.
pub const MAX_LEN: usize = HEADER_LEN + SHA1_LEN;
/// Where the digest begins in a packet with a SHA1 section.
const DIGEST: usize = HEADER_LEN + 8;

/// `Sta`: the session state of the sender (§4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionState {
    /// Held down by an operator.
    AdminDown,
    /// No packet has arrived, or the session failed.
    Down,
    /// Packets of the neighbor arrive; whether ours do is unknown.
    Init,
    /// Packets arrive in both directions.
    Up,
}

/// `Diag`: why the sender's session last changed its state (§4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Diagnostic {
    /// 0
    None,
    /// 1
    ControlDetectionTimeExpired,
    /// 2
    EchoFunctionFailed,
    /// 3: the neighbor signaled Down or AdminDown.
    NeighborSignaledSessionDown,
    /// 4
    ForwardingPlaneReset,
    /// 5
    PathDown,
    /// 6
    ConcatenatedPathDown,
    /// 7
    AdministrativelyDown,
    /// 8
    ReverseConcatenatedPathDown,
    /// 9 to 31: reserved, or of later documents.
    Other(u8),
}

/// The two authentication types that have a sequence number and a SHA1 digest (§4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthenticationType {
    /// 4: the sequence number grows now and then.
    KeyedSha1,
    /// 5: the sequence number grows with every packet.
    MeticulousKeyedSha1,
}

/// A SHA1 authentication section without its digest, which [`sign`] fills in and [`is_signed`]
/// checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// `Auth Type`.
    pub kind: AuthenticationType,
    /// `Auth Key ID`: which of several keys.
    pub key_id: u8,
    /// `Sequence Number`: circular, 32 bits.
    pub sequence: u32,
    /// `Auth Key/Hash`.
    pub digest: [u8; 20],
}

/// A control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Why the sender's state last changed.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: SessionState,
    /// P: the sender wants a reply with F at once (§6.5).
    pub poll: bool,
    /// F: the reply to a poll. It must not be sent together with P, but §6.8.6 discards no packet
    /// for that.
    pub finished: bool,
    /// C: the sender's BFD does not share fate with its control plane.
    pub control_plane_independent: bool,
    /// D: the sender wants no periodic packets.
    pub demand: bool,
    /// `Detect Mult`: never 0.
    pub detect_multiplier: u8,
    /// `My Discriminator`: never 0.
    pub my_discriminator: u32,
    /// `Your Discriminator`: 0 when not known.
    pub your_discriminator: u32,
    /// `Desired Min TX Interval` in microseconds.
    pub desired_min_tx: u32,
    /// `Required Min RX Interval` in microseconds; 0: the sender wants no periodic packets.
    pub required_min_rx: u32,
    /// `Required Min Echo RX Interval` in microseconds; 0: no echo packets.
    pub required_min_echo_rx: u32,
    /// A: the authentication section.
    pub authentication: Option<Authentication>,
}

/// Why a payload is discarded (§6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The payload is shorter than the mandatory section.
    #[error("{0} bytes hold no control packet")]
    Truncated(usize),
    /// The version is not 1.
    #[error("version {0} is not 1")]
    Version(u8),
    /// `Length` is below 24, or below 26 with A set.
    #[error("length {0} is too short for the sections announced")]
    Length(u8),
    /// `Length` is beyond the payload.
    #[error("length {length} is more than the {have} bytes of the payload")]
    BeyondPayload { length: u8, have: usize },
    /// `Detect Mult` is 0.
    #[error("the detect multiplier is zero")]
    DetectMultiplier,
    /// M is set: point-to-multipoint (RFC 8562) is not supported.
    #[error("the multipoint bit is set")]
    Multipoint,
    /// `My Discriminator` is 0.
    #[error("my discriminator is zero")]
    MyDiscriminator,
    /// `Your Discriminator` is 0 in state Init or Up.
    #[error("your discriminator is zero in state {0:?}")]
    YourDiscriminator(SessionState),
    /// An `Auth Type` other than 4 and 5.
    #[error("authentication type {0} is none of the SHA1 types")]
    AuthenticationType(u8),
    /// `Auth Len` is not 28, or reaches beyond `Length` (§6.7.4).
    #[error("authentication length {0} is wrong")]
    AuthenticationLength(u8),
}

impl Diagnostic {
    fn from_bits(bits: u8) -> Diagnostic {
        match bits & 0x1f {
            0 => Diagnostic::None,
            1 => Diagnostic::ControlDetectionTimeExpired,
            2 => Diagnostic::EchoFunctionFailed,
            3 => Diagnostic::NeighborSignaledSessionDown,
            4 => Diagnostic::ForwardingPlaneReset,
            5 => Diagnostic::PathDown,
            6 => Diagnostic::ConcatenatedPathDown,
            7 => Diagnostic::AdministrativelyDown,
            8 => Diagnostic::ReverseConcatenatedPathDown,
            other => Diagnostic::Other(other),
        }
    }

    fn bits(self) -> u8 {
        match self {
            Diagnostic::None => 0,
            Diagnostic::ControlDetectionTimeExpired => 1,
            Diagnostic::EchoFunctionFailed => 2,
            Diagnostic::NeighborSignaledSessionDown => 3,
            Diagnostic::ForwardingPlaneReset => 4,
            Diagnostic::PathDown => 5,
            Diagnostic::ConcatenatedPathDown => 6,
            Diagnostic::AdministrativelyDown => 7,
            Diagnostic::ReverseConcatenatedPathDown => 8,
            Diagnostic::Other(other) => other & 0x1f,
        }
    }
}

impl SessionState {
    fn from_bits(bits: u8) -> SessionState {
        match bits & 3 {
            0 => SessionState::AdminDown,
            1 => SessionState::Down,
            2 => SessionState::Init,
            _ => SessionState::Up,
        }
    }

    fn bits(self) -> u8 {
        match self {
            SessionState::AdminDown => 0,
            SessionState::Down => 1,
            SessionState::Init => 2,
            SessionState::Up => 3,
        }
    }
}

impl AuthenticationType {
    fn bits(self) -> u8 {
        match self {
            AuthenticationType::KeyedSha1 => 4,
            AuthenticationType::MeticulousKeyedSha1 => 5,
        }
    }
}

impl Repr {
    /// Reads a UDP payload; bytes after `Length` are ignored. [`is_signed`] checks the digest.
    pub fn parse(payload: &[u8]) -> Result<Repr, ParseError> {
        let header: &[u8; HEADER_LEN] =
            payload.first_chunk().ok_or(ParseError::Truncated(payload.len()))?;
        let [version_diag, flags, detect_multiplier, length, fields @ ..] = *header;
        if version_diag >> 5 != 1 {
            return Err(ParseError::Version(version_diag >> 5));
        }
        let authenticated = flags & 0x04 != 0;
        if usize::from(length) < if authenticated { HEADER_LEN + 2 } else { HEADER_LEN } {
            return Err(ParseError::Length(length));
        }
        let packet = payload
            .get(..usize::from(length))
            .ok_or(ParseError::BeyondPayload { length, have: payload.len() })?;
        if detect_multiplier == 0 {
            return Err(ParseError::DetectMultiplier);
        }
        if flags & 0x01 != 0 {
            return Err(ParseError::Multipoint);
        }
        let [
            my_discriminator,
            your_discriminator,
            desired_min_tx,
            required_min_rx,
            required_min_echo_rx,
        ] = words(fields);
        if my_discriminator == 0 {
            return Err(ParseError::MyDiscriminator);
        }
        let state = SessionState::from_bits(flags >> 6);
        if your_discriminator == 0 && !matches!(state, SessionState::Down | SessionState::AdminDown)
        {
            return Err(ParseError::YourDiscriminator(state));
        }
        Ok(Repr {
            diagnostic: Diagnostic::from_bits(version_diag),
            state,
            poll: flags & 0x20 != 0,
            finished: flags & 0x10 != 0,
            control_plane_independent: flags & 0x08 != 0,
            demand: flags & 0x02 != 0,
            detect_multiplier,
            my_discriminator,
            your_discriminator,
            desired_min_tx,
            required_min_rx,
            required_min_echo_rx,
            authentication: if authenticated {
                Some(Authentication::parse(&packet[HEADER_LEN..])?)
            } else {
                None
            },
        })
    }

    /// Length in bytes.
    fn len(&self) -> usize {
        if self.authentication.is_some() { MAX_LEN } else { HEADER_LEN }
    }

    /// The packet at the start of an array, and its length.
    pub fn to_bytes(&self) -> ([u8; MAX_LEN], usize) {
        let mut bytes = [0; MAX_LEN];
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.poll, 0x20)
            | flag(self.finished, 0x10)
            | flag(self.control_plane_independent, 0x08)
            | flag(self.authentication.is_some(), 0x04)
            | flag(self.demand, 0x02);
        bytes[..4].copy_from_slice(&[
            1 << 5 | self.diagnostic.bits(),
            self.state.bits() << 6 | flags,
            self.detect_multiplier,
            self.len() as u8,
        ]);
        let fields = [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (slot, field) in bytes[4..HEADER_LEN].as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *slot = field.to_be_bytes();
        }
        if let Some(authentication) = &self.authentication {
            bytes[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&[
                authentication.kind.bits(),
                SHA1_LEN as u8,
                authentication.key_id,
                0,
            ]);
            bytes[HEADER_LEN + 4..DIGEST].copy_from_slice(&authentication.sequence.to_be_bytes());
            bytes[DIGEST..].copy_from_slice(&authentication.digest);
        }
        (bytes, self.len())
    }

    /// The packet, allocated.
    pub fn to_vec(&self) -> Vec<u8> {
        let (bytes, length) = self.to_bytes();
        bytes.into_iter().take(length).collect()
    }
}

impl Authentication {
    /// The bytes from `Auth Type` to the end of the packet.
    fn parse(section: &[u8]) -> Result<Authentication, ParseError> {
        let &[kind, length, ref rest @ ..] = section else {
            return Err(ParseError::AuthenticationLength(0));
        };
        let kind = match kind {
            4 => AuthenticationType::KeyedSha1,
            5 => AuthenticationType::MeticulousKeyedSha1,
            other => return Err(ParseError::AuthenticationType(other)),
        };
        let wrong = ParseError::AuthenticationLength(length);
        if usize::from(length) != SHA1_LEN {
            return Err(wrong);
        }
        let &[key_id, _, a, b, c, d, ref digest @ ..] = rest else { return Err(wrong) };
        let digest = *digest.first_chunk().ok_or(wrong)?;
        Ok(Authentication { kind, key_id, sequence: u32::from_be_bytes([a, b, c, d]), digest })
    }
}

fn words(fields: [u8; 20]) -> [u32; 5] {
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(fields.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// A shared secret, padded with zeros for the digest (§6.7.4). Its `Debug` output hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 20]);

impl Key {
    /// From the first 20 bytes of a secret; None when it is empty.
    pub fn new(secret: &[u8]) -> Option<Key> {
        let mut key = [0; 20];
        for (slot, byte) in key.iter_mut().zip(secret) {
            *slot = *byte;
        }
        (!secret.is_empty()).then_some(Key(key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Fills in the digest of a packet that has a SHA1 section; leaves any other as it is.
pub fn sign(packet: &mut [u8], key: &Key) {
    if let Some(digest) = digest(packet, key) {
        packet[DIGEST..MAX_LEN].copy_from_slice(&digest);
    }
}

/// Whether the packet at the start of this payload, which [`Repr::parse`] has accepted, has a SHA1
/// section whose digest was made with this key.
pub fn is_signed(payload: &[u8], key: &Key) -> bool {
    let length = payload.get(3).copied().map_or(0, usize::from);
    let Some(packet) = payload.get(..length) else { return false };
    let (Some(expected), Some(found)) = (digest(packet, key), packet.get(DIGEST..MAX_LEN)) else {
        return false;
    };
    // Constant time: all bytes are compared.
    expected.iter().zip(found).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// SHA1 over the whole packet with the key in place of the digest.
fn digest(packet: &[u8], key: &Key) -> Option<[u8; 20]> {
    let (before, rest) = packet.split_at_checked(DIGEST)?;
    let (_, after) = rest.split_at_checked(20)?;
    let mut hash = Sha1::new();
    hash.update(before);
    hash.update(key.0);
    hash.update(after);
    Some(hash.finalize().into())
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
