//! The wording of session events in the log.

use std::borrow::Cow;

use super::event::{Adaptation, AdaptationCause, Cause, SessionChange};
use super::packet::{Diagnostic, SessionState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Debug,
    Info,
    Warn,
}

/// A log line without its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub severity: Severity,
    pub text: Cow<'static, str>,
}

impl Report {
    fn new(severity: Severity, text: impl Into<Cow<'static, str>>) -> Report {
        Report { severity, text: text.into() }
    }
}

/// None for changes that this node made itself: they are logged where they are decided.
pub fn session_change(change: &SessionChange) -> Option<Report> {
    let (severity, text) = match (change.state, change.cause) {
        (SessionState::Up, _) => (Severity::Info, "peer up"),
        (SessionState::Init, _) => (Severity::Debug, "session init"),
        (_, Cause::DetectionTimeExpired) => {
            (Severity::Warn, "peer down: control detection time expired")
        }
        (_, Cause::NeighborAdminDown) => (Severity::Info, "peer down: administratively down"),
        (_, Cause::NeighborDown) => match change.remote_diagnostic {
            Diagnostic::ControlDetectionTimeExpired => {
                (Severity::Warn, "peer down: neighbor signaled session down, one-way path")
            }
            // It answers what this node signaled before.
            Diagnostic::NeighborSignaledSessionDown => (Severity::Debug, "session init"),
            _ => (Severity::Warn, "peer down: restarted (new discriminator)"),
        },
        (_, Cause::Handshake | Cause::LocalAdminDown | Cause::LocalAdminUp) => return None,
    };
    Some(Report::new(severity, text))
}

pub fn adaptation(change: &Adaptation) -> Report {
    let interval = change.interval;
    let multiplier = change.multiplier;
    match (change.cause, change.detection_time) {
        (AdaptationCause::PacketBudget { sessions, raised }, _) => {
            let verb = if raised { "raised" } else { "lowered" };
            let text = format!(
                "transmit interval {verb} to {interval:?}: packet budget shared by {sessions} sessions"
            );
            Report::new(Severity::Info, text)
        }
        (AdaptationCause::LatePackets(silence), detection_time) => {
            let time = detection_time.unwrap_or(interval * u32::from(multiplier));
            let text =
                format!("detection time raised to {time:?}: late packets, up to {silence:?} apart");
            Report::new(Severity::Warn, text)
        }
        (AdaptationCause::SchedulingDelay(late), _) => {
            let text =
                format!("scheduling delay {late:?}: advertising detect multiplier {multiplier}");
            Report::new(Severity::Warn, text)
        }
        (AdaptationCause::Stable, Some(time)) => {
            Report::new(Severity::Info, format!("detection time lowered to {time:?}"))
        }
        (AdaptationCause::Stable, None) => {
            Report::new(Severity::Info, format!("detect multiplier lowered to {multiplier}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::bfd::PeerKey;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn a_change_says_what_the_session_is_and_why() {
        use Diagnostic::{ControlDetectionTimeExpired, NeighborSignaledSessionDown};
        use Severity::{Debug, Info, Warn};
        let expired = "peer down: control detection time expired";
        let one_way = "peer down: neighbor signaled session down, one-way path";
        let restarted = "peer down: restarted (new discriminator)";
        let down = SessionState::Down;
        let none = Diagnostic::None;
        let cases = [
            (SessionState::Up, Cause::Handshake, none, Some((Info, "peer up"))),
            (SessionState::Init, Cause::Handshake, none, Some((Debug, "session init"))),
            (down, Cause::DetectionTimeExpired, none, Some((Warn, expired))),
            (
                down,
                Cause::NeighborAdminDown,
                Diagnostic::AdministrativelyDown,
                Some((Info, "peer down: administratively down")),
            ),
            (down, Cause::NeighborDown, ControlDetectionTimeExpired, Some((Warn, one_way))),
            (down, Cause::NeighborDown, NeighborSignaledSessionDown, Some((Debug, "session init"))),
            (down, Cause::NeighborDown, none, Some((Warn, restarted))),
            (SessionState::AdminDown, Cause::LocalAdminDown, none, None),
            (down, Cause::LocalAdminUp, none, None),
        ];
        for (state, cause, remote_diagnostic, expected) in cases {
            let change = SessionChange {
                peer: PeerKey { interface: None, address: IpAddr::from([10, 0, 0, 1]) },
                state,
                diagnostic: none,
                remote_diagnostic,
                cause,
                at: ms(0),
            };
            let expected = expected.map(|(severity, text)| Report::new(severity, text));
            assert_eq!(session_change(&change), expected, "{state:?} {cause:?}");
        }
    }

    #[test]
    fn an_adaptation_says_the_new_value_and_why() {
        let cases = [
            (
                AdaptationCause::PacketBudget { sessions: 50, raised: true },
                None,
                "transmit interval raised to 60ms: packet budget shared by 50 sessions",
            ),
            (
                AdaptationCause::PacketBudget { sessions: 20, raised: false },
                None,
                "transmit interval lowered to 60ms: packet budget shared by 20 sessions",
            ),
            (
                AdaptationCause::LatePackets(ms(140)),
                Some(ms(240)),
                "detection time raised to 240ms: late packets, up to 140ms apart",
            ),
            (
                AdaptationCause::SchedulingDelay(ms(90)),
                None,
                "scheduling delay 90ms: advertising detect multiplier 4",
            ),
            (AdaptationCause::Stable, Some(ms(150)), "detection time lowered to 150ms"),
            (AdaptationCause::Stable, None, "detect multiplier lowered to 4"),
        ];
        for (cause, detection_time, expected) in cases {
            let change = Adaptation {
                peer: None,
                cause,
                interval: ms(60),
                multiplier: 4,
                detection_time,
                at: ms(0),
            };
            assert_eq!(adaptation(&change).text, expected);
        }
    }
}
