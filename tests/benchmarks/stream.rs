//! Throughput of one established TCP connection, client to pod or pod to client.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::{Lab, VIP, pod};

/// Which way the bytes flow, seen from the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client sends.
    Upload,
    /// The pod sends.
    Download,
}

/// Gb/s over about `period`, through the VIP's port 81 or straight to a pod; and the source address
/// that the pod saw.
pub fn gigabits(
    lab: &Lab,
    direct: bool,
    direction: Direction,
    period: Duration,
) -> Result<(f64, IpAddr), String> {
    let failed = |what: &'static str| move |e: std::io::Error| format!("stream, {what}: {e}");
    let listener =
        lab.pods.enter(|| TcpListener::bind(("0.0.0.0", 9000))).map_err(failed("listen"))?;
    let target = if direct { (pod(0), 9000) } else { (VIP, 81) };
    let connect = || TcpStream::connect_timeout(&target.into(), Duration::from_secs(3));
    let client = lab.client.enter(connect).map_err(failed("connect"))?;
    let (pod, source) = listener.accept().map_err(failed("accept"))?;
    let (from, to) = if direction == Direction::Upload { (client, pod) } else { (pod, client) };
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || send(from, period));
        let (received, took) = receive(to).map_err(failed("receive"))?;
        sender
            .join()
            .map_err(|_| "stream: the sender panicked".to_string())?
            .map_err(failed("send"))?;
        Ok((received as f64 * 8.0 / took.as_secs_f64() / 1e9, source.ip()))
    })
}

fn send(mut socket: TcpStream, period: Duration) -> std::io::Result<()> {
    let block = vec![0x5e; 256 << 10];
    let end = Instant::now() + period;
    while Instant::now() < end {
        socket.write_all(&block)?;
    }
    Ok(())
}

fn receive(mut socket: TcpStream) -> std::io::Result<(u64, Duration)> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut block = vec![0; 256 << 10];
    let (mut total, start) = (0, Instant::now());
    loop {
        match socket.read(&mut block)? {
            0 => return Ok((total, start.elapsed())),
            n => total += n as u64,
        }
    }
}
