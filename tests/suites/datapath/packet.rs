//! Packets, byte by byte.

use std::net::IpAddr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The host's side of every link.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Where every frame is sent to: the address of the interface that it comes in by.
pub const DST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

/// An IP packet in an Ethernet frame, before it is written out.
#[derive(Clone)]
pub struct Packet {
    pub src_mac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub proto: u8,
    pub hop_limit: u8,
    /// Raw, a multiple of 4 bytes (IPv4).
    pub options: Vec<u8>,
    /// (next header's number is written by us) number and bytes behind its first (IPv6).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Identification, offset in bytes, more.
    pub fragment: Option<(u16, u16, bool)>,
    /// From the transport header on.
    pub payload: Vec<u8>,
}

pub fn ip(src: &str, dst: &str, proto: u8, payload: Vec<u8>) -> Packet {
    Packet {
        src_mac: HOST_MAC,
        src: src.parse().expect("an address"),
        dst: dst.parse().expect("an address"),
        proto,
        hop_limit: 64,
        options: Vec::new(),
        extensions: Vec::new(),
        fragment: None,
        payload,
    }
}

pub fn tcp(src: (&str, u16), dst: (&str, u16), flags: u8) -> Packet {
    let mut header = vec![0; 20];
    header[0..2].copy_from_slice(&src.1.to_be_bytes());
    header[2..4].copy_from_slice(&dst.1.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    ip(src.0, dst.0, TCP, header)
}

pub fn udp(src: (&str, u16), dst: (&str, u16)) -> Packet {
    let mut header = vec![0; 8];
    header[0..2].copy_from_slice(&src.1.to_be_bytes());
    header[2..4].copy_from_slice(&dst.1.to_be_bytes());
    header[5] = 8;
    ip(src.0, dst.0, UDP, header)
}

pub fn sctp(src: (&str, u16), dst: (&str, u16)) -> Packet {
    let mut header = vec![0; 16];
    header[0..2].copy_from_slice(&src.1.to_be_bytes());
    header[2..4].copy_from_slice(&dst.1.to_be_bytes());
    ip(src.0, dst.0, SCTP, header)
}

/// ICMP or ICMPv6, by the addresses' family.
pub fn icmp(src: &str, dst: &str, kind: u8, id: u16, body: &[u8]) -> Packet {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(body);
    ip(src, dst, if src.contains(':') { ICMPV6 } else { ICMP }, message)
}

impl Packet {
    pub fn with_mac(mut self, mac: [u8; 6]) -> Self {
        self.src_mac = mac;
        self
    }

    pub fn hop_limit(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    pub fn payload(mut self, more: usize) -> Self {
        self.payload.extend(std::iter::repeat_n(0, more));
        self
    }

    /// UDP over either family (RFC 8200 section 8.1).
    pub fn checksum_udp(&mut self) {
        let mut covered = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => panic!("addresses of two families"),
        };
        covered.extend((self.payload.len() as u16).to_be_bytes());
        covered.extend([0, self.proto]);
        covered.extend(&self.payload);
        let sum = checksum(&covered);
        self.payload[6..8].copy_from_slice(&sum.to_be_bytes());
    }

    /// `self.payload[from..to]` as a fragment.
    pub fn fragment(&self, id: u16, from: usize, to: usize) -> Self {
        let mut part = self.clone();
        part.payload = self.payload[from..to].to_vec();
        part.fragment = Some((id, from as u16, to < self.payload.len()));
        part
    }

    /// The IP packet alone.
    pub fn network(&self) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.v4(src.octets(), dst.octets()),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.v6(src.octets(), dst.octets()),
            _ => panic!("addresses of two families"),
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        frame(self.src_mac, if self.src.is_ipv4() { 0x0800 } else { 0x86dd }, &self.network())
    }

    fn v4(&self, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + self.payload.len()) as u16;
        let mut raw = vec![0x40 | (header / 4) as u8, 0];
        raw.extend(total.to_be_bytes());
        let (id, offset, more) = self.fragment.unwrap_or_default();
        raw.extend(id.to_be_bytes());
        raw.extend(((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        raw.extend([self.hop_limit, self.proto, 0, 0]);
        raw.extend(src);
        raw.extend(dst);
        raw.extend(&self.options);
        let sum = checksum(&raw);
        raw[10..12].copy_from_slice(&sum.to_be_bytes());
        raw.extend(&self.payload);
        raw
    }

    fn v6(&self, src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        if let Some((id, offset, more)) = self.fragment {
            let mut rest = vec![0];
            rest.extend((offset | u16::from(more)).to_be_bytes());
            rest.extend(u32::from(id).to_be_bytes());
            headers.push((44, rest));
        }
        let mut next: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
        next.push(self.proto);
        let mut body = Vec::new();
        for ((_, rest), next) in headers.iter().zip(&next[1..]) {
            body.push(*next);
            body.extend(rest);
        }
        body.extend(&self.payload);
        let mut raw = vec![0x60, 0, 0, 0];
        raw.extend((body.len() as u16).to_be_bytes());
        raw.extend([next[0], self.hop_limit]);
        raw.extend(src);
        raw.extend(dst);
        raw.extend(body);
        raw
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn frame(src_mac: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut raw = DST_MAC.to_vec();
    raw.extend(src_mac);
    raw.extend(ethertype.to_be_bytes());
    raw.extend(payload);
    raw
}

pub fn arp(mac: [u8; 6], sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(sender_mac);
    body.extend(sender);
    body.extend([0; 6]);
    body.extend([169, 254, 1, 1]);
    frame(mac, 0x0806, &body)
}
