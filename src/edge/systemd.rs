//! systemd's notification protocol (sd_notify(3)): ready, status line, stopping and watchdog. Without systemd every call does nothing.
//!
//! The variables of the protocol are read and never removed: changing the environment of a process that has threads is not safe, and
//! Pinnace starts no children that could inherit them.

use std::time::Duration;

use sd_notify::NotifyState;

/// Services are served: units ordered after this one may start.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The line `systemctl status` shows, such as "serving 12 services, 3 addresses".
pub fn status(status: &str) {
    notify(&[NotifyState::Status(&one_line(status))]);
}

/// An orderly stop has begun.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
}

/// Still alive. Call it from the task that would hang, at the interval [`watchdog_interval`] gives.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often to call [`watchdog`]: a third of `WatchdogSec=`, so that one late timer costs nothing. None: nobody is watching.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| limit / 3)
}

/// The text of the status line.
pub fn serving(services: usize, addresses: usize) -> String {
    let counted = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    format!("serving {}, {}", counted(services, "service", "services"), counted(addresses, "address", "addresses"))
}

/// A socket that cannot be reached must not stop the service; systemd says itself when a notification it needs is missing.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot notify systemd");
    }
}

/// The protocol's fields end at a line break.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_counts_in_words() {
        for (services, addresses, expected) in
            [(12, 3, "serving 12 services, 3 addresses"), (1, 1, "serving 1 service, 1 address"), (0, 0, "serving 0 services, 0 addresses")]
        {
            assert_eq!(serving(services, addresses), expected);
        }
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_field() {
        assert_eq!(one_line("x\nREADY=1"), "x READY=1");
    }
}
