//! What passes an interface: every frame in and out, from when the capture starts until it is
//! asked.

use std::ffi::CString;
use std::net::IpAddr;
use std::time::Duration;
use std::{io, mem};

use pinnace::l2::{arp, ethernet, ndp};
use pinnace::model::mac::Mac;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Host;
use super::netns::Namespace;

/// For frames that wait to be read, in bytes as the kernel counts them: a second of two thousand.
const BUFFER: usize = 4 << 20;

/// An open packet socket.
pub struct Capture(Socket);

/// One frame that speaks of an address, by ARP or neighbour discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody asks for it.
    Question,
    /// Its holder answers one station.
    Answer,
    /// Its holder tells everybody.
    Announcement,
}

impl Capture {
    /// Begins to listen on an interface of a namespace.
    pub fn start(ns: &Namespace, interface: &str) -> Capture {
        let open = || -> io::Result<Socket> {
            let name = CString::new(interface)?;
            // SAFETY: the name is a string that ends with a zero and outlives the call.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            if index == 0 {
                return Err(io::Error::last_os_error());
            }
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
            // SAFETY: sockaddr_ll fits into sockaddr_storage, is plain data, and the length set is
            // its own.
            let ((), address) = unsafe {
                SockAddr::try_init(|storage, length| {
                    let address = storage.cast::<libc::sockaddr_ll>();
                    (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
                    (*address).sll_protocol = protocol;
                    (*address).sll_ifindex = index as libc::c_int;
                    *length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                    Ok(())
                })
            }?;
            // Whoever listens does not always listen at once.
            rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            socket.bind(&address)?;
            Ok(socket)
        };
        Capture(ns.enter(open).unwrap_or_else(|error| panic!("capture on {interface}: {error}")))
    }

    /// What was heard of this address since the last call.
    pub fn heard(&self, address: IpAddr) -> Vec<Heard> {
        let mut heard = Vec::new();
        self.frames(|frame| heard.extend(about(frame, address)));
        heard
    }

    /// What was heard of any of these addresses since the last call.
    pub fn about(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, Heard)> {
        let mut heard = Vec::new();
        self.frames(|frame| {
            heard.extend(
                addresses.iter().filter_map(|address| Some((*address, about(frame, *address)?))),
            )
        });
        heard
    }

    /// The same of one address, and which station sent it.
    pub fn heard_from(&self, address: IpAddr) -> Vec<(Mac, Heard)> {
        let mut heard = Vec::new();
        self.frames(|frame| {
            let station = ethernet::Repr::parse(frame).map(|header| header.source);
            heard.extend(station.into_iter().zip(about(frame, address)));
        });
        heard
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.0.send(frame).expect("send a frame"), frame.len());
    }

    /// The stations to which announcements of this address went since the last call; a group is
    /// everybody.
    pub fn announced_to(&self, address: IpAddr) -> Vec<Mac> {
        let mut stations = Vec::new();
        self.frames(|frame| {
            if about(frame, address) == Some(Heard::Announcement) {
                stations.extend(ethernet::Repr::parse(frame).map(|header| header.destination));
            }
        });
        stations
    }

    fn frames(&self, mut each: impl FnMut(&[u8])) {
        let mut buffer = [0; 2048];
        while let Ok((length, _)) =
            rustix::net::recv(&self.0, &mut buffer, rustix::net::RecvFlags::empty())
        {
            each(buffer.get(..length).unwrap_or_default());
        }
    }

    /// How many questions and answers there were of this address since the last call, `time` from
    /// now.
    pub fn count(&self, address: IpAddr, time: Duration) -> (usize, usize) {
        std::thread::sleep(time);
        let heard = self.heard(address);
        let count = |what: Heard| heard.iter().filter(|heard| **heard == what).count();
        (count(Heard::Question), count(Heard::Answer))
    }
}

/// The question of a machine to everybody who has an address, to be answered to that machine.
pub fn question(address: IpAddr, asker: &Host) -> Vec<u8> {
    let mac = asker.station();
    match address {
        IpAddr::V4(address) => {
            arp::Repr { sender: asker.v4, ..arp::Repr::probe(mac, address) }.to_vec()
        }
        IpAddr::V6(address) => {
            let message = ndp::Message::Solicitation { link_layer: Some(mac), nonce: None };
            ndp::Repr { source: asker.v6, message, ..ndp::Repr::probe(mac, address, [0; 6]) }
                .to_vec()
        }
    }
}

fn about(frame: &[u8], address: IpAddr) -> Option<Heard> {
    match address {
        IpAddr::V4(address) => match arp::Repr::parse(frame).ok()? {
            // Some go to single clients, those who asked lately.
            arp if arp.sender == address && arp.target == address => Some(Heard::Announcement),
            arp if arp.sender == address => Some(Heard::Answer),
            arp if arp.target == address => Some(Heard::Question),
            _ => None,
        },
        IpAddr::V6(address) => match ndp::Repr::parse(frame).ok()? {
            ndp if ndp.target != address => None,
            ndp if matches!(ndp.message, ndp::Message::Solicitation { .. }) => {
                Some(Heard::Question)
            }
            ndp if matches!(ndp.message, ndp::Message::Advertisement { solicited: false, .. }) => {
                Some(Heard::Announcement)
            }
            _ => Some(Heard::Answer),
        },
    }
}
