//! What an error of the API means to a person: who failed, how, and what to do.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use kube::Error;
use rustls::{AlertDescription, CertificateError};

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer: refused, unreachable, timed out, or the connection broke.
    Unreachable(String),
    /// The server's certificate, or ours, is not valid now.
    Certificate(String),
    /// 401
    Unauthorized,
    /// 403, with the server's words.
    Forbidden(String),
    /// 410: what we knew is too old to go on from.
    Gone,
    /// 429, with the time the server asks for.
    TooManyRequests(Duration),
    /// Any other status.
    Status(u16, String),
    /// An answer that is not what the API promises.
    Nonsense(String),
}

impl Failure {
    /// Sorts an error.
    pub fn of(error: &Error) -> Failure {
        match error {
            Error::Api(status) => match status.code {
                401 => Failure::Unauthorized,
                403 => Failure::Forbidden(status.message.clone()),
                410 => Failure::Gone,
                429 => {
                    let seconds = status.details.as_ref().map_or(1, |details| details.retry_after_seconds);
                    Failure::TooManyRequests(Duration::from_secs(seconds.clamp(1, 60).into()))
                }
                code => Failure::Status(code, if status.message.is_empty() { status.reason.clone() } else { status.message.clone() }),
            },
            Error::SerdeError(error) => Failure::Nonsense(error.to_string()),
            error => match certificate(error) {
                Some(reason) => Failure::Certificate(reason),
                None => Failure::Unreachable(innermost(error)),
            },
        }
    }

    /// A sentence about it. `server` is the address asked, `credentials` where they come from, `what` the resource.
    pub fn sentence(&self, server: &str, credentials: &str, what: &str) -> String {
        match self {
            Failure::Unreachable(reason) => format!("the API server {server} does not answer: {reason}"),
            Failure::Certificate(reason) => format!("no connection to the API server {server} can be trusted: {reason}"),
            Failure::Unauthorized => {
                format!(
                    "the API server {server} does not accept the credentials in {credentials} (401); renew them, they are read again by themselves"
                )
            }
            Failure::Forbidden(reason) => format!(
                "the credentials in {credentials} may not read {what} (403: {reason}); grant get, list and watch on services, nodes and \
                 endpointslices.discovery.k8s.io by a ClusterRole"
            ),
            Failure::Gone => format!("the API server {server} has forgotten what was read of {what} (410); reading it anew"),
            Failure::TooManyRequests(_) => format!("the API server {server} is overloaded (429)"),
            Failure::Status(code, reason) => format!("the API server {server} fails (HTTP {code}: {reason})"),
            Failure::Nonsense(reason) => format!("the API server {server} gives answers about {what} that cannot be read: {reason}"),
        }
    }
}

fn chain(error: &Error) -> Vec<&(dyn StdError + 'static)> {
    let mut found: Vec<&(dyn StdError + 'static)> = Vec::new();
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        found.push(error);
        // An io::Error's source is that of what it wraps, which would be skipped.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    found
}

fn innermost(error: &Error) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn certificate(error: &Error) -> Option<String> {
    let found = chain(error).into_iter().find_map(|error| error.downcast_ref::<rustls::Error>())?;
    Some(match found {
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired; renew it, and see that this host's clock is right".into()
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; see that this host's clock is right".into()
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate was issued by an authority that the credentials do not name".into()
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => "it says that our client certificate has expired".into(),
        rustls::Error::InvalidCertificate(other) => format!("its certificate is refused ({other})"),
        rustls::Error::AlertReceived(alert) => format!("it refused the connection ({alert:?})"),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use kube::core::response::Status;

    use super::*;

    fn api(code: u16) -> Failure {
        Failure::of(&Error::Api(Status { code, message: "words".into(), ..Status::default() }.boxed()))
    }

    #[test]
    fn every_kind_of_failure_says_who_and_what_to_do() {
        let refused = Error::ReadEvents(io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused)));
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let expired = Error::Service(Box::new(io::Error::other(expired)));
        for (failure, words) in [
            (Failure::of(&refused), "https://a:6443 does not answer: connection refused"),
            (Failure::of(&expired), "has expired"),
            (api(401), "does not accept the credentials in /k"),
            (api(403), "may not read nodes (403: words); grant get, list and watch"),
            (api(429), "overloaded (429)"),
            (api(500), "fails (HTTP 500: words)"),
        ] {
            let sentence = failure.sentence("https://a:6443", "/k", "nodes");
            assert!(sentence.contains(words), "{words} is not in {sentence}");
        }
        assert_eq!(api(410), Failure::Gone);
    }
}
