//! Why a Service gets no address: one sentence that says what to do.

use std::fmt;
use std::net::IpAddr;

use super::reserved::Reserved;
use crate::model::mac::{Mac, display as mac_text};
use crate::model::{Family, ObjectKey, Protocol};

/// Maximum number of nodes that a message names; of more, it gives the number.
const NODES: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the sentences below say what each is")]
pub enum Refusal {
    NoPools,
    NoPoolForNamespace {
        namespace: Box<str>,
    },
    NoSuchPool {
        pool: Box<str>,
        known: Vec<Box<str>>,
    },
    PoolReserved {
        pool: Box<str>,
        namespace: Box<str>,
    },
    OutsidePools {
        address: IpAddr,
    },
    NotInPool {
        address: IpAddr,
        pool: Box<str>,
    },
    Reserved {
        address: IpAddr,
        reserved: Reserved,
    },
    InUse {
        address: IpAddr,
        mac: Mac,
    },
    Held {
        address: IpAddr,
        holder: ObjectKey,
    },
    TwoOfOneFamily {
        family: Family,
    },
    WrongFamily {
        address: IpAddr,
    },
    DualStack,
    Exhausted {
        pools: Vec<Box<str>>,
        families: Vec<Family>,
        size: u128,
        withheld: u128,
        in_use: usize,
    },
    PortTaken {
        protocol: Protocol,
        port: u16,
        holder: ObjectKey,
        family: Option<Family>,
        nodes: Vec<Box<str>>,
    },
}

impl Refusal {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NoPools => "NoPools",
            Refusal::NoPoolForNamespace { .. } => "NoPoolForNamespace",
            Refusal::NoSuchPool { .. } => "NoSuchPool",
            Refusal::PoolReserved { .. } => "PoolReserved",
            Refusal::OutsidePools { .. } => "AddressOutsidePools",
            Refusal::NotInPool { .. } => "AddressNotInPool",
            Refusal::Reserved { .. } => "AddressReserved",
            Refusal::InUse { .. } => "AddressInUse",
            Refusal::Held { .. } => "AddressHeld",
            Refusal::TwoOfOneFamily { .. } => "TwoAddressesOfOneFamily",
            Refusal::WrongFamily { .. } => "AddressOfWrongFamily",
            Refusal::DualStack => "NoDualStack",
            Refusal::Exhausted { .. } => "PoolExhausted",
            Refusal::PortTaken { .. } => "PortTaken",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoPools => {
                f.write_str("mode is vip and there is no pool; set PINNACE_POOLS, or the annotation pinnace.dev/mode: node")
            }
            Refusal::NoPoolForNamespace { namespace } => {
                write!(f, "no pool is open to namespace {namespace}; add one to PINNACE_POOLS, or ask for one by pinnace.dev/pool")
            }
            Refusal::NoSuchPool { pool, known } => write!(f, "there is no pool {pool}; there are: {}", known.join(", ")),
            Refusal::PoolReserved { pool, namespace } => write!(f, "pool {pool} is not open to namespace {namespace}"),
            Refusal::OutsidePools { address } => write!(f, "{address} is in no pool; add it to PINNACE_POOLS or ask for another"),
            Refusal::NotInPool { address, pool } => write!(f, "{address} is not in the pool {pool} that is asked for as well"),
            Refusal::Reserved { address, reserved } => write!(f, "{address} is {reserved}"),
            Refusal::InUse { address, mac } => {
                write!(f, "{address} is in use by another machine ({}); free it there or take it out of the pool", mac_text(*mac))
            }
            Refusal::Held { address, holder } => write!(
                f,
                "{address} is held by {holder}; to share it give both the same pinnace.dev/allow-shared-ip, different ports, and both policy Cluster or the same pods"
            ),
            Refusal::TwoOfOneFamily { family } => write!(f, "two {family} addresses are asked for; a Service has one of each family"),
            Refusal::WrongFamily { address } => write!(f, "{address} is not of a family in spec.ipFamilies"),
            Refusal::DualStack => f.write_str("ipFamilyPolicy is RequireDualStack and no pool has a free address of both families"),
            Refusal::Exhausted { pools, families, size, withheld, in_use } => {
                let family = families.first().map(|family| format!("{family} ")).unwrap_or_default();
                write!(f, "no free {family}address in pool {} ({size} addresses", pools.join(", "))?;
                if *withheld > 0 {
                    write!(f, ", and {withheld} that are never given out")?;
                }
                if *in_use > 0 {
                    write!(f, ", and {in_use} in use by other machines or load balancers")?;
                }
                f.write_str("); enlarge it, or delete a Service")
            }
            Refusal::PortTaken { protocol, port, holder, family, nodes } => {
                let over = family.map(|family| format!(" over {family}")).unwrap_or_default();
                let s = if nodes.len() == 1 { "" } else { "s" };
                let shown = nodes[..nodes.len().min(NODES)].join(", ");
                let more = nodes.len().saturating_sub(NODES);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                write!(
                    f,
                    "port {port}/{protocol}{over} is held by {holder} on node{s} {shown}{more}; choose another port, other nodes or mode vip"
                )
            }
        }
    }
}
