//! What only the kernel can tell: whether the ruleset loads, whether packet sockets open, which
//! chains there are. The first two are tried in a private network namespace of a thread, which goes
//! with the thread; the chains are listed in the host's.

use std::io;

use libc::c_int;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::finding::Finding;
use super::host::Host;
use crate::nft::io::attr::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_HOOK_HOOKNUM,
};
use crate::nft::io::netlink;

#[derive(Clone, Debug)]
pub struct Kernel {
    /// Loading the ruleset.
    pub nft: Probe,
    /// Opening an AF_PACKET socket.
    pub packet: Probe,
    /// All nf_tables chains of the host; those of `iptables-nft` are among them. Err: why they
    /// cannot be listed.
    pub chains: Result<Vec<ForeignChain>, String>,
}

/// The outcome of trying something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Works,
    /// Holds what does not work.
    Partly(String),
    /// Holds the reason.
    Fails(String),
    /// Holds the reason.
    NotTried(String),
}

/// An nf_tables chain, reduced to what decides about forwarded packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// NFPROTO_*: 1 inet, 2 ip, 10 ip6 and others.
    pub family: u8,
    pub table: String,
    pub name: String,
    /// A base chain at NF_INET_FORWARD whose policy is drop.
    pub drops_forwarded: bool,
}

impl Kernel {
    /// Tries everything. `load_ruleset` answers what the kernel lacks, if it takes the rest.
    pub fn probe(load_ruleset: fn() -> Result<Option<String>, String>) -> Kernel {
        let private = std::thread::Builder::new().name("check".to_string()).spawn(move || {
            // SAFETY: what makes this call unsafe is a private descriptor table (CLONE_FILES), in
            // which other threads' descriptors would be stale. A network namespace
            // concerns only the sockets this thread opens from here on.
            if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                let reason = format!("a private network namespace needs root: {error}");
                return (Probe::NotTried(reason.clone()), Probe::NotTried(reason));
            }
            let packet = match socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            ) {
                Ok(_) => Probe::Works,
                Err(error) => Probe::Fails(error.to_string()),
            };
            let nft = load_ruleset()
                .map_or_else(Probe::Fails, |lacking| lacking.map_or(Probe::Works, Probe::Partly));
            (nft, packet)
        });
        let outcome = private.map_err(|e| e.to_string()).and_then(|t| {
            t.join().map_err(|_| "the probing thread ended unexpectedly".to_string())
        });
        let (nft, packet) = outcome
            .unwrap_or_else(|reason| (Probe::NotTried(reason.clone()), Probe::NotTried(reason)));
        Kernel { nft, packet, chains: list_chains().map_err(|error| error.to_string()) }
    }
}

/// CAP_NET_ADMIN and CAP_NET_RAW of this process (capabilities(7)).
pub(super) fn capabilities(host: &Host) -> Vec<Finding> {
    let status = host.read("proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let Some(effective) = effective else {
        return vec![Finding::note(
            "capabilities",
            "the capabilities of this process cannot be read from /proc/self/status",
        )];
    };
    let missing: Vec<&str> = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")]
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return vec![Finding::ok("capabilities", "CAP_NET_ADMIN and CAP_NET_RAW are there")];
    }
    vec![
        Finding::error("capabilities", format!("{} missing", missing.join(" and ")))
            .why("CAP_NET_ADMIN is needed to load rules, CAP_NET_RAW to answer ARP and neighbour discovery")
            .fix("sudo pinnace check")
            .fix("under systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"),
    ]
}

pub(super) fn features(kernel: &Kernel) -> Vec<Finding> {
    let nft = match &kernel.nft {
        Probe::Works => Finding::ok("nftables", "the kernel accepts rules of every kind that are used, in IPv4 and IPv6 (tried in a private network namespace)"),
        Probe::Partly(lacking) => Finding::warning("nftables", format!("the kernel accepts the ruleset for one family only; {lacking}"))
            .why("Services are not served in the other")
            .fix("use a kernel whose nf_tables has both families"),
        Probe::Fails(reason) => Finding::error("nftables", format!("the kernel rejects the ruleset: {reason}"))
            .why("without it no packet is forwarded; needed are nf_tables with nat chains, concatenated sets with intervals, jhash, masquerade and reject")
            .fix("modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_hash nft_reject_inet nf_conntrack")
            .fix("if a module is missing, use a kernel of 5.10 or later that has it"),
        Probe::NotTried(reason) => not_tried("nftables", "the ruleset", reason),
    };
    let packet = match &kernel.packet {
        Probe::Works | Probe::Partly(_) => Finding::ok("packet-socket", "packet sockets can be opened"),
        Probe::Fails(reason) => Finding::error("packet-socket", format!("no packet socket can be opened: {reason}"))
            .why("ARP and neighbour discovery are answered through packet sockets")
            .fix("modprobe af_packet")
            .fix("under systemd: RestrictAddressFamilies= must include AF_PACKET, and CAP_NET_RAW must be granted"),
        Probe::NotTried(reason) => not_tried("packet-socket", "packet sockets", reason),
    };
    vec![nft, packet]
}

fn not_tried(check: &'static str, what: &str, reason: &str) -> Finding {
    Finding::warning(check, format!("{what} could not be tried: {reason}"))
        .why("whether this kernel can do it stays unknown")
        .fix("sudo pinnace check")
}

/// Lists the chains of all families without changing them.
fn list_chains() -> io::Result<Vec<ForeignChain>> {
    let mut chains = Vec::new();
    netlink::dump(libc::NFNL_SUBSYS_NFTABLES, libc::NFT_MSG_GETCHAIN, |family, attributes| {
        chains.push(parse_chain(family, attributes));
    })?;
    Ok(chains)
}

pub(super) fn parse_chain(family: u8, attributes: &[u8]) -> ForeignChain {
    const FORWARDING: [c_int; 3] = [libc::NFPROTO_INET, libc::NFPROTO_IPV4, libc::NFPROTO_IPV6];
    let text = |kind| {
        let value = netlink::find(attributes, kind).unwrap_or_default();
        String::from_utf8_lossy(value).trim_end_matches('\0').to_string()
    };
    let number = |value: &[u8]| netlink::be32(value).map(|number| number as c_int);
    let hook = netlink::find(attributes, NFTA_CHAIN_HOOK)
        .and_then(|hook| netlink::find(hook, NFTA_HOOK_HOOKNUM))
        .and_then(number);
    let policy = netlink::find(attributes, NFTA_CHAIN_POLICY).and_then(number);
    // Netdev chains number their hooks differently, and they do not filter routed packets.
    let drops_forwarded = hook == Some(libc::NF_INET_FORWARD)
        && policy == Some(libc::NF_DROP)
        && FORWARDING.contains(&c_int::from(family));
    ForeignChain {
        family,
        table: text(NFTA_CHAIN_TABLE),
        name: text(NFTA_CHAIN_NAME),
        drops_forwarded,
    }
}
