use serde_json::{Value, json};

use super::*;

/// P-256, self-signed: `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256`.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUJ4Mt593YU04VEXyABvpydZ5dnX8wCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHcGlubmFjZTAgFw0yNjEyMDEwMjU3MTFaGA8yMTI2MTEwNzAy
NTcxMVowEjEQMA4GA1UEAwwHcGlubmFjZTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABGKr1t4+oCOER7+B6e+3p5JaeOWDSZjpIViFtP36g3orjN6OPXIEBaD68Inh
d7SWWfB7p0YETZbEYSp4jlU17FajUzBRMB0GA1UdDgQWBBQRYB+Zs3QQ+Vp6DQ7N
12Ar0ZZ4CDAfBgNVHSMEGDAWgBQRYB+Zs3QQ+Vp6DQ7N12Ar0ZZ4CDAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIH7/hjKys2O1UHQ7RR8PIjVklX8Q
4lNfYjw9yYU07z7sAiEAxlLSgASXUoT/mpsyZrltSG8efiZ2d4IbWReGPoOVlVg=
-----END CERTIFICATE-----";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIh7pJZY8PSSFLDfW
riMikLJQODqyaiOG91iz9jO4gpShRANCAARiq9bePqAjhEe/genvt6eSWnjlg0mY
6SFYhbT9+oN6K4zejj1yBAWg+vCJ4Xe0llnwe6dGBE2WxGEqeI5VNexW
-----END PRIVATE KEY-----";

fn user(values: Value) -> Result<User, BoxError> {
    User::of(&serde_json::from_value(values).expect("a user of a kubeconfig"))
}

fn base64(text: &str) -> Value {
    serde_json::to_value(ByteString(text.into())).unwrap()
}

#[test]
fn secrets_are_read_from_the_kubeconfig() {
    let user = user(json!({"username": "me", "password": "p", "token": "t", "tokenFile": "/f"}));
    let user = user.unwrap();
    assert_eq!(
        [&user.username, &user.password, &user.token, &user.token_file].map(Option::as_deref),
        [Some("me"), Some("p"), Some("t"), Some("/f")]
    );
    assert!(user.identity().unwrap().is_none());
}

#[test]
fn a_client_certificate_comes_from_data_or_from_files() {
    let path = |name: &str| {
        let path = std::env::temp_dir().join(format!("pinnace-user-{name}-{}", std::process::id()));
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (path("certificate"), path("key"));
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    std::fs::write(&key, format!("{KEY}\n{CERTIFICATE}")).unwrap();
    let files = json!({"client-certificate": certificate, "client-key": key});
    let data = json!({"client-certificate-data": base64(CERTIFICATE),
        "client-key-data": base64(KEY), "client-key": "/nowhere"});
    for values in [files.clone(), data] {
        let (chain, key) = user(values).unwrap().identity().unwrap().expect("an identity");
        assert_eq!(chain.len(), 1);
        rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_client_auth_cert(chain, key)
            .expect("the key belongs to the certificate");
    }
    std::fs::remove_file(certificate).unwrap();
    std::fs::remove_file(key).unwrap();
    let error = user(files).unwrap().identity().unwrap_err().to_string();
    assert!(error.contains("client-certificate") && error.contains("cannot be read"), "{error}");
}

#[test]
fn what_is_wrong_with_a_client_certificate_is_said() {
    for (values, words) in [
        (json!({"client-certificate-data": base64(CERTIFICATE)}), "no client-key"),
        (json!({"client-key-data": base64(KEY)}), "no client-certificate"),
        (
            json!({"client-certificate-data": base64("x"), "client-key-data": base64(KEY)}),
            "no certificate in it",
        ),
        (
            json!({"client-certificate-data": base64(CERTIFICATE), "client-key-data": base64("x")}),
            "client-key: ",
        ),
    ] {
        let error = user(values).unwrap().identity().unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let error = user(json!({"client-certificate-data": "?"})).err().expect("an error");
    assert!(error.to_string().contains("the user's data"), "{error}");
}
