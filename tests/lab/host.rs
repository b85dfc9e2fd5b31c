//! A machine of the lab: what it can notice of the network.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use pinnace::model::Family;
use pinnace::model::mac::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::netns::Namespace;
use super::{families, patient, responder, sctp};

/// How long an answer may take before it counts as silence: longer than the first retransmission of
/// a SYN (1 s), so that one lost packet is no failure.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A network namespace with addresses: a client, a node or a pod.
pub struct Host {
    pub name: String,
    pub ns: Arc<Namespace>,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    servers: RefCell<Vec<Server>>,
    /// Threads that look at `stop` now and then.
    threads: RefCell<Vec<thread::JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
}

/// What a pod said about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The pod that answered.
    pub pod: String,
    /// The port it answered on.
    pub port: u16,
    /// The source the pod saw.
    pub peer: SocketAddr,
}

/// What a client notices instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// TCP reset or ICMP port unreachable.
    Refused,
    /// Silence.
    TimedOut,
    /// No route, or the neighbour does not answer.
    Unreachable,
    /// Anything else, in the system's words.
    Other(String),
}

impl Host {
    /// A host in this namespace; its interface and addresses are made by the lab.
    pub fn new(name: &str, ns: Arc<Namespace>, v4: Ipv4Addr, v6: Ipv6Addr) -> Host {
        Host {
            name: name.to_owned(),
            ns,
            v4,
            v6,
            servers: RefCell::default(),
            threads: RefCell::default(),
            stop: Arc::default(),
        }
    }

    /// Its address in a family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Connects, asks, closes.
    pub fn tcp(&self, address: IpAddr, port: u16) -> Result<Reply, Failure> {
        self.connect(address, port)?.ask()
    }

    /// The same many times, each with a fresh source port.
    pub fn tcp_times(
        &self,
        count: usize,
        address: IpAddr,
        port: u16,
    ) -> Result<Vec<Reply>, Failure> {
        let target = SocketAddr::new(address, port);
        self.ns.enter(|| (0..count).map(|_| Connection::open(None, target)?.ask()).collect())
    }

    /// From one of its several addresses.
    pub fn tcp_from(&self, source: IpAddr, address: IpAddr, port: u16) -> Result<Reply, Failure> {
        self.ns
            .enter(|| {
                Connection::open(Some(SocketAddr::new(source, 0)), SocketAddr::new(address, port))
            })?
            .ask()
    }

    /// A connection that stays open.
    pub fn connect(&self, address: IpAddr, port: u16) -> Result<Connection, Failure> {
        self.ns.enter(|| Connection::open(None, SocketAddr::new(address, port)))
    }

    /// One datagram and its answer, from a fresh source port.
    pub fn udp(&self, address: IpAddr, port: u16) -> Result<Reply, Failure> {
        self.udp_from(0, address, port)
    }

    /// One datagram and its answer, from this source port.
    pub fn udp_from(&self, source_port: u16, address: IpAddr, port: u16) -> Result<Reply, Failure> {
        let source = SocketAddr::new(self.address(Family::of(address)), source_port);
        self.ns.enter(|| {
            let socket = UdpSocket::bind(source)?;
            socket.connect((address, port))?;
            socket.set_read_timeout(Some(patient(PATIENCE) / 2))?;
            let mut buffer = [0; 512];
            let mut result = Err(Failure::TimedOut);
            for _ in 0..2 {
                socket.send(b"who\n")?;
                result = socket.recv(&mut buffer).map_err(Failure::from);
                if result != Err(Failure::TimedOut) {
                    break;
                }
            }
            Reply::parse(&String::from_utf8_lossy(buffer.get(..result?).unwrap_or_default()))
        })
    }

    /// One datagram from this source port; nobody waits for an answer.
    pub fn send_from(&self, source_port: u16, address: IpAddr, port: u16) {
        let source = SocketAddr::new(self.address(Family::of(address)), source_port);
        self.ns
            .enter(|| {
                UdpSocket::bind(source).and_then(|socket| socket.send_to(b"who\n", (address, port)))
            })
            .expect("send a datagram");
    }

    /// Begins to open a connection, whose first SYN has been sent, and tries for as long as three
    /// more take: 7 s and then some.
    pub fn connecting(
        &self,
        address: IpAddr,
        port: u16,
    ) -> thread::JoinHandle<Result<(), Failure>> {
        let target = SocketAddr::new(address, port);
        let socket = self.ns.enter(|| {
            let socket =
                Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))
                    .expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            let _ = socket.connect(&target.into()); // in progress
            socket
        });
        thread::spawn(move || {
            let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
            let patience =
                Timespec { tv_sec: patient(Duration::from_secs(10)).as_secs() as _, tv_nsec: 0 };
            match poll(&mut fds, Some(&patience)) {
                Ok(0) => Err(Failure::TimedOut),
                _ => socket.take_error()?.map_or(Ok(()), |error| Err(error.into())),
            }
        })
    }

    /// An SCTP association from this source port.
    pub fn sctp_from(
        &self,
        source_port: u16,
        address: IpAddr,
        port: u16,
    ) -> Result<Reply, Failure> {
        let source = SocketAddr::new(self.address(Family::of(address)), source_port);
        self.ns.enter(|| sctp::associate(source, SocketAddr::new(address, port), patient(PATIENCE)))
    }

    /// An echo request; the time is not of interest.
    pub fn ping(&self, address: IpAddr) -> Result<(), Failure> {
        let (domain, protocol, request, reply) = match address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        self.ns.enter(|| {
            let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
            socket.set_read_timeout(Some(patient(PATIENCE)))?;
            socket.connect(&SockAddr::from(SocketAddr::new(address, 0)))?;
            // Identifier and checksum are the kernel's.
            socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'n', b'l'])?;
            let mut buffer = [0; 64];
            let length = socket.read(&mut buffer)?;
            match buffer.get(..length) {
                Some([kind, ..]) if *kind == reply => Ok(()),
                other => Err(Failure::Other(format!("not an echo reply: {other:?}"))),
            }
        })
    }

    /// Asks anew who holds an address on the link: its MAC, or None when nobody answers.
    pub fn neighbour(&self, address: IpAddr) -> Option<String> {
        let text = address.to_string();
        self.ns.ip(&[
            format!("neigh replace {text} dev eth0 lladdr 02:00:00:00:00:00 nud noarp"),
            format!("neigh del {text} dev eth0"),
        ]);
        // Any packet makes the kernel ask; port 9 is discard.
        let knock = || {
            self.ns.enter(|| {
                UdpSocket::bind(unspecified(address))
                    .and_then(|socket| socket.send_to(b"", (address, 9)))
            })
        };
        let _ = knock();
        let deadline = Instant::now() + 2 * patient(PATIENCE);
        while Instant::now() < deadline {
            let (mac, state) = self.neighbour_entry(address);
            match state.as_str() {
                "FAILED" => return None,
                "REACHABLE" | "STALE" | "DELAY" | "PROBE" => return mac,
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
        None
    }

    /// What the neighbour table says now, without asking: MAC and state, empty when there is no
    /// entry.
    pub fn neighbour_entry(&self, address: IpAddr) -> (Option<String>, String) {
        let listed = self
            .ns
            .output("ip", &["-j", "neigh", "show", "to", &address.to_string(), "dev", "eth0"]);
        let listed: serde_json::Value = serde_json::from_str(listed.trim()).unwrap_or_default();
        let entry = &listed[0];
        (
            entry["lladdr"].as_str().map(str::to_owned),
            entry["state"][0].as_str().unwrap_or_default().to_owned(),
        )
    }

    /// The MAC of its `eth0`.
    pub fn mac(&self) -> String {
        let listed = self.ns.output("ip", &["-j", "link", "show", "eth0"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("ip -j prints JSON");
        listed[0]["address"].as_str().expect("a veth has a MAC").to_owned()
    }

    /// The same as bytes.
    pub fn station(&self) -> Mac {
        let bytes: Vec<u8> = self
            .mac()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
            .collect();
        bytes.try_into().expect("six bytes")
    }

    /// One more address on `eth0`, with prefix length.
    pub fn add_address(&self, address: IpAddr) {
        let (length, nodad) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
        self.ns.ip(&[format!("address add {address}/{length} dev eth0 {nodad}")]);
    }

    /// Answers SCTP associations on this port of all its addresses, for as long as it lives.
    pub fn serve_sctp(&self, port: u16) {
        for family in Family::ALL {
            let (address, name, stop) =
                (SocketAddr::new(self.address(family), port), self.name.clone(), self.stop.clone());
            let serve = move || {
                sctp::serve(address, &name, || stop.load(Ordering::Relaxed)).expect("raw sockets")
            };
            // A thread stays in the namespace of the one that started it.
            let thread = self.ns.enter(|| thread::spawn(serve));
            self.threads.borrow_mut().push(thread);
        }
    }

    /// Answers on these ports over TCP and UDP on all its addresses, for as long as it lives.
    pub fn serve(&self, ports: &[u16]) {
        for family in families() {
            for port in ports {
                let address = SocketAddr::new(self.address(*family), *port);
                let (listener, socket) =
                    self.ns.enter(|| (TcpListener::bind(address), UdpSocket::bind(address)));
                let bound =
                    |error: io::Error| -> ! { panic!("{}: bind {address}: {error}", self.name) };
                let (listener, socket) =
                    (listener.unwrap_or_else(|e| bound(e)), socket.unwrap_or_else(|e| bound(e)));
                let stop = (listener.try_clone().expect("dup"), socket.try_clone().expect("dup"));
                let (for_tcp, for_udp) = (self.name.clone(), self.name.clone());
                let threads = [
                    thread::spawn(move || responder::serve_tcp(listener, &for_tcp)),
                    thread::spawn(move || responder::serve_udp(socket, &for_udp)),
                ];
                self.servers.borrow_mut().push(Server { stop, threads });
            }
        }
    }
}

/// An open TCP connection to a pod.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(source: Option<SocketAddr>, target: SocketAddr) -> Result<Connection, Failure> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = source {
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&target.into(), patient(PATIENCE))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patient(PATIENCE)))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// One line there, one line back.
    pub fn ask(&mut self) -> Result<Reply, Failure> {
        self.stream.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Reply::parse(&line)
    }
}

impl Reply {
    pub(super) fn parse(line: &str) -> Result<Reply, Failure> {
        let field = |name: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let parsed = (|| {
            Some(Reply {
                pod: field("pod")?.to_owned(),
                port: field("port")?.parse().ok()?,
                peer: field("peer")?.parse().ok()?,
            })
        })();
        parsed.ok_or_else(|| Failure::Other(format!("not an answer of a pod: {line:?}")))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Failure::Refused,
            Kind::TimedOut | Kind::WouldBlock => Failure::TimedOut,
            Kind::HostUnreachable | Kind::NetworkUnreachable => Failure::Unreachable,
            _ => Failure::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Listener and socket of one port, with the threads that serve them.
struct Server {
    stop: (TcpListener, UdpSocket),
    threads: [thread::JoinHandle<()>; 2],
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.take() {
            let _ = thread.join();
        }
        for server in self.servers.take() {
            // Shutting down wakes the threads; UDP reports "not connected" and wakes them all the
            // same.
            let _ = rustix::net::shutdown(&server.stop.0, rustix::net::Shutdown::Both);
            let _ = rustix::net::shutdown(&server.stop.1, rustix::net::Shutdown::Both);
            for thread in server.threads {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}

fn unspecified(like: IpAddr) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
