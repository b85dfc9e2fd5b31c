//! Link-layer addresses.

/// A hardware address.
pub type Mac = [u8; 6];

/// As people write it: `02:00:00:00:00:01`.
pub fn display(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether a network card can have it: neither a group address nor all zero.
pub fn is_unicast(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}
