//! What only the kernel can tell: whether the ruleset loads, whether packet sockets open, which
//! chains there are. The first two are tried in a private network namespace of a thread, which goes
//! with the thread; the chains are listed in the host's.

use rustix::io;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::finding::Finding;
use super::host::Host;

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

const NFT_MSG_GETCHAIN: u16 = 0x0a04; // NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN
const NFT_MSG_NEWCHAIN: u16 = 0x0a03;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16; // struct nlmsghdr
const GENERIC: usize = 4; // struct nfgenmsg

/// Lists the chains of all families (a dump of NFT_MSG_GETCHAIN), without touching them.
fn list_chains() -> io::Result<Vec<ForeignChain>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    let mut request = Vec::with_capacity(HEADER + GENERIC);
    request.extend(((HEADER + GENERIC) as u32).to_ne_bytes());
    request.extend(NFT_MSG_GETCHAIN.to_ne_bytes());
    request.extend(0x301u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
    request.extend([0; 8 + GENERIC]); // sequence, port, family unspecified
    send(&socket, &request, SendFlags::empty())?;
    let mut chains = Vec::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
        let received = buffer.get(..length).unwrap_or_default();
        if parse_dump(received, &mut chains)? || length == 0 {
            return Ok(chains);
        }
    }
}

/// Reads one datagram of a dump; true: it was the last.
pub(super) fn parse_dump(mut bytes: &[u8], chains: &mut Vec<ForeignChain>) -> io::Result<bool> {
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(body) = bytes.get(HEADER..length) else { return Ok(true) };
        match u16::from_ne_bytes([t0, t1]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().map_or(0, |b: &[u8; 4]| i32::from_ne_bytes(*b));
                return if code == 0 { Ok(true) } else { Err(io::Errno::from_raw_os_error(-code)) };
            }
            NFT_MSG_NEWCHAIN => chains.extend(parse_chain(body)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn parse_chain(body: &[u8]) -> Option<ForeignChain> {
    let (generic, attributes) = body.split_first_chunk::<GENERIC>()?;
    let mut chain = ForeignChain {
        family: generic[0],
        table: String::new(),
        name: String::new(),
        drops_forwarded: false,
    };
    let (mut forward, mut policy) = (false, None);
    for (kind, value) in Attributes(attributes) {
        match kind {
            1 => chain.table = text(value),
            3 => chain.name = text(value),
            4 => {
                forward =
                    Attributes(value).any(|(kind, value)| kind == 1 && big_endian(value) == Some(2))
            } // NF_INET_FORWARD
            5 => policy = big_endian(value),
            _ => {}
        }
    }
    // Netdev chains count their hooks differently; there 2 is none of ours, and they do not filter
    // what is forwarded by routing.
    chain.drops_forwarded = forward && policy == Some(0) && matches!(chain.family, 1 | 2 | 10);
    Some(chain)
}

/// `struct nlattr` after `struct nlattr`: kind without its flags, and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_string()
}

fn big_endian(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}
