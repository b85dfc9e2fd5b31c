//! The user of the kubeconfig in plain values.

use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tower::BoxError;

/// What the user authenticates with. [`AuthInfo`] keeps secrets in a type of a crate that is not a
/// dependency of this one; its serialised form shows them.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct User {
    pub username: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    #[serde(rename = "tokenFile")]
    pub token_file: Option<String>,
    pub client_certificate: Option<String>,
    pub client_certificate_data: Option<ByteString>,
    pub client_key: Option<String>,
    pub client_key_data: Option<ByteString>,
}

/// Client certificate with its chain, and the key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl User {
    /// # Errors
    /// Values that are not Base64 where they must be.
    pub fn of(user: &AuthInfo) -> Result<User, BoxError> {
        let values = serde_json::to_value(user)?;
        serde_json::from_value(values).map_err(|error| format!("the user's data: {error}").into())
    }

    /// The client certificate; None when the user has none.
    ///
    /// # Errors
    /// A file that cannot be read, text that is not PEM, a certificate without a key.
    pub fn identity(&self) -> Result<Option<Identity>, BoxError> {
        let certificate =
            pem("client-certificate", &self.client_certificate_data, &self.client_certificate)?;
        let key = pem("client-key", &self.client_key_data, &self.client_key)?;
        let (certificate, key) = match (certificate, key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => {
                return Err("the user has a client-certificate, no client-key".into());
            }
            (None, Some(_)) => {
                return Err("the user has a client-key, no client-certificate".into());
            }
        };

        let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("client-certificate: {error}"))?;
        if chain.is_empty() {
            return Err("client-certificate: no certificate in it".into());
        }
        let key =
            PrivateKeyDer::from_pem_slice(&key).map_err(|error| format!("client-key: {error}"))?;
        Ok(Some((chain, key)))
    }
}

/// Data in the kubeconfig comes before the file that it names.
fn pem(
    name: &str,
    data: &Option<ByteString>,
    file: &Option<String>,
) -> Result<Option<Vec<u8>>, BoxError> {
    match (data, file) {
        (Some(data), _) => Ok(Some(data.0.clone())),
        (None, Some(path)) => std::fs::read(path)
            .map(Some)
            .map_err(|error| format!("{name} {path} cannot be read: {error}").into()),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
