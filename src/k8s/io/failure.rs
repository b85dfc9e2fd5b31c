//! What an error of the API means to a person: who failed, how, and what to do.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Error;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{AlertDescription, CertificateError, RootCertStore};

const RENEW: &str = "renew it, it is read again by itself";

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer: refused, unreachable, timed out, or the connection broke.
    Unreachable(String),
    /// The server's certificate cannot be trusted.
    Certificate(String),
    /// The client certificate is not accepted because of its dates; what is wrong with them.
    OwnCertificate(String),
    /// 401
    Unauthorized,
    /// 403, with the server's words.
    Forbidden(String),
    /// 410: the resourceVersion is too old.
    Gone,
    /// 429, with the time the server asks for.
    TooManyRequests(Duration),
    /// Any other status.
    Status(u16, String),
    /// An answer that does not conform to the API.
    InvalidResponse(String),
}

impl Failure {
    /// Classifies an error.
    pub fn of(error: &Error) -> Failure {
        match error {
            Error::Api(status) => match status.code {
                401 => Failure::Unauthorized,
                403 => Failure::Forbidden(status.message.clone()),
                410 => Failure::Gone,
                429 => {
                    let seconds =
                        status.details.as_ref().map_or(1, |details| details.retry_after_seconds);
                    Failure::TooManyRequests(Duration::from_secs(seconds.clamp(1, 60).into()))
                }
                code => Failure::Status(
                    code,
                    if status.message.is_empty() {
                        status.reason.clone()
                    } else {
                        status.message.clone()
                    },
                ),
            },
            Error::SerdeError(error) => Failure::InvalidResponse(error.to_string()),
            error => certificate(error).unwrap_or_else(|| Failure::Unreachable(innermost(error))),
        }
    }

    /// A sentence for people. `server` is the address of the API server, `credentials` their source,
    /// `what` the resource.
    pub fn sentence(&self, server: &str, credentials: &str, what: &str) -> String {
        match self {
            Failure::Unreachable(reason) => {
                format!("the API server {server} does not answer: {reason}")
            }
            Failure::Certificate(reason) => {
                format!("no connection to the API server {server} can be trusted: {reason}")
            }
            Failure::OwnCertificate(reason) => {
                format!(
                    "the API server {server} does not accept the client certificate in {credentials}: {reason}"
                )
            }
            Failure::Unauthorized => {
                format!(
                    "the API server {server} does not accept the credentials in {credentials} (401); renew them, they are read again by themselves"
                )
            }
            Failure::Forbidden(reason) => format!(
                "the credentials in {credentials} may not read {what} (403: {reason}); grant get, list and watch on services, nodes and \
                 endpointslices.discovery.k8s.io by a ClusterRole"
            ),
            Failure::Gone => {
                format!("watch of {what} expired at the API server {server} (410 Gone), relisting")
            }
            Failure::TooManyRequests(_) => format!("the API server {server} is overloaded (429)"),
            Failure::Status(code, reason) => {
                format!("the API server {server} fails (HTTP {code}: {reason})")
            }
            Failure::InvalidResponse(reason) => {
                format!("the API server {server} sends invalid answers about {what}: {reason}")
            }
        }
    }
}

/// What is wrong with the dates of the client certificate, and what to do; None when it is valid at
/// this time. The API server itself answers 401 without a reason.
pub fn dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<String> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    // webpki checks the dates before it looks for the issuer, so none has to be known here.
    let verdict = verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &RootCertStore::empty(),
        &[],
        now,
        &[],
    );
    match verdict {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => Some(format!("it expired at {}; {RENEW}", shown(not_after))),
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before,
            ..
        })) => Some(format!(
            "it is not valid before {}; see that this host's clock is right",
            shown(not_before)
        )),
        _ => None,
    }
}

fn shown(time: UnixTime) -> String {
    let time =
        i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "an unknown time".into(), |time| time.to_string())
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

fn certificate(error: &Error) -> Option<Failure> {
    let found = chain(error).into_iter().find_map(|error| error.downcast_ref::<rustls::Error>())?;
    let reason = match found {
        // Servers send this alert about a certificate that is not valid yet, too.
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            return Some(Failure::OwnCertificate(format!("it has expired; {RENEW}")));
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => {
            "its certificate has expired; renew it, and see that this host's clock is right".into()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet; see that this host's clock is right".into(),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate was issued by an authority that the credentials do not name".into()
        }
        rustls::Error::InvalidCertificate(other) => format!("its certificate is refused ({other})"),
        rustls::Error::AlertReceived(alert) => format!("it refused the connection ({alert:?})"),
        other => other.to_string(),
    };
    Some(Failure::Certificate(reason))
}

#[cfg(test)]
mod tests {
    use kube::core::response::Status;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn api(code: u16) -> Failure {
        Failure::of(&Error::Api(
            Status { code, message: "words".into(), ..Status::default() }.boxed(),
        ))
    }

    #[test]
    fn every_kind_of_failure_says_who_and_what_to_do() {
        let refused =
            Error::ReadEvents(io::Error::other(io::Error::from(io::ErrorKind::ConnectionRefused)));
        let tls = |error| Failure::of(&Error::Service(Box::new(io::Error::other(error))));
        let refuses = |error| tls(rustls::Error::InvalidCertificate(error));
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for (failure, words) in [
            (Failure::of(&refused), "https://a:6443 does not answer: connection refused"),
            (
                refuses(CertificateError::ExpiredContext { time: at(2), not_after: at(1) }),
                "can be trusted: its certificate has expired; renew it",
            ),
            (
                refuses(CertificateError::NotValidYetContext { time: at(1), not_before: at(2) }),
                "not valid yet; see that this host's clock",
            ),
            (
                refuses(CertificateError::UnknownIssuer),
                "an authority that the credentials do not name",
            ),
            (
                tls(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)),
                "the client certificate in /k: it has expired; renew it",
            ),
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

    /// As a cluster's authority issues them: for clients alone, valid in 2026.
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBhjCCASugAwIBAgIUVRgYDUz5HR0OmbiNn6xzYcY7qU8wCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHc29tZW9uZTAeFw0yNjAxMDEwMDAwMDBaFw0yNzAxMDEwMDAw
MDBaMA0xCzAJBgNVBAMMAm1lMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6sRa
die0DiZTONwln+1dDPEAGuedixgBimF6lPvwMM6fZmFEKWFVrgDxPb6bnnt1Vd84
2LVCf6H0tCVxohejuaNkMGIwCwYDVR0PBAQDAgeAMBMGA1UdJQQMMAoGCCsGAQUF
BwMCMB0GA1UdDgQWBBT3MkSggnobdplw5om2UD070gjM0jAfBgNVHSMEGDAWgBQD
FaouN0vApLpgA2UWrLxr9/JxdDAKBggqhkjOPQQDAgNJADBGAiEA4eRz+4+YO1Rq
y1ms5LSdzgkP9j8RKQOMg/EJ2i5SriwCIQDVrxLcac1EDJvymoZmaAD3jB9MzwoM
X1BGvOIIe8o4Xw==
-----END CERTIFICATE-----";

    #[test]
    fn a_certificate_whose_time_is_over_or_has_not_come_is_told_from_a_valid_one() {
        let certificate =
            CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).expect("a certificate");
        let (begin, end) = (1_767_225_600, 1_798_761_600);
        let at =
            |seconds| dates(&certificate, UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!([at(begin), at(end)], [None, None]);
        assert_eq!(
            at(end + 1).as_deref(),
            Some("it expired at 2027-01-01T00:00:00Z; renew it, it is read again by itself")
        );
        assert_eq!(
            at(begin - 1).as_deref(),
            Some(
                "it is not valid before 2026-01-01T00:00:00Z; see that this host's clock is right"
            )
        );
        assert_eq!(dates(&CertificateDer::from_slice(b"no certificate"), UnixTime::now()), None);
    }
}
