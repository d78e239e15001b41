//! TCP sockets with the options that BGP wants: no Nagle delay, DSCP CS6 (RFC 4594 section 3.2), and for
//! peers that have them configured a distance (RFC 5082) and a password (RFC 2385).

use super::config::{Password, Ttl};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// CS6, network control, in the upper six bits.
const CS6: i32 = 48 << 2;

/// How long the last octets of a closed connection may take: what has not been taken by then is lost.
const LINGER: Duration = Duration::from_secs(1);

const BACKLOG: u32 = 64;

/// Linux: keys for all addresses of a prefix.
const TCP_MD5SIG_EXT: i32 = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
const IPV6_MINHOPCOUNT: i32 = 73;
/// Linux: a listener keeps the headers of the segments that begin connections, and each connection tells its own once.
const TCP_SAVE_SYN: i32 = 27;
const TCP_SAVED_SYN: i32 = 28;
/// Of IPv4 and of TCP with all their options; more than of IPv6 without extensions.
const LONGEST_SYN: usize = 60 + 60;

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
    // Answers to a peer that looks at the distance must come from nearby, before it is known who it is.
    set_ttl(&socket, address.ip(), Ttl::Fixed(u8::MAX))?;
    set_raw(&socket, libc::IPPROTO_TCP, TCP_SAVE_SYN, &1i32.to_ne_bytes())?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How one end of a connection to a peer is to be.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub from: Option<IpAddr>,
    pub ttl: Ttl,
    pub password: Option<Password>,
}

pub(super) async fn dial(peer: SocketAddr, options: Options) -> io::Result<TcpStream> {
    let socket = new_socket(peer)?;
    if let Some(from) = options.from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    set_ttl(&socket, peer.ip(), options.ttl)?;
    if let Some(password) = &options.password {
        set_password(&socket, peer.ip(), host_length(peer.ip()), Some(password))?;
    }
    let stream = socket.connect(peer).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Options of a stream that a listener gave, before it is known whose it is.
pub(super) fn accepted(stream: &TcpStream) -> io::Result<()> {
    mark(stream, stream.local_addr()?.ip())?;
    stream.set_nodelay(true)
}

/// Of one that turned out to be a peer's.
pub(super) fn set_ttl(socket: &(impl AsFd + AsRawFd), address: IpAddr, ttl: Ttl) -> io::Result<()> {
    let (sent, least) = match ttl {
        Ttl::System => return Ok(()),
        Ttl::Fixed(value) => (value, None),
        Ttl::Security(hops) => (u8::MAX, Some(least(hops))),
    };
    let sent = i32::from(sent);
    match address {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4Ttl, &sent)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6Ttl, &sent)?,
    }
    let Some(least) = least else { return Ok(()) };
    let least = i32::from(least).to_ne_bytes();
    match address {
        IpAddr::V4(_) => set_raw(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &least),
        IpAddr::V6(_) => set_raw(socket, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &least),
    }
}

fn least(hops: u8) -> u8 {
    u8::MAX - hops.saturating_sub(1)
}

/// Whether a stream that a listener gave was begun from as near as its peer must be. To be asked after [`set_ttl`]: what has come
/// between the two has not been looked at, but only who began the connection can have sent it. Where the kernel has not kept how that
/// was (it answers by SYN cookies when it is flooded), nothing may have come so far: all that is read later is looked at.
pub(super) fn is_near(stream: &TcpStream, ttl: Ttl) -> io::Result<bool> {
    let Ttl::Security(hops) = ttl else { return Ok(true) };
    let mut syn = [0; LONGEST_SYN];
    let length = get_raw(stream, libc::IPPROTO_TCP, TCP_SAVED_SYN, &mut syn)?;
    // Where IPv4 has its TTL, and IPv6 its hop limit.
    let ttl = match syn[..length].first().map(|version| version >> 4) {
        Some(4) => syn[8],
        Some(6) => syn[7],
        _ => return has_said_nothing(stream),
    };
    Ok(ttl >= least(hops))
}

fn has_said_nothing(stream: &TcpStream) -> io::Result<bool> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Err(Errno::EAGAIN) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn host_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The key for peers of a prefix; `None` takes it away. Linux refuses to take away what is not there.
pub(super) fn set_password(
    socket: &impl AsRawFd,
    address: IpAddr,
    length: u8,
    password: Option<&Password>,
) -> io::Result<()> {
    let key = password.map(Password::octets).unwrap_or_default();
    set_raw(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &md5_option(address, length, key))
}

/// `struct tcp_md5sig` of linux/tcp.h: a sockaddr in 128 octets, flags, prefix length, key length, interface,
/// key in 80 octets.
fn md5_option(address: IpAddr, length: u8, key: &[u8]) -> [u8; 216] {
    let mut option = [0; 216];
    match address {
        IpAddr::V4(address) => {
            option[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            option[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            option[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            option[8..24].copy_from_slice(&address.octets());
        }
    }
    let key = &key[..key.len().min(Password::MAX_LEN)];
    option[128..130].copy_from_slice(&[TCP_MD5SIG_FLAG_PREFIX, length]);
    option[130..132].copy_from_slice(&(key.len() as u16).to_ne_bytes());
    option[136..136 + key.len()].copy_from_slice(key);
    option
}

pub(super) fn set_raw(socket: &impl AsRawFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the kernel reads `length` octets of `value`, which live until the call returns; it keeps nothing.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(result)?;
    Ok(())
}

/// How much of `value` the kernel has written.
fn get_raw(socket: &impl AsRawFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    let to = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` octets to `value`, and their number to `length`; both live until it returns.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, to, &raw mut length) };
    Errno::result(result)?;
    Ok((length as usize).min(value.len()))
}

/// Resets the connection: to the other end it is as if nobody had listened.
pub(super) fn refuse(stream: TcpStream) {
    // It closes all the same.
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Sends what is left and closes. Waits for the other end to close, for a moment: octets of it that nobody
/// reads would make the kernel reset the connection, and the NOTIFICATION would be lost. Whether all of it arrived.
pub(super) async fn finish(mut stream: TcpStream, rest: Vec<u8>) -> bool {
    let mut written = false;
    let farewell = async {
        stream.write_all(&rest).await?;
        stream.shutdown().await?;
        written = true;
        let mut ignored = [0; 4096];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // However it ended: what was acknowledged has arrived.
    let _ = timeout(LINGER, farewell).await;
    // The end of the stream counts for one.
    written && unacknowledged(&stream).is_ok_and(|octets| octets <= 1)
}

fn unacknowledged(stream: &TcpStream) -> io::Result<libc::c_int> {
    let mut octets: libc::c_int = 0;
    // SAFETY: the kernel writes an int to `octets`, which lives until the call returns.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut octets) };
    Errno::result(result)?;
    Ok(octets)
}
