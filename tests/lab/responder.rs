//! What runs in a pod: answers every line (TCP) and every datagram (UDP) with one line that says
//! who answered and whom it saw.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// A connection nobody speaks on is given up after this time, so that no thread outlives its lab
/// for long.
const IDLE: Duration = Duration::from_secs(60);
/// Threads only shovel lines; hundreds of them may be alive at once.
const STACK: usize = 128 * 1024;

/// The line a pod answers with.
pub fn line(pod: &str, local: SocketAddr, peer: SocketAddr) -> String {
    format!("pod={pod} port={} peer={peer}\n", local.port())
}

/// Accepts until the listener is shut down.
pub fn serve_tcp(listener: TcpListener, pod: &str) {
    while let Ok((stream, peer)) = listener.accept() {
        let pod = pod.to_owned();
        let spawned = thread::Builder::new().stack_size(STACK).spawn(move || {
            // The client may leave at any moment; that is its good right.
            let _ = converse(stream, peer, &pod);
        });
        if spawned.is_err() {
            return;
        }
    }
}

/// One line in, one line out; a line that looks like HTTP gets an HTTP answer and the end of the
/// connection.
fn converse(mut stream: TcpStream, peer: SocketAddr, pod: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let answer = line(pod, stream.local_addr()?, peer);
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(request) = lines.next().transpose()? {
        if request.starts_with("GET ") {
            // The header block must be read before closing: unread input would turn the close into
            // a reset.
            while lines.next().transpose()?.is_some_and(|header| !header.trim().is_empty()) {}
            return write!(
                stream,
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{answer}",
                answer.len()
            );
        }
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Answers datagrams until the socket is shut down, which reads as an empty datagram.
pub fn serve_udp(socket: UdpSocket, pod: &str) {
    let Ok(local) = socket.local_addr() else { return };
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((0, _)) => return,
            // A client that is gone is reported here as an error of the next call; neither ends the
            // service.
            Ok((_, peer)) => drop(socket.send_to(line(pod, local, peer).as_bytes(), peer)),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}
