//! SCTP by its packets: the kernels that the lab runs on may have no sockets of it. What is shown so is who gets a packet, with
//! which addresses and ports, and whether the answer finds its way back; not that two stacks agree.

use crate::{Netns, Result, until};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockaddrStorage, bind, recvfrom, sendto},
};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

const ARRIVES: Duration = Duration::from_secs(5);
/// Common header and one such chunk.
const CHUNK: usize = 32;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// One end, in a namespace. It hears every SCTP packet that comes there.
pub struct Raw {
    socket: OwnedFd,
    v6: bool,
}

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub from: IpAddr,
    pub source: u16,
    pub destination: u16,
    pub is_answer: bool,
    /// The caller's own port, whatever has become of it on the way: its initiate tag (RFC 9260, section 3.3.2).
    pub caller: u16,
}

impl Raw {
    /// `own`: the address that it speaks from, and hears at.
    pub fn open(netns: &Netns, v6: bool, own: Option<IpAddr>) -> Result<Self> {
        let socket = netns.run(|| {
            let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
            // SAFETY: no memory is handed over; what is returned is checked, and nobody else's.
            let fd = unsafe {
                libc::socket(family as i32, libc::SOCK_RAW | libc::SOCK_NONBLOCK, libc::IPPROTO_SCTP)
            };
            Errno::result(fd)?;
            // SAFETY: as above.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            if let Some(own) = own {
                bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
            }
            Ok(socket)
        })?;
        Ok(Self { socket, v6 })
    }

    /// Asks for an association.
    pub fn call(&self, source: u16, to: SocketAddr) -> Result<()> {
        self.send(to.ip(), &chunk(INIT, (source, to.port()), 0, source))
    }

    /// Grants it, to whom it was heard from.
    pub fn answer(&self, call: &Heard) -> Result<()> {
        let ports = (call.destination, call.source);
        self.send(call.from, &chunk(INIT_ACK, ports, call.caller, call.caller))
    }

    fn send(&self, to: IpAddr, packet: &[u8]) -> Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(self.socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// The next one, if there is one.
    pub fn heard(&self) -> Result<Option<Heard>> {
        let mut buffer = [0; 256];
        let (length, from) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // Of IPv4 the header comes with it.
        let header = if self.v6 { 0 } else { usize::from(buffer[0] & 15) * 4 };
        let Some(octets) = buffer.get(header..length).filter(|octets| octets.len() >= CHUNK) else {
            return Ok(None);
        };
        let number = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        let v4 = from.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::from(a.ip()));
        let v6 = from.as_ref().and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::from(a.ip()));
        Ok(v4.or(v6).map(|from| Heard {
            from,
            source: number(0),
            destination: number(2),
            is_answer: octets[12] == INIT_ACK,
            caller: number(18),
        }))
    }

    /// The next one.
    pub fn receive(&self) -> Result<Heard> {
        until("an SCTP packet comes", ARRIVES, || self.heard())
    }
}

/// A packet of one INIT or INIT ACK chunk (RFC 9260, sections 3.3.2 and 3.3.3).
fn chunk(kind: u8, (source, destination): (u16, u16), tag: u16, initiate: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(CHUNK);
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    packet.extend(u32::from(tag).to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0, 0, 20]);
    // Initiate tag, window, streams out and in, first number.
    packet.extend(u32::from(initiate).to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn crc32c(octets: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !octets.iter().fold(!0, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), step))
}
