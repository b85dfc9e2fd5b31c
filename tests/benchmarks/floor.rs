//! The least that any program can need: woken by inotify because a file was renamed, it replaces
//! one element of a table of the same size in one transaction. It reads nothing, decides nothing
//! and verifies nothing. What it takes is the kernel's and the machine's.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;
use std::{fs, io};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, send, socket_with};

use crate::lab::Lab;
use crate::manifests::{self, Size};
use crate::monitor::Monitor;
use crate::rules;

/// NFNL_MSG_BATCH_BEGIN and …_END; NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM and …_DELSETELEM.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
const NEW: u16 = 0x0a0c;
const DELETE: u16 = 0x0a0e;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;

/// A table, and a thread that waits for a file.
pub struct Floor {
    monitor: Monitor,
    directory: PathBuf,
    changes: u32,
    _lab: Lab,
}

impl Floor {
    /// As large as what Pinnace needs for this size.
    pub fn new(name: &str, size: Size) -> Result<Floor, String> {
        let lab = Lab::new(name)?;
        rules::load(
            &lab.node,
            "nft",
            &["-f", "-"],
            &rules::nft_of_size(size.services, size.endpoints),
        )?;
        let directory = manifests::memory().join(format!("pinnace-bench-{name}"));
        fs::create_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let watched = directory.clone();
        lab.node
            .enter(move || -> io::Result<()> {
                let files = inotify::init(CreateFlags::CLOEXEC)?;
                inotify::add_watch(&files, &watched, WatchFlags::MOVED_TO)?;
                let kernel = socket_with(
                    AddressFamily::NETLINK,
                    SocketType::RAW,
                    SocketFlags::CLOEXEC,
                    Some(netlink::NETFILTER),
                )?;
                std::thread::spawn(move || serve(&files, &kernel));
                Ok(())
            })
            .map_err(|e| format!("the control: {e}"))?;
        Ok(Floor { monitor: Monitor::new(&lab.node)?, directory, changes: 0, _lab: lab })
    }

    /// From `rename(2)` to the committed transaction, in seconds.
    pub fn change(&mut self) -> Result<f64, String> {
        let (next, file) = (self.directory.join("next"), self.directory.join("file"));
        fs::write(&next, "x").map_err(|e| e.to_string())?;
        self.monitor.drain();
        let start = Instant::now();
        fs::rename(next, file).map_err(|e| e.to_string())?;
        self.changes += 1;
        let commit = self
            .monitor
            .wait(backend(self.changes))
            .ok_or("the control never reached the kernel")?;
        Ok((commit.at - start).as_secs_f64())
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Ends the watch, and with it the thread.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What the element leads to after so many changes.
fn backend(changes: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0ab0_0000 + changes)
}

fn serve(files: &OwnedFd, kernel: &OwnedFd) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(files, &mut buffer);
    for changes in 1.. {
        if !events.next().is_ok_and(|event| event.events().contains(ReadFlags::MOVED_TO)) {
            return;
        }
        // Whether it was taken is seen by the monitor.
        let _ = send(kernel, &replacement(backend(changes)), SendFlags::empty());
    }
}

/// One element of [`rules::nft_of_size`] leads somewhere else.
fn replacement(backend: Ipv4Addr) -> Vec<u8> {
    // Each part of a concatenation fills a multiple of four bytes.
    let key = [&[10, 91, 16, 0][..], &[libc::IPPROTO_TCP as u8, 0, 0, 0], &[0, 80, 0, 0], &[0; 4]]
        .concat();
    let data = [&backend.octets()[..], &8080_u16.to_be_bytes(), &[0, 0]].concat();
    let list = |element: Vec<u8>| {
        let element = attribute(1 | NESTED, &element);
        [attribute(1, b"control\0"), attribute(2, b"backends\0"), attribute(3 | NESTED, &element)]
            .concat()
    };
    let key = attribute(1 | NESTED, &attribute(1, &key));
    let data = attribute(2 | NESTED, &attribute(1, &data));
    [
        message(BEGIN, 0, 0, 10, &[]),
        message(DELETE, 0, libc::AF_INET as u8, 0, &list(key.clone())),
        message(NEW, CREATE, libc::AF_INET as u8, 0, &list([key, data].concat())),
        message(END, 0, 0, 10, &[]),
    ]
    .concat()
}

/// struct nlmsghdr and struct nfgenmsg before the attributes.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let request = flags | libc::NLM_F_REQUEST as u16;
    let header = [
        &(20 + attributes.len() as u32).to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &request.to_ne_bytes(),
        &[0; 8],
    ]
    .concat();
    [&header[..], &[family, 0], &resource.to_be_bytes(), attributes].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes =
        [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
