//! What a packet meets: the sets, the chains and their rules, the same for every configuration. One
//! description serves the kernel, the text and the JSON.
//!
//! ```text
//! nat prerouting ─ alive? ─ source-restricted → source-ranges ─┬─ from an uplink → from-outside: external
//!                                                              └─ then ─────────→ from-inside: services → vip-only
//! nat output ───── alive? ──────────────────→ from-inside
//! services, external → a class chain (DNAT by hash of the flow) | refuse | drop
//! vip-only: not a VIP → pass; ping → answer; else drop
//! nat postrouting ─ alive? ─ DNATed by a frontend of ours? → return-path: hairpin or remote backend → masquerade
//! ```
//!
//! Source ranges hold for whatever arrives, by any interface: pods and tunnels as well as uplinks.
//! Only the node itself is exempt (output). That is one lookup for the first packet of a
//! connection; packets of established connections never come here.
//!
//! There are only two ways to `services`: the kernel walks it once for each whenever a change
//! brings a verdict that names a chain.
//!
//! All hooks are at [`PRIORITY`]: after connection tracking (−200), ahead of kube-proxy (−110 and
//! later).

use std::fmt;

use crate::model::{Family, Protocol};

/// Priority of all our base chains. NAT chains cannot be registered at −200 or below.
pub const PRIORITY: i32 = -130;

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// The dead man's switch: one element that times out unless refreshed; without it every base
    /// chain lets packets pass untouched.
    Alive,
    /// Interfaces on which outside traffic arrives.
    Uplinks,
    /// VIPs: packets to unclaimed ports are dropped, ping is answered.
    Vips,
    /// Frontend → verdict, for everybody.
    Services,
    /// Frontend → verdict, for connections from an uplink where it differs.
    External,
    /// Frontends that accept only some sources (loadBalancerSourceRanges).
    SourceRestricted,
    /// Frontend and admitted source range.
    SourceRanges,
    /// Frontend and bucket → backend, of internal targets.
    Backends,
    /// Frontend and bucket → backend, of external targets.
    LocalBackends,
    /// Addresses of backends on this node.
    LocalEndpoints,
    /// (pod, pod) for backends on this node: a pod that reaches itself.
    Hairpin,
    /// Frontends that translate: what `return-path` is asked about.
    Frontends,
}

/// Type of one part of a set's key or data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `ether_type`
    EtherType,
    /// `ifname`
    Interface,
    /// `ipv4_addr` or `ipv6_addr`, by the table's family.
    Address,
    /// `inet_proto`
    Transport,
    /// `inet_service`
    Port,
    /// `mark`: a 32-bit number in host order. The bucket; nft 1.0.6 cannot print bare integers.
    Mark,
}

/// What a map maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// A plain set.
    None,
    /// A verdict map.
    Verdict,
    /// A concatenation.
    Parts(&'static [Type]),
}

impl SetId {
    /// Every set, in the order of creation.
    pub const ALL: [SetId; 12] = [
        SetId::Alive,
        SetId::Uplinks,
        SetId::Vips,
        SetId::Services,
        SetId::External,
        SetId::SourceRestricted,
        SetId::SourceRanges,
        SetId::Backends,
        SetId::LocalBackends,
        SetId::LocalEndpoints,
        SetId::Hairpin,
        SetId::Frontends,
    ];

    /// Name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            SetId::Alive => "alive",
            SetId::Uplinks => "uplinks",
            SetId::Vips => "vips",
            SetId::Services => "services",
            SetId::External => "external",
            SetId::SourceRestricted => "source-restricted",
            SetId::SourceRanges => "source-ranges",
            SetId::Backends => "backends",
            SetId::LocalBackends => "local-backends",
            SetId::LocalEndpoints => "local-endpoints",
            SetId::Hairpin => "hairpin",
            SetId::Frontends => "frontends",
        }
    }

    /// Parts of the key.
    pub fn key(self) -> &'static [Type] {
        use Type::*;
        match self {
            SetId::Alive => &[EtherType],
            SetId::Uplinks => &[Interface],
            SetId::Vips | SetId::LocalEndpoints => &[Address],
            SetId::Services | SetId::External | SetId::SourceRestricted | SetId::Frontends => {
                &[Address, Transport, Port]
            }
            SetId::SourceRanges => &[Address, Transport, Port, Address],
            SetId::Backends | SetId::LocalBackends => &[Address, Transport, Port, Mark],
            SetId::Hairpin => &[Address, Address],
        }
    }

    /// What it maps to.
    pub fn data(self) -> Data {
        match self {
            SetId::Services | SetId::External | SetId::SourceRestricted => Data::Verdict,
            SetId::Backends | SetId::LocalBackends => Data::Parts(&[Type::Address, Type::Port]),
            _ => Data::None,
        }
    }

    /// Keys may be ranges.
    pub fn interval(self) -> bool {
        self == SetId::SourceRanges
    }

    /// Elements may time out.
    pub fn timeout(self) -> bool {
        self == SetId::Alive
    }
}

/// Which backends a class chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Those of the internal target.
    Cluster,
    /// Those of the external target.
    Local,
}

/// How a connection chooses its bucket. All frontends of a class share one chain with one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashClass {
    /// Which map.
    pub scope: Scope,
    /// Hash the client's address alone.
    pub affinity: bool,
    /// Number of buckets, at least 1.
    pub modulus: u32,
}

/// A chain of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainId {
    /// Base chain: what arrives.
    Prerouting,
    /// Base chain: what this node sends.
    Output,
    /// Base chain: what leaves.
    Postrouting,
    /// Base chain: packets to a VIP that belong to no connection.
    Invalid,
    /// From an uplink.
    FromOutside,
    /// From pods and from the node itself.
    FromInside,
    /// No frontend matched.
    VipOnly,
    /// Source ranges of source-restricted frontends.
    SourceRanges,
    /// Nothing serves.
    Refuse,
    /// Must the reply pass here?
    ReturnPath,
    /// DNAT by hash.
    Class(HashClass),
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChainId::Prerouting => "prerouting",
            ChainId::Output => "output",
            ChainId::Postrouting => "postrouting",
            ChainId::Invalid => "invalid",
            ChainId::FromOutside => "from-outside",
            ChainId::FromInside => "from-inside",
            ChainId::VipOnly => "vip-only",
            ChainId::SourceRanges => "source-ranges",
            ChainId::Refuse => "refuse",
            ChainId::ReturnPath => "return-path",
            ChainId::Class(class) => {
                let kind = if class.affinity { "sticky" } else { "spread" };
                let scope = if class.scope == Scope::Local { "local-" } else { "" };
                return write!(f, "{kind}-{scope}{}", class.modulus);
            }
        })
    }
}

impl ChainId {
    /// The chain of a name in our table; None for foreign ones.
    pub fn parse(name: &str) -> Option<ChainId> {
        if let Some(id) =
            skeleton(Family::V4).into_iter().map(|chain| chain.id).find(|id| id.to_string() == name)
        {
            return Some(id);
        }
        let (affinity, rest) = match name.strip_prefix("sticky-") {
            Some(rest) => (true, rest),
            None => (false, name.strip_prefix("spread-")?),
        };
        let (scope, number) = match rest.strip_prefix("local-") {
            Some(number) => (Scope::Local, number),
            None => (Scope::Cluster, rest),
        };
        let modulus = number.parse().ok().filter(|&n| n > 0)?;
        Some(ChainId::Class(HashClass { scope, affinity, modulus }))
    }
}

/// Where a rule or a map element sends the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Drop without an answer.
    Drop,
    /// Back to the calling chain; in a base chain: let it pass.
    Return,
    /// Continue there and come back.
    Jump(ChainId),
    /// Continue there.
    Goto(ChainId),
}

/// Something of a packet that can be part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr`
    Source,
    /// `ip daddr`
    Destination,
    /// `meta l4proto`
    Transport,
    /// `th sport`
    SourcePort,
    /// `th dport`
    DestinationPort,
    /// `meta protocol`
    EtherType,
    /// `iifname`
    Uplink,
    /// `ct original ip daddr`: before our DNAT.
    OriginalDestination,
    /// `ct original proto-dst`: before our DNAT.
    OriginalPort,
    /// `jhash … mod …`
    Hash {
        /// What is hashed.
        over: Vec<Field>,
        /// Number of buckets.
        modulus: u32,
    },
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Continue only if the key is (or, negated, is not) in the set.
    Lookup {
        /// Its parts.
        key: Vec<Field>,
        /// A plain set.
        set: SetId,
        /// Continue when absent.
        absent: bool,
    },
    /// Take the verdict the map has for the key, if it has one.
    Dispatch {
        /// Its parts.
        key: Vec<Field>,
        /// A verdict map.
        map: SetId,
    },
    /// Translate the destination to what the map has for the key.
    Dnat {
        /// Its parts.
        key: Vec<Field>,
        /// A map to address and port.
        map: SetId,
    },
    /// Only ICMP or ICMPv6 echo requests.
    EchoRequest,
    /// Not ICMPv6 (neighbour discovery is never tracked and must not be disturbed).
    NotIcmp6,
    /// Only what connection tracking calls invalid or does not track.
    Invalid,
    /// Only connections whose destination was translated.
    Translated,
    /// Answer by the address of the interface it came in on.
    Redirect,
    /// Replace the source by the address of the interface it leaves by.
    Masquerade,
    /// Only TCP: reset.
    RejectTcp,
    /// ICMP or ICMPv6 port unreachable.
    Reject,
    /// Unconditionally.
    Verdict(Verdict),
}

/// Type and hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// `nat`, else `filter`.
    pub nat: bool,
    /// Netfilter hook.
    pub hook: Hook,
}

/// A netfilter hook (linux/netfilter.h), by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// Locally generated.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Which.
    pub id: ChainId,
    /// None: reached by jump and goto only.
    pub base: Option<Base>,
    /// Each a sequence of statements.
    pub rules: Vec<Vec<Statement>>,
}

/// The chains that are always there, in the order of creation.
pub fn skeleton(family: Family) -> Vec<Chain> {
    use Statement::{
        Dispatch, EchoRequest, Lookup, Masquerade, Redirect, Reject, RejectTcp, Translated,
    };
    let base = |id, nat, hook, rules| Chain { id, base: Some(Base { nat, hook }), rules };
    let chain = |id, rules| Chain { id, base: None, rules };
    let goto = |id| Statement::Verdict(Verdict::Goto(id));
    let jump = |id| Statement::Verdict(Verdict::Jump(id));
    let back = || Statement::Verdict(Verdict::Return);
    let drop = || Statement::Verdict(Verdict::Drop);
    let has = |key: &[Field], set| Lookup { key: key.to_vec(), set, absent: false };
    let lacks = |key: &[Field], set| Lookup { key: key.to_vec(), set, absent: true };
    let inert = || vec![lacks(&[Field::EtherType], SetId::Alive), back()];
    let frontend = || vec![Field::Destination, Field::Transport, Field::DestinationPort];

    let mut invalid = vec![Statement::Invalid];
    if family == Family::V6 {
        invalid.push(Statement::NotIcmp6);
    }
    invalid.extend([
        has(&[Field::Destination], SetId::Vips),
        has(&[Field::EtherType], SetId::Alive),
        drop(),
    ]);

    let ours = [Field::OriginalDestination, Field::Transport, Field::OriginalPort];
    let mut source = frontend();
    source.push(Field::Source);

    vec![
        base(
            ChainId::Prerouting,
            true,
            Hook::Prerouting,
            vec![
                inert(),
                vec![Dispatch { key: frontend(), map: SetId::SourceRestricted }],
                vec![has(&[Field::Uplink], SetId::Uplinks), jump(ChainId::FromOutside)],
                vec![goto(ChainId::FromInside)],
            ],
        ),
        base(ChainId::Output, true, Hook::Output, vec![inert(), vec![goto(ChainId::FromInside)]]),
        base(
            ChainId::Postrouting,
            true,
            Hook::Postrouting,
            vec![
                inert(),
                vec![Translated, has(&ours, SetId::Frontends), goto(ChainId::ReturnPath)],
            ],
        ),
        base(ChainId::Invalid, false, Hook::Prerouting, vec![invalid]),
        chain(ChainId::FromOutside, vec![vec![Dispatch { key: frontend(), map: SetId::External }]]),
        chain(
            ChainId::FromInside,
            vec![
                vec![Dispatch { key: frontend(), map: SetId::Services }],
                vec![goto(ChainId::VipOnly)],
            ],
        ),
        chain(
            ChainId::VipOnly,
            vec![
                vec![lacks(&[Field::Destination], SetId::Vips), back()],
                vec![EchoRequest, Redirect],
                vec![drop()],
            ],
        ),
        chain(
            ChainId::SourceRanges,
            vec![vec![has(&source, SetId::SourceRanges), back()], vec![drop()]],
        ),
        chain(ChainId::Refuse, vec![vec![RejectTcp], vec![Reject]]),
        chain(
            ChainId::ReturnPath,
            vec![
                vec![has(&[Field::Source, Field::Destination], SetId::Hairpin), Masquerade],
                vec![
                    has(&[Field::Uplink], SetId::Uplinks),
                    lacks(&[Field::Destination], SetId::LocalEndpoints),
                    Masquerade,
                ],
            ],
        ),
    ]
}

/// The chain of a class: one rule.
pub fn class_chain(class: HashClass) -> Chain {
    let mut over = vec![Field::Source];
    if !class.affinity {
        over.push(Field::SourcePort);
    }
    let bucket = Field::Hash { over, modulus: class.modulus };
    let key = vec![Field::Destination, Field::Transport, Field::DestinationPort, bucket];
    let map = match class.scope {
        Scope::Cluster => SetId::Backends,
        Scope::Local => SetId::LocalBackends,
    };
    let rules = vec![vec![Statement::Dnat { key, map }]];
    Chain { id: ChainId::Class(class), base: None, rules }
}

/// The IANA name of a transport as nft prints it, by its number.
pub fn transport_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}
