//! Keyed SHA1 and Meticulous Keyed SHA1 (RFC 5880 §6.7.4).

use super::event::Discard;
use super::packet::{self, AuthenticationType, Key, Repr};
use crate::common::random::Random;

/// How all sessions are authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    pub kind: AuthenticationType,
    /// `Auth Key ID`, the same on both sides.
    pub key_id: u8,
    /// The shared secret.
    pub key: Key,
}

/// The sequence numbers of one session.
#[derive(Debug)]
pub(super) struct SequenceNumbers {
    /// bfd.XmitAuthSeq
    next: u32,
    /// bfd.RcvAuthSeq, when bfd.AuthSeqKnown
    received: Option<u32>,
}

impl SequenceNumbers {
    pub fn new(random: &mut Random) -> SequenceNumbers {
        SequenceNumbers { next: random.next(), received: None }
    }

    /// No packet arrived for twice the detection time: a peer that restarts may begin with any
    /// number (§6.8.1, bfd.AuthSeqKnown).
    pub fn reset_received(&mut self) {
        self.received = None;
    }

    pub fn is_known(&self) -> bool {
        self.received.is_some()
    }

    /// The section of the next packet, without its digest. Every packet gets a new number, which
    /// the meticulous type demands and the other allows (§6.7.4).
    pub fn section(&mut self, authentication: &Authentication) -> packet::Authentication {
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        packet::Authentication {
            kind: authentication.kind,
            key_id: authentication.key_id,
            sequence,
            digest: [0; 20],
        }
    }

    /// Whether the number is later than the last one received, however many packets were lost in
    /// between.
    pub fn is_later(&self, packet: &Repr) -> bool {
        let (Some(last), Some(section)) = (self.received, &packet.authentication) else {
            return false;
        };
        (1..1 << 31).contains(&section.sequence.wrapping_sub(last))
    }

    /// Checks in the order of §6.7.4, except that a number is stored only after its digest was
    /// verified: a sender without the secret must not be able to move the window.
    pub fn check(
        &mut self,
        packet: &Repr,
        payload: &[u8],
        configured: Option<&Authentication>,
    ) -> Result<(), Discard> {
        let (section, configured) = match (&packet.authentication, configured) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(Discard::NotAuthenticated),
            (Some(_), None) => return Err(Discard::UnexpectedAuthentication),
            (Some(section), Some(configured)) => (section, configured),
        };
        if section.kind != configured.kind {
            return Err(Discard::AuthenticationType);
        }
        if section.key_id != configured.key_id {
            return Err(Discard::KeyId);
        }
        if let Some(last) = self.received {
            let first = u32::from(section.kind == AuthenticationType::MeticulousKeyedSha1);
            let window = first..=3 * u32::from(packet.detect_multiplier);
            if !window.contains(&section.sequence.wrapping_sub(last)) {
                return Err(Discard::Sequence);
            }
        }
        if !packet::is_signed(payload, &configured.key) {
            return Err(Discard::Digest);
        }
        self.received = Some(section.sequence);
        Ok(())
    }
}

/// Whether the sender of a packet knows the secret. The packet may be a replay.
pub(super) fn is_authentic(
    packet: &Repr,
    payload: &[u8],
    configured: Option<&Authentication>,
) -> bool {
    // The same checks, for a peer whose sequence number is unknown.
    SequenceNumbers { next: 0, received: None }.check(packet, payload, configured).is_ok()
}
