//! A pod for the demo, as a program of its own: `pod NAME ADDRESS:PORT...` answers TCP and UDP on each of these until it is killed.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::{env, io, process, thread};

mod responder;

fn main() {
    if let Err(error) = run() {
        eprintln!("pod: {error}");
        process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().ok_or_else(|| io::Error::other("usage: pod NAME ADDRESS:PORT..."))?;
    let mut threads = Vec::new();
    for argument in arguments {
        let address: SocketAddr = argument.parse().map_err(|_| io::Error::other(format!("{argument} is not ADDRESS:PORT")))?;
        let (listener, socket) = (TcpListener::bind(address)?, UdpSocket::bind(address)?);
        let (for_tcp, for_udp) = (name.clone(), name.clone());
        threads.push(thread::spawn(move || responder::serve_tcp(listener, &for_tcp)));
        threads.push(thread::spawn(move || responder::serve_udp(socket, &for_udp)));
    }
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a listener died"))?;
    }
    Ok(())
}
