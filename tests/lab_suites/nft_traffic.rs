//! What packets meet: a client on an uplink, a node with our rules, two pods behind it. Needs root
//! and iproute2.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pinnace::model::Protocol;
use pinnace::model::forwarding::{Backend, Balancing, Forwarding, FrontendKey};
use pinnace::model::ruleset_changes::RulesetChanges;
use pinnace::nft::io::conntrack;
use pinnace::nft::io::writer::RulesetWriter;

use crate::lab::patient;

const PATIENCE: Duration = Duration::from_millis(400);

/// Namespaces `client`, `node`, `pod1` and `pod2`, removed at the end.
struct Lab {
    prefix: String,
}

fn run(command: &str) -> bool {
    let mut words = command.split_whitespace();
    Command::new(words.next().unwrap()).args(words).output().expect(command).status.success()
}

fn must(command: &str) {
    assert!(run(command), "{command}");
}

impl Lab {
    fn new(name: &str) -> Lab {
        let lab = Lab { prefix: format!("pn{name}{}", std::process::id()) };
        for room in ["client", "node", "pod1", "pod2"] {
            must(&format!("ip netns add {}", lab.room(room)));
            must(&format!("ip -n {} link set lo up", lab.room(room)));
            must(&format!(
                "ip netns exec {} sysctl -q -w net.ipv6.conf.default.accept_dad=0",
                lab.room(room)
            ));
        }
        let node = lab.room("node");
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv6.icmp.ratelimit=0",
        ] {
            must(&format!("ip netns exec {node} sysctl -q -w {setting}"));
        }
        for (number, room, inside, outside) in [
            (7, "client", "eth0", "uplink"),
            (1, "pod1", "eth0", "pod1"),
            (2, "pod2", "eth0", "pod2"),
        ] {
            let room = lab.room(room);
            must(&format!(
                "ip -n {node} link add {outside} type veth peer name {inside} netns {room}"
            ));
            for (space, interface, host) in [(&node, outside, 1), (&room, inside, 2)] {
                must(&format!(
                    "ip -n {space} link set {interface} address 02:00:00:00:0{number}:0{host} up"
                ));
                must(&format!("ip -n {space} addr add 10.0.{number}.{host}/24 dev {interface}"));
                must(&format!(
                    "ip -n {space} addr add fd00:{number}::{host}/64 dev {interface} nodad"
                ));
            }
            must(&format!("ip -n {room} route add default via 10.0.{number}.1"));
            must(&format!("ip -n {room} route add default via fd00:{number}::1"));
        }
        for vip in ["10.0.7.200", "fd00:7::200"] {
            must(&format!(
                "ip -n {} neigh add {vip} lladdr 02:00:00:00:07:01 dev eth0 nud permanent",
                lab.room("client")
            ));
        }
        for pod in ["pod1", "pod2"] {
            lab.inside(pod, move || serve(pod));
        }
        lab
    }

    fn room(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn inside<T: Send + 'static>(
        &self,
        room: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let path = format!("/run/netns/{}", self.room(room));
        let work = move || {
            let file = std::fs::File::open(&path).expect(&path);
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .expect("these tests need root");
            work()
        };
        std::thread::spawn(work).join().unwrap()
    }

    /// What the server says to a connection from a room: its name and the address it saw, or why
    /// not.
    fn ask(&self, room: &str, to: SocketAddr) -> Result<String, ErrorKind> {
        self.inside(room, move || {
            let mut stream =
                TcpStream::connect_timeout(&to, patient(PATIENCE)).map_err(|error| error.kind())?;
            stream.set_read_timeout(Some(patient(PATIENCE))).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).map_err(|error| error.kind())?;
            Ok(said)
        })
    }

    fn ask_udp(&self, room: &str, to: SocketAddr) -> Result<String, ErrorKind> {
        self.ask_udp_from(room, 0, to)
    }

    fn ask_udp_from(&self, room: &str, port: u16, to: SocketAddr) -> Result<String, ErrorKind> {
        self.inside(room, move || {
            let mut any: SocketAddr =
                if to.is_ipv4() { "0.0.0.0:0".parse().unwrap() } else { "[::]:0".parse().unwrap() };
            any.set_port(port);
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(patient(PATIENCE))).unwrap();
            socket.connect(to).map_err(|error| error.kind())?;
            socket.send(b"?").map_err(|error| error.kind())?;
            let mut said = [0; 100];
            let length = socket.recv(&mut said).map_err(|error| error.kind())?;
            Ok(String::from_utf8_lossy(&said[..length]).into_owned())
        })
    }

    /// Whether an ICMP echo request from a room is answered, from the address that was asked.
    fn ping(&self, room: &str, to: IpAddr) -> bool {
        self.inside(room, move || {
            let (domain, protocol, kind) = match to {
                IpAddr::V4(_) => (socket2::Domain::IPV4, socket2::Protocol::ICMPV4, 8),
                IpAddr::V6(_) => (socket2::Domain::IPV6, socket2::Protocol::ICMPV6, 128),
            };
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
            let socket = UdpSocket::from(
                socket2::Socket::new(domain, socket2::Type::DGRAM, Some(protocol)).unwrap(),
            );
            socket.set_read_timeout(Some(patient(PATIENCE))).unwrap();
            socket.connect((to, 0)).unwrap();
            socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1, 42]).unwrap();
            let mut reply = [0; 100];
            socket.recv(&mut reply).is_ok_and(|length| length == 9 && reply[8] == 42)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for room in ["client", "node", "pod1", "pod2"] {
            run(&format!("ip netns del {}", self.room(room)));
        }
    }
}

/// Answers on port 8080 of both families with the pod's name and the client's address.
fn serve(name: &'static str) {
    let listener = TcpListener::bind("[::]:8080").unwrap();
    let socket = UdpSocket::bind("[::]:8080").unwrap();
    let answer = move |client: SocketAddr| format!("{name} {}", client.ip().to_canonical());
    std::thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = stream.write_all(answer(client).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer(client).as_bytes(), client);
        }
    });
}

/// The addresses of a family.
struct Net {
    vip: IpAddr,
    client: IpAddr,
    node_at: [IpAddr; 3],
    pods: [IpAddr; 3],
    net: &'static str,
    elsewhere: &'static str,
}

fn nets() -> [Net; 2] {
    let v4 = |net: u8, host: u8| IpAddr::from([10, 0, net, host]);
    let v6 = |net: u16, host: u16| IpAddr::from([0xfd00, net, 0, 0, 0, 0, 0, host]);
    [
        Net {
            vip: v4(7, 200),
            client: v4(7, 2),
            node_at: [v4(7, 1), v4(1, 1), v4(2, 1)],
            pods: [v4(7, 2), v4(1, 2), v4(2, 2)],
            net: "10.0.7.0/24",
            elsewhere: "10.9.0.0/16",
        },
        Net {
            vip: v6(7, 0x200),
            client: v6(7, 2),
            node_at: [v6(7, 1), v6(1, 1), v6(2, 1)],
            pods: [v6(7, 2), v6(1, 2), v6(2, 2)],
            net: "fd00:7::/64",
            elsewhere: "fd00:9::/64",
        },
    ]
}

/// pod1 runs on this node, pod2 does as if it ran on another.
fn pods(net: &Net, which: &[usize]) -> Vec<Backend> {
    which.iter().map(|&n| Backend { address: net.pods[n], port: 8080, local: n == 1 }).collect()
}

fn plain(internal: Balancing) -> Forwarding {
    Forwarding { internal, external: None, sources: None }
}

fn changes() -> RulesetChanges {
    let mut forwardings = BTreeMap::new();
    for net in nets() {
        let spread = |which: &[usize]| Balancing::FlowHash(pods(&net, which));
        let ranges = |range: &str| Some(vec![range.parse().unwrap()]);
        let mut add = |port, forwarding: Forwarding| {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let key = FrontendKey { address: net.vip, protocol, port };
                forwardings.insert(key, Some(Arc::new(forwarding.clone())));
            }
        };
        add(1, plain(spread(&[1])));
        add(2, plain(spread(&[2])));
        add(3, plain(Balancing::Reject));
        add(4, plain(Balancing::Drop));
        add(5, plain(spread(&[1, 2])));
        add(6, plain(Balancing::ClientIp(pods(&net, &[1, 2]))));
        add(7, Forwarding { sources: ranges(net.net), ..plain(spread(&[1])) });
        add(8, Forwarding { sources: ranges(net.elsewhere), ..plain(spread(&[1])) });
        add(9, Forwarding { external: Some(spread(&[1])), ..plain(spread(&[1, 2])) });
        add(10, Forwarding { external: Some(Balancing::Drop), ..plain(spread(&[2])) });
        add(11, Forwarding { sources: Some(vec![]), ..plain(spread(&[1])) });
        let own = FrontendKey { address: net.node_at[0], protocol: Protocol::Tcp, port: 80 };
        forwardings.insert(own, Some(Arc::new(plain(spread(&[2])))));
    }
    RulesetChanges {
        generation: 0,
        reset: true,
        uplinks: Some(BTreeSet::from(["uplink".into()])),
        vips: Some(nets().into_iter().map(|net| net.vip).collect()),
        forwardings,
    }
}

#[test]
fn each_verdict_does_to_packets_what_it_says() {
    let lab = Lab::new("v");
    let _writer = lab.inside("node", || {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&changes()).unwrap();
        writer
    });
    for net in nets() {
        let at = |port| SocketAddr::new(net.vip, port);
        let saw = |pod: usize, address: IpAddr| Ok(format!("pod{pod} {address}"));
        let silence = || Err(ErrorKind::TimedOut);
        let udp_silence = || Err(ErrorKind::WouldBlock);
        let refused = || Err(ErrorKind::ConnectionRefused);
        let cases: &[(&str, &str, u16, Result<String, ErrorKind>)] = &[
            ("a local backend sees the client", "client", 1, saw(1, net.client)),
            ("a remote backend sees the node", "client", 2, saw(2, net.node_at[2])),
            ("nothing serves", "client", 3, refused()),
            ("no local endpoint", "client", 4, silence()),
            ("a source in the range", "client", 7, saw(1, net.client)),
            ("a source outside of the range", "client", 8, silence()),
            ("source ranges bind pods, too", "pod2", 8, silence()),
            ("an empty list of ranges admits nobody", "client", 11, silence()),
            ("Local: the local backend", "client", 9, saw(1, net.client)),
            ("Local without a local endpoint", "client", 10, silence()),
            (
                "in-cluster clients are not bound by Local and keep their source",
                "pod1",
                10,
                saw(2, net.pods[1]),
            ),
            ("an unclaimed port", "client", 999, silence()),
            ("an unclaimed port, from a pod", "pod1", 999, silence()),
            ("a pod that reaches itself", "pod1", 1, saw(1, net.node_at[1])),
            ("a refused connection from a pod", "pod1", 3, refused()),
            ("a refused connection from the node", "node", 3, refused()),
        ];
        for (what, from, port, expected) in cases {
            assert_eq!(&lab.ask(from, at(*port)), expected, "TCP {}: {what}", at(*port));
            let expected = match expected {
                Err(ErrorKind::TimedOut) => udp_silence(),
                // A datagram that the node itself sends fails in the call, as with any firewall on
                // the output hook.
                Err(ErrorKind::ConnectionRefused) if *from == "node" => {
                    Err(ErrorKind::PermissionDenied)
                }
                other => other.clone(),
            };
            assert_eq!(lab.ask_udp(from, at(*port)), expected, "UDP {}: {what}", at(*port));
        }
        assert!(
            lab.ask("node", at(1)).is_ok_and(|said| said.starts_with("pod1")),
            "the node itself"
        );
        assert!(
            lab.ask("node", at(8)).is_ok_and(|said| said.starts_with("pod1")),
            "the node itself is exempt from source ranges"
        );
        let answers = |port| {
            (0..40)
                .map(|_| lab.ask("pod1", at(port)).unwrap())
                .map(|said| said[..4].to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(answers(5), BTreeSet::from(["pod1".into(), "pod2".into()]), "spread over both");
        assert_eq!(answers(6).len(), 1, "a client sticks to one");
        assert_eq!(
            lab.ask("client", SocketAddr::new(net.node_at[0], 80)),
            saw(2, net.node_at[2]),
            "the node's own address"
        );
        assert_eq!(
            lab.ask("client", SocketAddr::new(net.node_at[0], 81)),
            refused(),
            "other ports of the node are not ours"
        );
        for from in ["client", "pod1", "node"] {
            assert!(lab.ping(from, net.vip), "ping {} from {from}", net.vip);
        }
    }
}

#[test]
fn a_frontend_with_an_endpoint_more_or_fewer_leads_to_all_of_its_backends_at_once() {
    let lab = Lab::new("r");
    let mut writer = lab.inside("node", || {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&changes()).unwrap();
        writer
    });
    let of = |pods: &[usize]| -> BTreeSet<String> {
        pods.iter().map(|pod| format!("pod{pod}")).collect()
    };
    // UDP flows of one go on in the other, so each has a port of its own.
    for (port, before, after) in
        [(30, &[1][..], &[1, 2][..]), (31, &[1, 2], &[2]), (32, &[2], &[1])]
    {
        for which in [before, after] {
            let forwardings = nets().into_iter().flat_map(|net| {
                let forwarding = Arc::new(plain(Balancing::FlowHash(pods(&net, which))));
                [Protocol::Tcp, Protocol::Udp].map(|protocol| {
                    (FrontendKey { address: net.vip, protocol, port }, Some(forwarding.clone()))
                })
            });
            writer
                .apply(&RulesetChanges {
                    forwardings: forwardings.collect(),
                    ..RulesetChanges::default()
                })
                .unwrap();
        }
        for net in nets() {
            let at = SocketAddr::new(net.vip, port);
            for from in ["client", "pod1", "node"] {
                let said = (0..20).flat_map(|_| [lab.ask(from, at), lab.ask_udp(from, at)]);
                let answers: BTreeSet<String> =
                    said.map(|said| said.unwrap()[..4].to_owned()).collect();
                assert_eq!(answers, of(after), "{at} from {from}, {before:?} → {after:?}");
            }
        }
    }
}

#[test]
fn without_refresh_the_rules_disarm_themselves() {
    let lab = Lab::new("d");
    let mut writer = lab.inside("node", || {
        let mut writer = RulesetWriter::with_timeout(patient(Duration::from_millis(1500))).unwrap();
        writer.apply(&changes()).unwrap();
        writer
    });
    let served = || nets().map(|net| lab.ask("client", SocketAddr::new(net.vip, 1)).is_ok());
    assert_eq!(served(), [true, true]);
    std::thread::sleep(patient(Duration::from_millis(1600)));
    assert_eq!(served(), [false, false], "the switch has expired");
    writer.refresh_alive().unwrap();
    assert_eq!(served(), [true, true], "the switch is closed again");
    std::thread::sleep(patient(Duration::from_millis(1000)));
    writer.refresh_alive().unwrap();
    std::thread::sleep(patient(Duration::from_millis(1000)));
    assert_eq!(served(), [true, true], "a refresh prolongs");
}

#[test]
fn udp_clients_leave_backends_that_went_away() {
    let lab = Lab::new("u");
    let ask = |net: &Net| lab.ask_udp_from("client", 4000, SocketAddr::new(net.vip, 1));
    // Before there is a rule, the client's datagrams make entries whose replies would come from the
    // VIP itself.
    let mut writer = lab.inside("node", || {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&RulesetChanges { reset: true, ..RulesetChanges::default() }).unwrap();
        writer
    });
    for net in nets() {
        assert!(ask(&net).is_err());
    }
    writer.apply(&changes()).unwrap();
    let delete_stale = |pod: usize| {
        let frontend =
            |net: &Net| FrontendKey { address: net.vip, protocol: Protocol::Udp, port: 1 };
        let serving =
            nets().map(|net| (frontend(&net), vec![SocketAddr::new(net.pods[pod], 8080)]));
        lab.inside("node", move || conntrack::delete_stale(&serving)).unwrap()
    };
    for net in nets() {
        assert!(ask(&net).is_err(), "the old entry still holds");
    }
    assert_eq!(delete_stale(1), 2, "one entry in each family");
    for net in nets() {
        assert_eq!(ask(&net), Ok(format!("pod1 {}", net.client)));
    }
    assert_eq!(delete_stale(1), 0, "entries of serving backends stay");
    let forwardings = nets().map(|net| {
        let key = FrontendKey { address: net.vip, protocol: Protocol::Udp, port: 1 };
        (key, Some(Arc::new(plain(Balancing::FlowHash(pods(&net, &[2]))))))
    });
    writer
        .apply(&RulesetChanges {
            forwardings: BTreeMap::from(forwardings),
            ..RulesetChanges::default()
        })
        .unwrap();
    for net in nets() {
        assert_eq!(ask(&net), Ok(format!("pod1 {}", net.client)), "an established flow goes on");
    }
    assert_eq!(delete_stale(2), 2);
    for net in nets() {
        assert_eq!(ask(&net), Ok(format!("pod2 {}", net.node_at[2])));
    }
}

/// A program on the node may have the address and port of a frontend: its connections are left
/// alone.
#[test]
fn flows_that_nobody_translated_are_forgotten_unless_they_are_connections() {
    let lab = Lab::new("q");
    let _writer = lab.inside("node", || {
        serve("node");
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&RulesetChanges { reset: true, ..RulesetChanges::default() }).unwrap();
        writer
    });
    let mut frontends = Vec::new();
    for net in nets() {
        let (vip, node) = (SocketAddr::new(net.vip, 1), SocketAddr::new(net.node_at[0], 8080));
        let answer = Ok(format!("node {}", net.client));
        assert_eq!(
            (lab.ask("client", node), lab.ask_udp("client", node)),
            (answer.clone(), answer)
        );
        assert!(lab.ask("client", vip).is_err() && lab.ask_udp("client", vip).is_err());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            frontends.extend([vip, node].map(|at| FrontendKey {
                address: at.ip(),
                protocol,
                port: at.port(),
            }));
        }
    }
    let delete = |frontends: Vec<FrontendKey>| {
        lab.inside("node", move || conntrack::delete_untranslated(frontends)).unwrap()
    };
    assert_eq!(
        delete(frontends.iter().map(|key| FrontendKey { port: key.port + 1, ..*key }).collect()),
        0,
        "other ports"
    );
    assert_eq!(
        delete(frontends.clone()),
        6,
        "in each family one of TCP that was never answered, and two of UDP"
    );
    assert_eq!(delete(frontends), 0, "connections stay");
}
