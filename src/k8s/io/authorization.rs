//! The header `Authorization` of each request: basic authentication, a token, or a token file that
//! is read again as it rotates. A client certificate needs none: it belongs to TLS.
//!
//! `kube` has such a layer too. It also runs the plugins that a kubeconfig may name, and so brings
//! a JSONPath interpreter along. Pinnace starts no child processes: [`super::credentials`] refuses
//! these users.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use k8s_openapi::ByteString;
use tower::BoxError;

use super::user::User;

/// How long a token that was read from a file is used. The kubelet renews a token long before it
/// expires (at 80 % of its life).
const TOKEN_MAX_AGE: Duration = Duration::from_secs(50);

/// Adds the header to requests.
#[derive(Clone, Debug)]
pub enum Authorization {
    None,
    Header(HeaderValue),
    TokenFile(Arc<TokenFile>),
}

impl Authorization {
    /// Basic authentication comes before a token, a token before a token file.
    ///
    /// # Errors
    /// A token file that cannot be read, or a token that cannot stand in a header.
    pub fn of(user: &User) -> Result<Authorization, BoxError> {
        if let (Some(name), Some(password)) = (&user.username, &user.password) {
            return basic(name, password).map(Authorization::Header);
        }
        if let Some(token) = &user.token {
            return bearer(token).map(Authorization::Header);
        }
        match &user.token_file {
            Some(path) => {
                let file = TokenFile::open(path.into(), Instant::now())?;
                Ok(Authorization::TokenFile(Arc::new(file)))
            }
            None => Ok(Authorization::None),
        }
    }

    pub fn apply<B>(&self, mut request: Request<B>) -> Request<B> {
        let header = match self {
            Authorization::None => return request,
            Authorization::Header(header) => header.clone(),
            Authorization::TokenFile(file) => file.header(Instant::now()),
        };
        request.headers_mut().insert(AUTHORIZATION, header);
        request
    }
}

/// A file with a token that is replaced from time to time.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    /// As read last, and when.
    read: Mutex<(HeaderValue, Instant)>,
}

impl TokenFile {
    fn open(path: PathBuf, now: Instant) -> Result<TokenFile, BoxError> {
        let token = fs::read_to_string(&path)
            .map_err(|error| format!("tokenFile {} cannot be read: {error}", path.display()))?;
        let header = bearer(&token)?;
        Ok(TokenFile { path, read: Mutex::new((header, now)) })
    }

    /// A file that cannot be read any more leaves the last token in use: some remove it once their
    /// process has started.
    fn header(&self, now: Instant) -> HeaderValue {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(read.1) >= TOKEN_MAX_AGE {
            let token = fs::read_to_string(&self.path).ok();
            if let Some(header) = token.and_then(|token| bearer(&token).ok()) {
                read.0 = header;
            }
            read.1 = now;
        }
        read.0.clone()
    }
}

/// RFC 6750, section 2.1.
fn bearer(token: &str) -> Result<HeaderValue, BoxError> {
    secret(&format!("Bearer {}", token.trim()))
        .map_err(|_| "the token has characters that no header can have".into())
}

/// RFC 7617, section 2.
fn basic(name: &str, password: &str) -> Result<HeaderValue, BoxError> {
    let encoded = serde_json::to_value(ByteString(format!("{name}:{password}").into_bytes()))?;
    secret(&format!("Basic {}", encoded.as_str().unwrap_or_default()))
}

/// Never shown in a log.
fn secret(text: &str) -> Result<HeaderValue, BoxError> {
    let mut value = HeaderValue::try_from(text)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
#[path = "authorization_tests.rs"]
mod tests;
