//! UDP sockets of BFD (RFC 5881 sections 4 and 5, RFC 5883 section 5).

use super::ProcessError;
use crate::bfd::Key;
use crate::bfd::sessions::{PORT_MULTIHOP, PORT_SINGLE_HOP, TTL};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Longer than any packet of ours; what is longer is cut, and its length no longer fits.
pub const BUFFER: usize = 128;
/// DSCP CS6: network control.
const CS6: u8 = 0xc0;
/// RFC 5881 section 4: the range of source ports.
const FIRST_PORT: u16 = 49152;
/// A port may be somebody's: another is tried.
const TRIES: u32 = 64;

pub struct Listening {
    fd: OwnedFd,
    port: u16,
}

pub struct Received {
    pub length: usize,
    pub from: IpAddr,
    pub to: IpAddr,
    pub ifindex: u32,
    pub ttl: u8,
}

/// Both ports of both IP versions; a host without IPv6 does without.
pub fn listen_all() -> Result<Vec<Listening>, ProcessError> {
    let mut all = Vec::new();
    for port in [PORT_SINGLE_HOP, PORT_MULTIHOP] {
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            match listen(SocketAddr::new(any, port)) {
                Ok(fd) => all.push(Listening { fd, port }),
                Err(Errno::EADDRINUSE) => return Err(ProcessError::PortTaken { port }),
                Err(Errno::EAFNOSUPPORT) if any.is_ipv6() => {}
                Err(source) => return Err(ProcessError::Listen { port, source }),
            }
        }
    }
    Ok(all)
}

fn listen(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&fd, sockopt::Ipv4RecvTtl, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

impl Listening {
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn multihop(&self) -> bool {
        self.port == PORT_MULTIHOP
    }

    /// The next packet; None when there is no more, or none whose way is known.
    pub fn receive(&self, buffer: &mut [u8; BUFFER]) -> Option<Received> {
        let mut room = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())
                .ok()?;
        let from = message.address.as_ref().and_then(address)?;
        let (mut to, mut ttl) = (None, None);
        for control in message.cmsgs().ok()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    to = Some((IpAddr::V4(address), info.ipi_ifindex as u32));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    to = Some((IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)), info.ipi6_ifindex));
                }
                ControlMessageOwned::Ipv4Ttl(n) | ControlMessageOwned::Ipv6HopLimit(n) => {
                    ttl = u8::try_from(n).ok()
                }
                _ => {}
            }
        }
        let (to, ifindex) = to?;
        Some(Received { length: message.bytes, from, to, ifindex, ttl: ttl? })
    }
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = of.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| of.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// What a session sends by: made with its first packet, and anew when that fails.
#[derive(Default)]
pub struct Outgoing {
    socket: Option<UdpSocket>,
    /// Told already, until one goes out again.
    failing: bool,
}

impl Outgoing {
    /// # Errors
    /// Of several failures in a row only the first.
    pub fn send(&mut self, key: &Key, bytes: &[u8]) -> std::io::Result<()> {
        match self.try_send(key, bytes) {
            Ok(()) => self.failing = false,
            Err(error) => {
                // An address of ours that was taken away may come back on another interface.
                self.socket = None;
                if !std::mem::replace(&mut self.failing, true) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn try_send(&mut self, key: &Key, bytes: &[u8]) -> std::io::Result<()> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(open(key)?),
        };
        let port = if key.multihop.is_some() { PORT_MULTIHOP } else { PORT_SINGLE_HOP };
        let to = match (key.peer, key.ifindex) {
            (IpAddr::V6(peer), Some(ifindex)) => SocketAddr::V6(SocketAddrV6::new(peer, port, 0, ifindex)),
            (peer, _) => SocketAddr::new(peer, port),
        };
        socket.send_to(bytes, to).map(drop)
    }
}

fn open(key: &Key) -> std::io::Result<UdpSocket> {
    let any = if key.peer.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = bind_somewhere(key.local.unwrap_or(any), key.ifindex)?;
    socket.set_nonblocking(true)?;
    if key.peer.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6Ttl, &i32::from(TTL))?;
        setsockopt(&socket, sockopt::Ipv6TClass, &i32::from(CS6))?;
    } else {
        setsockopt(&socket, sockopt::Ipv4Ttl, &i32::from(TTL))?;
        setsockopt(&socket, sockopt::Ipv4Tos, &i32::from(CS6))?;
    }
    Ok(socket)
}

fn bind_somewhere(local: IpAddr, ifindex: Option<u32>) -> std::io::Result<UdpSocket> {
    let mut chance = RandomState::new().build_hasher().finish();
    let mut last = std::io::ErrorKind::AddrInUse.into();
    for _ in 0..TRIES {
        let port = FIRST_PORT + (chance % u64::from(u16::MAX - FIRST_PORT)) as u16;
        let address = match (local, ifindex) {
            (IpAddr::V6(local), Some(ifindex)) => SocketAddr::V6(SocketAddrV6::new(local, port, 0, ifindex)),
            (local, _) => SocketAddr::new(local, port),
        };
        match UdpSocket::bind(address) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => last = e,
            other => return other,
        }
        chance = chance.rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    Err(last)
}
