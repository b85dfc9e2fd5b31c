//! systemd's notification protocol (sd_notify(3)): ready, status line, stopping and watchdog.
//! Without systemd every call does nothing.
//!
//! The variables of the protocol are read and never removed: changing the environment of a process
//! that has threads is not safe, and Pinnace starts no children that could inherit them.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

/// Maximum number of notifications that wait for a busy systemd; further ones are dropped.
const QUEUE: usize = 16;

/// Units ordered after this one may start.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The status line of `systemctl status`, such as "serving 12 services, 3 addresses".
pub fn status(status: &str) {
    notify(&[NotifyState::Status(&one_line(status))]);
}

/// An orderly stop has begun.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
}

/// Keep-alive. To be called from the task that would hang, at [`watchdog_interval`].
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often to call [`watchdog`]: a third of `WatchdogSec=`, so that one late timer does no harm.
/// None: no watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| limit / 3)
}

/// Whether systemd expects notifications.
pub fn is_enabled() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The text of the status line.
pub fn serving(services: usize, addresses: usize) -> String {
    let counted =
        |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    format!(
        "serving {}, {}",
        counted(services, "service", "services"),
        counted(addresses, "address", "addresses")
    )
}

/// Hands over to a thread, because a write blocks while systemd does not read the socket. Errors
/// are ignored: systemd itself reports a missing notification.
fn notify(states: &[NotifyState<'_>]) {
    static WRITER: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
    if !is_enabled() {
        return;
    }
    let Some(writer) = WRITER.get_or_init(start) else { return };
    let text = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(TrySendError::Full(_)) = writer.try_send(text) {
        tracing::debug!("systemd does not read its notifications");
    }
}

fn start() -> Option<SyncSender<String>> {
    let (writer, texts) = sync_channel::<String>(QUEUE);
    let write = move || {
        for text in texts {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(text.trim_end())]) {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot notify systemd");
            }
        }
    };
    thread::Builder::new()
        .name("systemd".into())
        .stack_size(128 * 1024)
        .spawn(write)
        .ok()
        .map(|_| writer)
}

/// A line break would end the field.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_counts_in_words() {
        for (services, addresses, expected) in [
            (12, 3, "serving 12 services, 3 addresses"),
            (1, 1, "serving 1 service, 1 address"),
            (0, 0, "serving 0 services, 0 addresses"),
        ] {
            assert_eq!(serving(services, addresses), expected);
        }
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_field() {
        assert_eq!(one_line("x\nREADY=1"), "x READY=1");
    }
}
