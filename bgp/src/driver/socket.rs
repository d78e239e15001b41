//! TCP sockets with the options that BGP wants: no Nagle delay, DSCP CS6 (RFC 4594 section 3.2).

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// CS6, network control, in the upper six bits.
const CS6: i32 = 48 << 2;

/// How long the last octets of a closed connection may take.
const LINGER: Duration = Duration::from_secs(1);

const BACKLOG: u32 = 64;

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark(&socket, address.ip())?;
    Ok(socket)
}

fn mark(socket: &impl AsFd, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Tos, &CS6)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6TClass, &CS6)?,
    }
    Ok(())
}

/// A socket that takes over the port from a process that has just ended, but not from one that runs.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // IPv4 has a socket of its own.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

pub(super) async fn dial(peer: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = new_socket(peer)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    let stream = socket.connect(peer).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Options of a stream that a listener gave.
pub(super) fn accepted(stream: &TcpStream) -> io::Result<()> {
    mark(stream, stream.local_addr()?.ip())?;
    stream.set_nodelay(true)
}

/// Sends what is left and closes. Waits for the other end to close, for a moment: octets of it that nobody
/// reads would make the kernel reset the connection, and the NOTIFICATION would be lost.
pub(super) async fn finish(mut stream: TcpStream, rest: Vec<u8>) {
    let farewell = async {
        stream.write_all(&rest).await?;
        stream.shutdown().await?;
        let mut ignored = [0; 4096];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the peer took it changes nothing any more.
    let _ = timeout(LINGER, farewell).await;
}
