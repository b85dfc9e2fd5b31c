//! What only the kernel can tell: whether the rule set loads, whether packet sockets open, which
//! chains there are. All of it is tried in a private network namespace of a thread of our own,
//! which vanishes with the thread; only the listing of chains looks at the host.

use std::io;

use libc::c_int;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Finding, Host};
use crate::nft::io::attr::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_HOOK_HOOKNUM,
};
use crate::nft::io::netlink;

/// What the kernel said.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Loading the real rule set.
    pub nft: Tried,
    /// Opening an AF_PACKET socket.
    pub packet: Tried,
    /// All nf_tables chains of the host; those of `iptables-nft` are among them. Err: why they
    /// cannot be listed.
    pub chains: Result<Vec<Chain>, String>,
}

/// The outcome of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It works.
    Works,
    /// It works, except for this.
    Partly(String),
    /// It does not, for this reason.
    Fails(String),
    /// It could not be tried, for this reason.
    NotTried(String),
}

/// An nf_tables chain, reduced to what decides about forwarded packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// NFPROTO_*: 1 inet, 2 ip, 10 ip6 and others.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// A base chain at NF_INET_FORWARD whose policy is drop.
    pub drops_forwarded: bool,
}

impl Kernel {
    /// Tries everything.
    pub fn probe(trial: fn() -> Result<Option<String>, String>) -> Kernel {
        let private = std::thread::Builder::new().name("check".to_string()).spawn(move || {
            // SAFETY: what makes this call unsafe is a private descriptor table (CLONE_FILES), in
            // which other threads' descriptors would be stale. A network namespace
            // concerns only the sockets this thread opens from here on.
            if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                let reason = format!("a private network namespace needs root: {error}");
                return (Tried::NotTried(reason.clone()), Tried::NotTried(reason));
            }
            let packet = match socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            ) {
                Ok(_) => Tried::Works,
                Err(error) => Tried::Fails(error.to_string()),
            };
            let nft = trial()
                .map_or_else(Tried::Fails, |lacking| lacking.map_or(Tried::Works, Tried::Partly));
            (nft, packet)
        });
        let outcome = private
            .map_err(|e| e.to_string())
            .and_then(|t| t.join().map_err(|_| "the trial ended unexpectedly".to_string()));
        let (nft, packet) = outcome
            .unwrap_or_else(|reason| (Tried::NotTried(reason.clone()), Tried::NotTried(reason)));
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
        Tried::Works => Finding::ok("nftables", "the kernel accepts rules of every kind that are used, in IPv4 and IPv6 (tried in a private network namespace)"),
        Tried::Partly(lacking) => Finding::warning("nftables", format!("the kernel accepts the rule set for one family only; {lacking}"))
            .why("Services are not served in the other")
            .fix("use a kernel whose nf_tables has both families"),
        Tried::Fails(reason) => Finding::error("nftables", format!("the kernel refuses the rule set: {reason}"))
            .why("without it no packet is forwarded; needed are nf_tables with nat chains, concatenated sets with intervals, jhash, masquerade and reject")
            .fix("modprobe -a nf_tables nft_chain_nat nft_nat nft_masq nft_hash nft_reject_inet nf_conntrack")
            .fix("if a module is missing, use a kernel of 5.10 or later that has it"),
        Tried::NotTried(reason) => not_tried("nftables", "the rule set", reason),
    };
    let packet = match &kernel.packet {
        Tried::Works | Tried::Partly(_) => Finding::ok("packet-socket", "packet sockets can be opened"),
        Tried::Fails(reason) => Finding::error("packet-socket", format!("no packet socket can be opened: {reason}"))
            .why("ARP and neighbour discovery are answered through packet sockets")
            .fix("modprobe af_packet")
            .fix("under systemd: RestrictAddressFamilies= must include AF_PACKET, and CAP_NET_RAW must be granted"),
        Tried::NotTried(reason) => not_tried("packet-socket", "packet sockets", reason),
    };
    vec![nft, packet]
}

fn not_tried(check: &'static str, what: &str, reason: &str) -> Finding {
    Finding::warning(check, format!("{what} could not be tried: {reason}"))
        .why("whether this kernel can do it stays unknown")
        .fix("sudo pinnace check")
}

/// Lists the chains of all families without changing them.
fn list_chains() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    netlink::dump(libc::NFNL_SUBSYS_NFTABLES, libc::NFT_MSG_GETCHAIN, |family, attributes| {
        chains.push(parse_chain(family, attributes));
    })?;
    Ok(chains)
}

pub(super) fn parse_chain(family: u8, attributes: &[u8]) -> Chain {
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
    Chain { family, table: text(NFTA_CHAIN_TABLE), name: text(NFTA_CHAIN_NAME), drops_forwarded }
}
