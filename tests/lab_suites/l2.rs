//! The announcer and the interface watch against real kernels: network namespaces for a node and a
//! client on a bridge that snoops MLD. Needs root. What is asserted is what the client's kernel
//! believes.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pinnace::host::links;
use pinnace::l2::announcer::{Announcement, AnnouncerConfig, AnnouncerEvent};
use pinnace::l2::io::{Desired, L2Counters, task};
use pinnace::model::{Interface, Interfaces};
use tokio::sync::{mpsc, watch};

use crate::lab::patient;

const V4: &str = "192.0.2.10";
const V6: &str = "fd00:1::10";
const FREE: [&str; 2] = ["192.0.2.99", "fd00:1::99"];
const PATIENCE: Duration = Duration::from_secs(10);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn run(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(
        output.status.success(),
        "{line}: {} (root is needed)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `what` on a thread inside a namespace.
fn inside<T: Send + 'static>(
    namespace: &str,
    what: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    thread::spawn(move || {
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .unwrap();
        what()
    })
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    crate::lab::eventually(what, PATIENCE, || attempt().ok_or_else(|| "not yet".to_owned()))
}

/// Namespaces `lan` (a bridge), `node` and `client`.
struct Lab {
    prefix: String,
}

impl Lab {
    fn new() -> Lab {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let lab = Lab {
            prefix: format!("pnl2-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        for name in ["lan", "node", "client"] {
            run(&format!("ip netns add {}", lab.namespace(name)));
        }
        lab.ip("lan", "link add br0 type bridge mcast_snooping 1 mcast_querier 1");
        lab.ip("lan", "link set br0 up");
        lab.plug("client", "eth0");
        lab.plug("node", "eth0");
        for (name, host) in [("client", 1), ("node", 2)] {
            lab.ip(name, &format!("addr add 192.0.2.{host}/24 dev eth0"));
            lab.ip(name, &format!("addr add fd00:1::{host}/64 dev eth0 nodad"));
        }
        lab
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, name: &str, command: &str) -> String {
        run(&format!("ip -n {} {command}", self.namespace(name)))
    }

    /// A cable from `name` to the bridge.
    fn plug(&self, name: &str, interface: &str) {
        let port = format!("{name}-{interface}");
        self.ip(
            "lan",
            &format!(
                "link add {port} type veth peer name {interface} netns {}",
                self.namespace(name)
            ),
        );
        self.ip("lan", &format!("link set {port} master br0 up"));
        self.ip(name, &format!("link set {interface} up"));
    }

    fn mac(&self, name: &str, interface: &str) -> String {
        let listing = self.ip(name, &format!("-o link show {interface}"));
        listing
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .unwrap()
            .to_owned()
    }

    /// The MAC that the client's kernel has for an address, without asking for it.
    fn neighbour(&self, address: &str) -> Option<String> {
        let listing = self.ip("client", &format!("neigh show {address} dev eth0"));
        listing.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(str::to_owned)
    }

    /// Makes the client's kernel resolve an address anew; the MAC, or None after a second of
    /// silence.
    fn resolve(&self, address: &str) -> Option<String> {
        let _ = Command::new("ip")
            .args(["-n", &self.namespace("client"), "neigh", "del", address, "dev", "eth0"])
            .output();
        let target = ip(address);
        inside(&self.namespace("client"), move || {
            let local = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(local).unwrap().send_to(b"?", (target, 9)).unwrap();
        })
        .join()
        .unwrap();
        let start = Instant::now();
        while start.elapsed() < patient(Duration::from_secs(1)) {
            if let Some(mac) = self.neighbour(address) {
                return Some(mac);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in ["lan", "node", "client"] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(name)]).output();
        }
    }
}

/// VIPs and the names of the interfaces they are wanted on.
#[derive(Clone, Default)]
struct Wish {
    vips: Vec<IpAddr>,
    interfaces: Vec<&'static str>,
    probe: bool,
}

fn wish(interfaces: &[&'static str], probe: bool) -> Wish {
    Wish { vips: vec![ip(V4), ip(V6)], interfaces: interfaces.to_vec(), probe }
}

/// Pinnace's layer 2 in the node's namespace, with a stand-in for the engine.
struct Node {
    wish: watch::Sender<Wish>,
    events: mpsc::Receiver<AnnouncerEvent>,
    interfaces: watch::Receiver<Interfaces>,
    counters: Arc<L2Counters>,
}

impl Node {
    fn start(lab: &Lab, first: Wish) -> Node {
        let (wish, mut wishes) = watch::channel(first);
        let (events_in, events) = mpsc::channel(64);
        let (snapshots, interfaces) = watch::channel(Interfaces::new());
        let counters = Arc::new(L2Counters::default());
        let (mut seen, totals) = (interfaces.clone(), Arc::clone(&counters));
        inside(&lab.namespace("node"), move || {
            let config = AnnouncerConfig {
                probe_time: Duration::from_millis(300),
                announce_interval: Duration::from_secs(60),
            };
            let (desired_in, desired) = watch::channel(Desired::default());
            let announcer =
                task::spawn(desired, events_in, config, totals, Default::default()).unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let watching = tokio::spawn(links::run(snapshots));
                seen.changed().await.unwrap();
                loop {
                    desired_in.send_replace(desire(
                        &wishes.borrow_and_update(),
                        &seen.borrow_and_update(),
                    ));
                    tokio::select! {
                        changed = wishes.changed() => if changed.is_err() { break },
                        changed = seen.changed() => changed.expect("links::run ended"),
                    }
                }
                watching.abort();
            });
            announcer.join().unwrap();
        });
        Node { wish, events, interfaces, counters }
    }

    fn event(&mut self, what: &str) -> AnnouncerEvent {
        eventually(what, || self.events.try_recv().ok())
    }

    /// Two events, one per family, in any order.
    fn both(&mut self, what: &str) -> Vec<AnnouncerEvent> {
        let mut events = vec![self.event(what), self.event(what)];
        events.sort_by_key(|event| format!("{event:?}").contains(V6));
        events
    }
}

fn desire(wish: &Wish, interfaces: &Interfaces) -> Desired {
    let on = interfaces
        .values()
        .filter(|interface| wish.interfaces.contains(&&*interface.name))
        .map(|interface| interface.index);
    let announcement = Announcement {
        interfaces: Arc::new(on.collect()),
        probe: wish.probe,
        standby: false,
        quiet: false,
    };
    let announcements: BTreeMap<IpAddr, Announcement> =
        wish.vips.iter().map(|vip| (*vip, announcement.clone())).collect();
    Desired {
        announcements: Arc::new(announcements),
        interfaces: Arc::new(interfaces.clone()),
        ..Desired::default()
    }
}

fn bytes(mac: &str) -> [u8; 6] {
    let parts: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    parts.try_into().unwrap()
}

/// The interface index of the node's eth0 as the snapshot has it.
fn eth0(node: &Node) -> u32 {
    node.interfaces.borrow().values().find(|interface| &*interface.name == "eth0").unwrap().index
}

#[test]
fn a_client_resolves_vips_and_nothing_else_until_they_are_withdrawn() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    for vip in [V4, V6] {
        assert_eq!(lab.resolve(vip), None, "{vip} before anything runs");
    }
    let node = Node::start(&lab, wish(&["eth0"], false));
    eventually("the first announcements", || (node.counters.totals().sent >= 3).then_some(()));
    for vip in [V4, V6] {
        assert_eq!(lab.resolve(vip).as_ref(), Some(&mac), "{vip}");
    }
    let before = node.counters.totals();
    for address in FREE {
        assert_eq!(lab.resolve(address), None, "{address} is nobody's");
    }
    let after = node.counters.totals();
    assert_eq!(
        after.announcer.received, before.announcer.received,
        "questions about others do not wake us"
    );
    assert_eq!(
        (after.announcer.malformed, after.send_failed, after.receive_failed, after.join_failed),
        (0, 0, 0, 0)
    );

    node.wish.send_replace(Wish::default());
    thread::sleep(Duration::from_millis(100));
    for vip in [V4, V6] {
        assert_eq!(lab.resolve(vip), None, "{vip} withdrawn");
    }
}

#[test]
fn a_free_address_is_claimed_after_probing() {
    let lab = Lab::new();
    let mut node = Node::start(&lab, wish(&["eth0"], true));
    let clear = [V4, V6].map(|vip| AnnouncerEvent::ProbeClear { vip: ip(vip) });
    assert_eq!(node.both("probing ends"), clear);
    assert_eq!(node.counters.totals().announcer.probes_sent, 6);
    for vip in [V4, V6] {
        assert_eq!(lab.resolve(vip), Some(lab.mac("node", "eth0")), "{vip}");
    }
}

#[test]
fn an_address_that_another_kernel_has_is_refused_with_its_mac() {
    let lab = Lab::new();
    lab.ip("client", &format!("addr add {V4}/24 dev eth0"));
    lab.ip("client", &format!("addr add {V6}/64 dev eth0 nodad"));
    let mut node = Node::start(&lab, wish(&["eth0"], true));
    let found = node.both("the holder answers");
    let (ifindex, mac) = (eth0(&node), bytes(&lab.mac("client", "eth0")));
    assert_eq!(found, [V4, V6].map(|vip| AnnouncerEvent::Conflict { vip: ip(vip), ifindex, mac }));
    thread::sleep(Duration::from_millis(500));
    assert_eq!(node.counters.totals().announcer.announcements_sent, 0);
}

#[test]
fn the_duplicate_address_detection_of_another_kernel_fails() {
    let lab = Lab::new();
    let mut node = Node::start(&lab, Wish { vips: vec![ip(V6)], ..wish(&["eth0"], false) });
    // An announcement would end the detection as well, before it has asked.
    eventually("the end of the burst", || (node.counters.totals().sent >= 7).then_some(()));
    lab.ip("client", &format!("addr add {V6}/64 dev eth0"));
    let mac = bytes(&lab.mac("client", "eth0"));
    let defended = AnnouncerEvent::Defended { vip: ip(V6), ifindex: eth0(&node), mac };
    assert_eq!(node.event("the client probes"), defended);
    eventually("the client gives up", || {
        lab.ip("client", &format!("-6 addr show to {V6}")).contains("dadfailed").then_some(())
    });
}

/// Beyond 64 addresses the filter in the kernel is another one, beyond 200 groups another socket is
/// a member.
#[test]
fn many_addresses_on_one_interface() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    let vips = |count: u32| -> Vec<IpAddr> {
        let v4 = (0..count.min(200)).map(|n| IpAddr::from((0xc000_0200 + 20 + n).to_be_bytes()));
        v4.chain((0..count).map(|n| {
            IpAddr::from(((0xfd00_0001_u128 << 96) | (0x1000 + u128::from(n))).to_be_bytes())
        }))
        .collect()
    };
    let node = Node::start(&lab, Wish::default());
    for count in [64, 300, 2] {
        let before = node.counters.totals().sent;
        node.wish.send_replace(Wish { vips: vips(count), ..wish(&["eth0"], false) });
        if count > 2 {
            eventually("the first announcements", || {
                (node.counters.totals().sent > before + u64::from(count)).then_some(())
            });
        }
        for vip in [
            vips(count)[0],
            vips(count)[count.min(200) as usize - 1],
            vips(count)[count.min(200) as usize],
            *vips(count).last().unwrap(),
        ] {
            eventually("an answer", || (lab.resolve(&vip.to_string())? == mac).then_some(()));
        }
        assert_eq!(node.counters.totals().join_failed, 0);
    }
    thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.resolve(&vips(300)[2].to_string()), None, "withdrawn");
}

#[test]
fn a_bridge_as_uplink() {
    let lab = Lab::new();
    lab.ip("node", "link add br7 address 02:00:00:00:00:70 type bridge");
    lab.ip("node", "link set eth0 master br7");
    lab.ip("node", "link set br7 up");
    let _node = Node::start(&lab, wish(&["br7"], false));
    for vip in [V4, V6] {
        eventually(vip, || (lab.resolve(vip)? == "02:00:00:00:00:70").then_some(()));
    }
}

#[test]
fn a_stale_neighbour_entry_is_replaced_without_asking() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    for vip in [V4, V6] {
        lab.ip(
            "client",
            &format!("neigh replace {vip} lladdr 02:00:00:00:00:99 nud stale dev eth0"),
        );
    }
    let _node = Node::start(&lab, wish(&["eth0"], false));
    for vip in [V4, V6] {
        eventually(vip, || (lab.neighbour(vip)? == mac).then_some(()));
    }
}

#[test]
fn a_link_that_returns_is_announced_again() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    let mut node = Node::start(&lab, wish(&["eth0"], false));
    eventually("the first announcements", || (node.counters.totals().sent >= 3).then_some(()));
    lab.ip("lan", "link set node-eth0 down");
    eventually("carrier loss is seen", || {
        node.interfaces.borrow().values().any(|i| &*i.name == "eth0" && !i.up).then_some(())
    });
    for vip in [V4, V6] {
        assert_eq!(lab.resolve(vip), None, "{vip} while the link is down");
        lab.ip(
            "client",
            &format!("neigh replace {vip} lladdr 02:00:00:00:00:99 nud stale dev eth0"),
        );
    }
    lab.ip("lan", "link set node-eth0 up");
    for vip in [V4, V6] {
        eventually(vip, || (lab.neighbour(vip)? == mac).then_some(()));
        assert_eq!(lab.resolve(vip).as_ref(), Some(&mac), "{vip}");
    }
    assert_eq!(node.events.try_recv().ok(), None, "a link that goes down is no failure of ours");
}

/// Down and up again between two snapshots: nobody sees the link down, and yet the switch may have
/// forgotten us.
#[test]
fn a_link_that_flaps_faster_than_anybody_looks_is_announced_again() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    let node = Node::start(&lab, wish(&["eth0"], false));
    // The burst is over after five seconds; the next refresh would come after a minute.
    eventually("the end of the burst", || (node.counters.totals().sent >= 21).then_some(()));
    let index = eth0(&node);
    let mut snapshots = node.interfaces.clone();
    let before = snapshots.borrow_and_update()[&index].carrier_changes;
    for vip in [V4, V6] {
        lab.ip(
            "client",
            &format!("neigh replace {vip} lladdr 02:00:00:00:00:99 nud stale dev eth0"),
        );
    }
    let batch = format!("/tmp/{}.batch", lab.prefix);
    std::fs::write(&batch, "link set node-eth0 down\nlink set node-eth0 up\n").unwrap();
    // One process for both: the snapshot waits 20 ms.
    lab.ip("lan", &format!("-batch {batch}"));
    std::fs::remove_file(&batch).unwrap();
    for vip in [V4, V6] {
        eventually(vip, || (lab.neighbour(vip)? == mac).then_some(()));
    }
    assert!(snapshots.borrow_and_update()[&index].carrier_changes > before);
}

/// Flooding aside: a bridge that snoops sends multicast only to ports that asked, so a VIP's
/// solicited-node group must be joined.
#[test]
fn the_solicited_node_group_of_a_vip_is_joined_on_the_port() {
    let lab = Lab::new();
    // Answers of the querier are due within its response interval.
    lab.ip("lan", "link set br0 type bridge mcast_querier 1 mcast_query_response_interval 100 mcast_startup_query_interval 100");
    // The last 24 bits of fd00:1::10.
    let group = "ff02::1:ff00:10";
    let listed = || {
        let mdb = run(&format!("ip netns exec {} bridge mdb show dev br0", lab.namespace("lan")));
        mdb.lines().any(|line| {
            line.contains("port node-eth0") && line.split_whitespace().any(|word| word == group)
        })
    };
    assert!(!listed(), "before anything runs");
    let node = Node::start(&lab, wish(&["eth0"], false));
    eventually("the group on the node's port", || listed().then_some(()));
    node.wish.send_replace(Wish::default());
    eventually("the group is left", || (!listed()).then_some(()));
}

#[test]
fn an_interface_that_cannot_be_opened_is_reported_once_and_the_others_serve() {
    let lab = Lab::new();
    let mac = lab.mac("node", "eth0");
    let listing = lab.ip("node", "-o link show eth0");
    let index: u32 = listing.split(':').next().unwrap().parse().unwrap();
    let interface = |index: u32, name: &str, mac: [u8; 6]| Interface {
        index,
        name: name.into(),
        mac: Some(mac),
        up: true,
        ipv6: true,
        ..Interface::default()
    };
    let interfaces = Interfaces::from([
        (999, interface(999, "ghost", [2, 0, 0, 0, 0, 9])),
        (index, interface(index, "eth0", bytes(&mac))),
    ]);
    let mut first = desire(&wish(&["ghost", "eth0"], false), &interfaces);
    let ghost_only = Announcement {
        interfaces: Arc::new([999].into()),
        probe: true,
        standby: false,
        quiet: false,
    };
    Arc::make_mut(&mut first.announcements).insert(ip(FREE[0]), ghost_only);
    let (desired_in, desired) = watch::channel(first);
    let (events_in, mut events) = mpsc::channel(64);
    let counters = Arc::new(L2Counters::default());
    let announcer = inside(&lab.namespace("node"), move || {
        task::spawn(desired, events_in, AnnouncerConfig::default(), counters, Default::default())
            .unwrap()
    });
    for vip in [V4, V6] {
        eventually(vip, || (lab.resolve(vip)? == mac).then_some(()));
    }
    match eventually("the failure", || events.try_recv().ok()) {
        AnnouncerEvent::SocketFailed { ifindex: 999, reason } => {
            assert!(reason.contains("ghost"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(
        events.try_recv().ok(),
        None,
        "tried again, not told again; and no address is clear where nobody can be heard"
    );
    drop(desired_in);
    announcer.join().unwrap().join().unwrap();
}

#[test]
fn an_interface_that_appears_later_and_changes_its_mac() {
    let lab = Lab::new();
    let node = Node::start(&lab, wish(&["eth1"], false));
    eventually("the first snapshot", || (!node.interfaces.borrow().is_empty()).then_some(()));
    assert_eq!(lab.resolve(V4), None);
    lab.plug("node", "eth1");
    let mac = lab.mac("node", "eth1");
    for vip in [V4, V6] {
        eventually(vip, || (lab.resolve(vip)? == mac).then_some(()));
    }
    lab.ip("node", "link set eth1 address 02:00:00:00:00:77");
    for vip in [V4, V6] {
        eventually(vip, || (lab.neighbour(vip)? == "02:00:00:00:00:77").then_some(()));
    }
    lab.ip("lan", "link del node-eth1");
    eventually("it is gone", || {
        node.interfaces.borrow().values().all(|i| &*i.name != "eth1").then_some(())
    });
    lab.plug("node", "eth1");
    let mac = lab.mac("node", "eth1");
    for vip in [V4, V6] {
        eventually(vip, || (lab.resolve(vip)? == mac).then_some(()));
    }
}

#[test]
fn snapshots_hold_what_the_kernel_has() {
    let lab = Lab::new();
    let node = Node::start(&lab, Wish::default());
    let addresses = |name: &str| -> Vec<String> {
        let interfaces = node.interfaces.borrow();
        interfaces
            .values()
            .filter(|i| &*i.name == name)
            .flat_map(|i| i.addresses.iter().map(ToString::to_string))
            .collect()
    };
    eventually("addresses", || {
        (addresses("eth0") == ["192.0.2.2/24", "fd00:1::2/64"]).then_some(())
    });
    let first = node.interfaces.borrow().clone();
    let interface = first.values().find(|i| &*i.name == "eth0").unwrap();
    assert_eq!(
        (&*interface.kind, interface.up, interface.mac),
        ("veth", true, Some(bytes(&lab.mac("node", "eth0"))))
    );
    assert!(first.values().any(|i| i.loopback && i.addresses.is_empty()));

    lab.ip("node", "addr add 198.51.100.7/32 dev eth0");
    eventually("an address more", || {
        addresses("eth0").contains(&"198.51.100.7/32".to_owned()).then_some(())
    });
    lab.ip("node", "link add br7 type bridge");
    lab.ip("node", "link set eth0 master br7");
    eventually("a bridge and its port", || {
        let interfaces = node.interfaces.borrow();
        let bridge = interfaces.values().find(|i| &*i.name == "br7" && &*i.kind == "bridge")?.index;
        interfaces.values().any(|i| &*i.name == "eth0" && i.master == Some(bridge)).then_some(())
    });
}
