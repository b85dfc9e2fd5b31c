use proptest::prelude::*;

use super::*;

fn plain() -> Repr {
    Repr {
        diagnostic: Diagnostic::None,
        state: SessionState::Up,
        poll: false,
        finished: false,
        control_plane_independent: false,
        demand: false,
        detect_multiplier: 3,
        my_discriminator: 0x0102_0304,
        your_discriminator: 0x0506_0708,
        desired_min_tx: 50_000,
        required_min_rx: 60_000,
        required_min_echo_rx: 0,
        authentication: None,
    }
}

fn authenticated() -> Repr {
    let kind = AuthenticationType::MeticulousKeyedSha1;
    Repr {
        authentication: Some(Authentication {
            kind,
            key_id: 7,
            sequence: 0xdead_beef,
            digest: [0; 20],
        }),
        ..plain()
    }
}

fn any_repr() -> impl Strategy<Value = Repr> {
    let section = (any::<bool>(), any::<u8>(), any::<u32>(), any::<[u8; 20]>()).prop_map(
        |(meticulous, key_id, sequence, digest)| {
            let kind = if meticulous {
                AuthenticationType::MeticulousKeyedSha1
            } else {
                AuthenticationType::KeyedSha1
            };
            Authentication { kind, key_id, sequence, digest }
        },
    );
    (
        0u8..128,
        any::<[bool; 4]>(),
        1u8..,
        [1u32.., 1u32..],
        any::<[u32; 3]>(),
        prop::option::of(section),
    )
        .prop_map(
            |(
                bits,
                [poll, finished, control_plane_independent, demand],
                detect_multiplier,
                [my, your],
                intervals,
                authentication,
            )| Repr {
                diagnostic: Diagnostic::from_bits(bits),
                state: SessionState::from_bits(bits >> 5),
                poll,
                finished,
                control_plane_independent,
                demand,
                detect_multiplier,
                my_discriminator: my,
                your_discriminator: your,
                desired_min_tx: intervals[0],
                required_min_rx: intervals[1],
                required_min_echo_rx: intervals[2],
                authentication,
            },
        )
}

proptest! {
    #[test]
    fn round_trip(repr in any_repr(), padding in 0usize..20) {
        let mut payload = repr.to_vec();
        prop_assert_eq!(payload.len(), repr.len());
        payload.resize(repr.len() + padding, 0xee);
        prop_assert_eq!(Repr::parse(&payload), Ok(repr));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Repr::parse(&bytes);
        let _ = is_signed(&bytes, &Key::new(b"k").unwrap());
    }

    #[test]
    fn a_damaged_packet_never_panics(at in 0..MAX_LEN, value: u8, len in 0..=MAX_LEN) {
        let mut packet = authenticated().to_vec();
        packet[at] = value;
        packet.truncate(len);
        let _ = Repr::parse(&packet);
        let _ = is_signed(&packet, &Key::new(b"k").unwrap());
    }

    /// §6.7.4: the digest covers every byte up to `Length`.
    #[test]
    fn one_flipped_bit_breaks_the_digest(at in 0..MAX_LEN, bit in 0u8..8) {
        let key = Key::new(b"a secret").unwrap();
        let mut packet = authenticated().to_vec();
        sign(&mut packet, &key);
        prop_assert!(is_signed(&packet, &key));
        packet[at] ^= 1 << bit;
        prop_assert!(!is_signed(&packet, &key));
    }
}

/// RFC 5880 §6.8.6, rule by rule in its order.
#[test]
fn every_reception_rule_about_the_form_has_its_error() {
    let good = authenticated().to_vec();
    let with = |changes: &[(usize, u8)]| {
        let mut packet = good.clone();
        for &(at, value) in changes {
            packet[at] = value;
        }
        Repr::parse(&packet)
    };
    assert_eq!(with(&[]), Ok(authenticated()));
    for len in 0..HEADER_LEN {
        assert_eq!(Repr::parse(&good[..len]), Err(ParseError::Truncated(len)));
    }
    assert_eq!(with(&[(0, 0x00)]), Err(ParseError::Version(0)));
    assert_eq!(with(&[(0, 0x40)]), Err(ParseError::Version(2)));
    assert_eq!(with(&[(1, 0xc0), (3, 23)]), Err(ParseError::Length(23)));
    assert_eq!(with(&[(3, 25)]), Err(ParseError::Length(25)));
    assert_eq!(with(&[(3, 53)]), Err(ParseError::BeyondPayload { length: 53, have: 52 }));
    assert_eq!(with(&[(2, 0)]), Err(ParseError::DetectMultiplier));
    assert_eq!(with(&[(1, 0xc5)]), Err(ParseError::Multipoint));
    assert_eq!(with(&[(4, 0), (5, 0), (6, 0), (7, 0)]), Err(ParseError::MyDiscriminator));
    let unknown_us = [(8, 0), (9, 0), (10, 0), (11, 0)];
    assert_eq!(with(&unknown_us), Err(ParseError::YourDiscriminator(SessionState::Up)));
    for (bits, state) in [(0x04, SessionState::AdminDown), (0x44, SessionState::Down)] {
        let packet = with(&[&unknown_us[..], &[(1, bits)]].concat())
            .expect("the discriminator may be unknown then");
        assert_eq!((packet.state, packet.your_discriminator), (state, 0));
    }
    assert_eq!(
        with(&[&unknown_us[..], &[(1, 0x84)]].concat()),
        Err(ParseError::YourDiscriminator(SessionState::Init))
    );
    assert!(
        with(&[(1, 0xf4)]).is_ok_and(|packet| packet.poll && packet.finished),
        "no reason to discard"
    );
    for kind in [0, 1, 2, 3, 6] {
        assert_eq!(with(&[(24, kind)]), Err(ParseError::AuthenticationType(kind)));
    }
    assert_eq!(with(&[(25, 24)]), Err(ParseError::AuthenticationLength(24)));
    assert_eq!(
        with(&[(3, 40)]),
        Err(ParseError::AuthenticationLength(28)),
        "the section reaches beyond the packet"
    );
}

/// RFC 5880 §4.1: the bytes of the figure.
#[test]
fn the_figure_as_bytes() {
    let repr = Repr {
        diagnostic: Diagnostic::ControlDetectionTimeExpired,
        poll: true,
        control_plane_independent: true,
        ..plain()
    };
    let hex: String = repr.to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "21e80318010203040506070800 00c3500000ea6000000000".replace(' ', ""));
}

/// RFC 5880 §6.7.4: the key, padded with zeros to 20 bytes, stands in the place of the digest while
/// it is computed. The digest was computed with `sha1sum` over the packet of these bytes.
#[test]
fn the_digest_is_that_of_another_implementation() {
    let mut packet = authenticated().to_vec();
    sign(&mut packet, &Key::new(b"pinnace").unwrap());
    let hex: String = packet[DIGEST..].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "74d0306ecc6120b43a64446de236e70048807998");
    assert!(is_signed(&packet, &Key::new(b"pinnace\0").unwrap()), "padding is zeros");
    assert!(!is_signed(&packet, &Key::new(b"pinnacf").unwrap()));
    assert!(!is_signed(&plain().to_vec(), &Key::new(b"pinnace").unwrap()), "no section, no digest");
}

#[test]
fn a_key_is_not_shown() {
    assert_eq!(format!("{:?}", Key::new(b"pinnace")), "Some(Key(…))");
    assert_eq!(Key::new(b""), None);
    assert_eq!(Key::new(&[1; 20]), Key::new(&[1; 64]));
}
