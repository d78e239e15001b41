//! Just enough parsing to say who sent what to whom: IP headers, ports, echo. Never trusts a length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

/// The outermost headers of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Upper-layer protocol; IPv6 extension headers count as one.
    pub protocol: u8,
    /// What follows the IP header.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    pub fn ipv4(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let length = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 || length < 20 {
            return None;
        }
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12).into(),
            destination: address(16).into(),
            protocol: header[9],
            payload: bytes.get(length..)?,
        })
    }

    pub fn ipv6(bytes: &'a [u8]) -> Option<Self> {
        let (header, payload) = bytes.split_first_chunk::<40>()?;
        let address = |at: usize| header[at..at + 16].first_chunk::<16>().map(|a| Ipv6Addr::from(*a));
        Some(Self {
            source: address(8)?.into(),
            destination: address(24)?.into(),
            protocol: header[6],
            payload,
        })
    }

    /// Of an Ethernet frame with an IP packet in it.
    pub fn ethernet(frame: &'a [u8]) -> Option<Self> {
        match ethertype(frame)? {
            ETHERTYPE_IPV4 => Self::ipv4(&frame[14..]),
            ETHERTYPE_IPV6 => Self::ipv6(&frame[14..]),
            _ => None,
        }
    }

    /// Source and destination port, of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        matches!(self.protocol, TCP | UDP).then(|| ports(self.payload)).flatten()
    }
}

pub fn ethertype(frame: &[u8]) -> Option<u16> {
    frame.get(12..14).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// The first four bytes of a TCP or UDP header.
pub fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let b = segment.first_chunk::<4>()?;
    Some((u16::from_be_bytes([b[0], b[1]]), u16::from_be_bytes([b[2], b[3]])))
}

/// An ICMP or ICMPv6 echo request without its checksum (RFC 792, RFC 4443).
pub fn echo_request(kind: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(data);
    message
}

/// RFC 1071.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_to_zero() {
        let mut message = echo_request(8, 7, b"odd");
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn a_frame_shorter_than_its_headers_is_none() {
        let mut frame = vec![0; 14 + 20];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x46;
        assert_eq!(Packet::ethernet(&frame), None, "the header says 24 bytes");
        assert_eq!(Packet::ipv6(&[0x60; 39]), None);
    }
}
