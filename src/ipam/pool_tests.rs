use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("test address")
}

#[test]
fn ranges_are_understood() {
    for (text, first, last, len) in [
        ("192.168.1.200", "192.168.1.200", "192.168.1.200", 1),
        ("192.168.1.200-192.168.1.220", "192.168.1.200", "192.168.1.220", 21),
        (" 192.168.1.200 - 192.168.1.220 ", "192.168.1.200", "192.168.1.220", 21),
        ("192.168.1.0/24", "192.168.1.0", "192.168.1.255", 256),
        ("192.168.1.7/32", "192.168.1.7", "192.168.1.7", 1),
        ("10.0.0.0/8", "10.0.0.0", "10.255.255.255", 1 << 24),
        ("fd00:1::/120", "fd00:1::", "fd00:1::ff", 256),
        ("fd00:1::10-fd00:1::1f", "fd00:1::10", "fd00:1::1f", 16),
        ("2000::/3", "2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1 << 125),
    ] {
        let range: AddressRange = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(
            (range.first(), range.last(), range.len()),
            (ip(first), ip(last), len),
            "{text}"
        );
    }
}

#[test]
fn bad_ranges_say_what_would_be_right() {
    for (text, expected) in [
        ("garbage", "\"garbage\" is not an IP address"),
        ("192.168.1.300", "\"192.168.1.300\" is not an IP address"),
        ("192.168.1.200-220", "\"220\" is not an IP address"),
        ("192.168.1.220-192.168.1.200", "ends before it starts; write 192.168.1.200-192.168.1.220"),
        ("192.168.1.1-fd00::1", "mixes IPv4 and IPv6"),
        (
            "192.168.1.1/24",
            "write 192.168.1.0/24 for the whole network, or 192.168.1.1 for the single address",
        ),
        ("fd00::1/64", "write fd00::/64 for the whole network"),
        ("192.168.1.0/33", "must be a number from 0 to 32"),
        ("192.168.1.0/+24", "must be a number from 0 to 32"),
        ("192.168.1.0/", "must be a number from 0 to 32"),
        ("fd00::/129", "must be a number from 0 to 128"),
        ("0.0.0.0/0", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("126.0.0.0-128.0.0.0", "loopback"),
        ("169.254.1.0/24", "link-local"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::/0", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:192.168.1.1", "IPv4-mapped"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("ff02::1", "multicast"),
    ] {
        let error = text.parse::<AddressRange>().expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// `name!{namespaces}=ranges` of each pool, to compare whole results in one line.
fn shown(pools: &[Pool]) -> String {
    let one = |p: &Pool| {
        let ranges: Vec<String> = p.ranges.iter().map(AddressRange::to_string).collect();
        format!(
            "{}{}{{{}}}={}",
            p.name,
            if p.on_request { "!" } else { "" },
            p.namespaces.join(","),
            ranges.join(",")
        )
    };
    pools.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn pools_are_understood() {
    for (text, expected) in [
        ("", ""),
        (" ; ", ""),
        ("10.0.0.1", "default{}=10.0.0.1"),
        ("10.0.0.1-10.0.0.9,fd00:1::/127", "default{}=10.0.0.1-10.0.0.9,fd00:1::-fd00:1::1"),
        ("10.0.0.1,\n 10.0.0.3,", "default{}=10.0.0.1,10.0.0.3"),
        ("lan=10.0.0.1;dmz=10.0.1.1", "lan{}=10.0.0.1 dmz{}=10.0.1.1"),
        ("lan = 10.0.0.1 ;\n dmz = 10.0.1.1 ;", "lan{}=10.0.0.1 dmz{}=10.0.1.1"),
        ("dmz[web,mail]=10.0.1.1", "dmz{mail,web}=10.0.1.1"),
        ("dmz [ web , web ] = 10.0.1.1", "dmz{web}=10.0.1.1"),
        ("dmz!=10.0.1.1", "dmz!{}=10.0.1.1"),
        ("dmz![web]=10.0.1.1", "dmz!{web}=10.0.1.1"),
        ("dmz ! [web]=10.0.1.1", "dmz!{web}=10.0.1.1"),
    ] {
        assert_eq!(
            shown(&parse_pools(text).unwrap_or_else(|e| panic!("{text}: {e:?}"))),
            expected,
            "{text}"
        );
    }
}

#[test]
fn bad_pools_say_what_would_be_right() {
    for (text, expected) in [
        ("lan=", &["pool lan has no addresses"][..]),
        ("lan=,", &["pool lan has no addresses"]),
        ("lan=10.0.0.1;10.0.0.2", &["\"10.0.0.2\" has no pool name"]),
        ("=10.0.0.1", &["\"\" is not a pool name"]),
        ("Lan=10.0.0.1", &["\"Lan\" is not a pool name"]),
        ("-lan=10.0.0.1", &["is not a pool name"]),
        ("dmz[a=10.0.0.1", &["not closed"]),
        ("dmz[]=10.0.0.1", &["pool dmz: \"\" is not a namespace"]),
        ("dmz[A]=10.0.0.1", &["pool dmz: \"A\" is not a namespace"]),
        ("a=10.0.0.1;a=10.0.0.2", &["pool a is defined twice"]),
        (
            "a=10.0.0.1-10.0.0.9;b=10.0.0.9",
            &["10.0.0.1-10.0.0.9 of pool a and 10.0.0.9 of pool b overlap"],
        ),
        (
            "10.0.0.0/24,10.0.0.7",
            &["10.0.0.0-10.0.0.255 of pool default and 10.0.0.7 of pool default overlap"],
        ),
        // Inside a large range, behind a small one: compared with the one that reaches furthest.
        (
            "10.0.0.0/24,10.0.0.7,10.0.0.200",
            &["10.0.0.7 of pool default overlap", "10.0.0.200 of pool default overlap"],
        ),
        (
            "a=10.0.0.1;b=junk,10.0.0.5-10.0.0.4;c=10.0.0.1",
            &["pool b: \"junk\"", "pool b: the range 10.0.0.5-10.0.0.4", "pool c overlap"],
        ),
    ] {
        let errors: Vec<String> =
            parse_pools(text).expect_err(text).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{text}: {errors:?}");
        for (error, part) in errors.iter().zip(expected) {
            assert!(error.contains(part), "{text}: {error} should contain {part}");
        }
    }
}

#[test]
fn a_pool_answers_for_its_addresses_and_namespaces() {
    let pools = parse_pools("dmz[web]=10.0.0.254-10.0.1.1,fd00::/64").expect("valid");
    let dmz = &pools[0];
    assert!(dmz.contains(ip("10.0.0.255")) && dmz.contains(ip("fd00::1")));
    assert!(!dmz.contains(ip("10.0.1.2")) && !dmz.contains(ip("fd00:0:0:1::")));
    assert!(dmz.admits("web") && !dmz.admits("default"));
    let v4: Vec<String> = dmz.addresses(Family::V4, 0).map(|a| a.to_string()).collect();
    assert_eq!(v4, ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]);
    assert_eq!(
        dmz.addresses(Family::V6, 2).next(),
        Some(ip("fd00::2")),
        "a /64 is walked, not stored"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z0-9.:;,=!\\[\\]/ -]{0,60}") {
        let _ = parse_pools(&text);
    }

    #[test]
    fn what_is_shown_is_understood_again(a in any::<u32>(), b in any::<u32>()) {
        if let Ok(range) = AddressRange::new(Ipv4Addr::from_bits(a).into(), Ipv4Addr::from_bits(b).into()) {
            prop_assert_eq!(range.to_string().parse::<AddressRange>(), Ok(range));
            prop_assert!(range.contains(range.first()) && range.contains(range.last()));
        }
    }

    #[test]
    fn a_cidr_has_the_size_its_prefix_says(base in any::<u128>(), prefix in 8u32..=128) {
        let network = base & (u128::MAX << (128 - prefix));
        if let Ok(range) = format!("{}/{prefix}", Ipv6Addr::from_bits(network)).parse::<AddressRange>() {
            prop_assert_eq!(range.len(), 1u128 << (128 - prefix));
        }
    }
}
