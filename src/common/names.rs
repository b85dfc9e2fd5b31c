//! Names of the Kubernetes API (RFC 1123).

/// Whether this is a DNS label: 1 to 63 of a-z, 0-9 and -, neither first nor last a -. The form of
/// names of namespaces.
pub fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether this is a DNS subdomain: labels separated by dots, 253 bytes at most. The form of names
/// of Nodes.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        let long = "a".repeat(63);
        for (text, label, subdomain) in [
            ("a", true, true),
            ("0-9", true, true),
            (&*long, true, true),
            (&*format!("{long}a"), false, false),
            ("a.b", false, true),
            ("", false, false),
            ("a..b", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("A", false, false),
            ("a_b", false, false),
            (&*format!("{long}.{long}.{long}.{}", "a".repeat(61)), false, true),
            (&*format!("{long}.{long}.{long}.{}", "a".repeat(62)), false, false),
        ] {
            assert_eq!(
                (is_dns_label(text), is_dns_subdomain(text)),
                (label, subdomain),
                "{text:?}"
            );
        }
    }
}
