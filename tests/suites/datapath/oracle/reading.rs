//! A second reading of a frame: plain slices, in the order in which a packet is refused.

use crate::packet::{ACK, SYN};
use bulkhead_ebpf_abi::{
    Addr, DROP_FRAGMENT_TINY, DROP_MALFORMED, DROP_NOT_IP, DROP_TRUNCATED, FlowKey, PROTO_ICMP, PROTO_ICMPV6,
    PROTO_SCTP, PROTO_TCP, PROTO_UDP,
};

pub const ETHERNET: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Bytes of the datagram it holds.
    First(u16),
    /// Its first byte's place in the datagram.
    Later(u16),
}

#[derive(Clone, Debug)]
pub struct Reading {
    pub v6: bool,
    pub src_mac: [u8; 6],
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    pub ports: (u16, u16),
    pub icmp_type: u8,
    pub tcp_flags: u8,
    pub hop_limit: u8,
    pub part: Part,
    pub fragment_id: u32,
    /// IPv4 options, or another extension header than the fragment's.
    pub extended: bool,
    /// Where the transport header begins, and the packet ends.
    pub transport: usize,
    end: usize,
}

fn short(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn v4_addr(bytes: &[u8]) -> Addr {
    Addr::v4(bytes.try_into().expect("four bytes"))
}

fn v6_addr(bytes: &[u8]) -> Addr {
    Addr(bytes.try_into().expect("sixteen bytes"))
}

pub fn is_mapped(addr: Addr) -> bool {
    addr.0[..12] == Addr::v4([0; 4]).0[..12]
}

/// What the frame says, or the reason to drop it.
pub fn read(frame: &[u8]) -> Result<Reading, u8> {
    let mut reading = addresses(frame)?;
    if reading.v6 {
        extensions(frame, &mut reading)?;
    }
    transport(frame, &mut reading)?;
    Ok(reading)
}

/// The same of the IP header alone.
pub fn addresses(frame: &[u8]) -> Result<Reading, u8> {
    match short(frame, 12) {
        0x0800 => v4(frame),
        0x86dd => v6(frame),
        _ => Err(DROP_NOT_IP),
    }
}

fn v4(frame: &[u8]) -> Result<Reading, u8> {
    let ip = &frame[ETHERNET..];
    if ip.len() < 20 {
        return Err(DROP_TRUNCATED);
    }
    let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(short(ip, 2)));
    if ip[0] >> 4 != 4 || header < 20 || total < header || total > ip.len() {
        return Err(DROP_MALFORMED);
    }
    let place = short(ip, 6);
    let (start, more) = ((place & 0x1fff) * 8, place & 0x2000 != 0);
    Ok(Reading {
        v6: false,
        src_mac: frame[6..12].try_into().expect("six bytes"),
        src: v4_addr(&ip[12..16]),
        dst: v4_addr(&ip[16..20]),
        proto: ip[9],
        ports: (0, 0),
        icmp_type: 0,
        tcp_flags: 0,
        hop_limit: ip[8],
        part: part(start, more, total - header)?,
        fragment_id: u32::from(short(ip, 4)),
        extended: header > 20,
        transport: ETHERNET + header,
        end: ETHERNET + total,
    })
}

fn part(start: u16, more: bool, length: usize) -> Result<Part, u8> {
    if start == 0 && !more {
        return Ok(Part::Whole);
    }
    let end = usize::from(start) + length;
    if length == 0 || end > 65_535 || (more && !length.is_multiple_of(8)) {
        return Err(DROP_MALFORMED);
    }
    Ok(if start == 0 { Part::First(end as u16) } else { Part::Later(start) })
}

fn v6(frame: &[u8]) -> Result<Reading, u8> {
    let ip = &frame[ETHERNET..];
    if ip.len() < 40 {
        return Err(DROP_TRUNCATED);
    }
    let (src, dst) = (v6_addr(&ip[8..24]), v6_addr(&ip[24..40]));
    let total = 40 + usize::from(short(ip, 4));
    if ip[0] >> 4 != 6 || total > ip.len() || is_mapped(src) || is_mapped(dst) {
        return Err(DROP_MALFORMED);
    }
    Ok(Reading {
        v6: true,
        src_mac: frame[6..12].try_into().expect("six bytes"),
        src,
        dst,
        proto: ip[6],
        ports: (0, 0),
        icmp_type: 0,
        tcp_flags: 0,
        hop_limit: ip[7],
        part: Part::Whole,
        fragment_id: 0,
        extended: false,
        transport: ETHERNET + 40,
        end: ETHERNET + total,
    })
}

/// At most seven of them.
fn extensions(frame: &[u8], reading: &mut Reading) -> Result<(), u8> {
    let mut walked = 0;
    while [0, 43, 44, 51, 60].contains(&reading.proto) {
        walked += 1;
        let at = reading.transport;
        if at + 8 > reading.end {
            return Err(cut_short(reading));
        }
        let (kind, length) = (reading.proto, usize::from(frame[at + 1]));
        reading.extended |= kind != 44;
        reading.proto = frame[at];
        reading.transport += match kind {
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        if kind == 44 {
            fragment_header(frame, at, reading)?;
            if matches!(reading.part, Part::Later(_)) {
                return Ok(());
            }
        }
        if walked == 8 {
            return Err(DROP_MALFORMED);
        }
    }
    Ok(())
}

fn fragment_header(frame: &[u8], at: usize, reading: &mut Reading) -> Result<(), u8> {
    let (start, more) = (short(frame, at + 2) & 0xfff8, frame[at + 3] & 1 != 0);
    if start == 0 && !more {
        return Ok(());
    }
    if reading.part != Part::Whole {
        return Err(DROP_MALFORMED);
    }
    reading.part = part(start, more, reading.end - reading.transport)?;
    reading.fragment_id = u32::from(short(frame, at + 4)) << 16 | u32::from(short(frame, at + 6));
    Ok(())
}

fn cut_short(reading: &Reading) -> u8 {
    if matches!(reading.part, Part::First(_)) { DROP_FRAGMENT_TINY } else { DROP_TRUNCATED }
}

fn transport(frame: &[u8], reading: &mut Reading) -> Result<(), u8> {
    if matches!(reading.part, Part::Later(_)) {
        return Ok(());
    }
    let needed = match reading.proto {
        PROTO_TCP => 20,
        PROTO_SCTP => 12,
        PROTO_UDP | PROTO_ICMP | PROTO_ICMPV6 => 8,
        _ => 0,
    };
    if reading.transport + needed > reading.end {
        return Err(cut_short(reading));
    }
    let header = &frame[reading.transport..reading.end];
    (reading.ports, reading.icmp_type) = ports(reading.proto, header);
    if reading.proto == PROTO_TCP {
        reading.tcp_flags = header[13];
    }
    Ok(())
}

/// And the ICMP type. Of echo the identifier, twice.
fn ports(proto: u8, header: &[u8]) -> ((u16, u16), u8) {
    match proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => ((short(header, 0), short(header, 2)), 0),
        PROTO_ICMP | PROTO_ICMPV6 => {
            let id = if echo(proto, header[0]).is_some() { short(header, 4) } else { 0 };
            ((id, id), header[0])
        }
        _ => ((0, 0), 0),
    }
}

/// Of an echo whether it is the request.
fn echo(proto: u8, kind: u8) -> Option<bool> {
    match (proto, kind) {
        (PROTO_ICMP, 8) | (PROTO_ICMPV6, 128) => Some(true),
        (PROTO_ICMP, 0) | (PROTO_ICMPV6, 129) => Some(false),
        _ => None,
    }
}

impl Reading {
    /// Whole, its transport header right behind the addresses: what the stack may be passed by with.
    pub fn is_plain(&self) -> bool {
        self.part == Part::Whole && self.transport == ETHERNET + if self.v6 { 40 } else { 20 }
    }

    /// Does it begin a connection, for sure? Of datagrams the client's is sent from the higher port.
    pub fn begins(&self) -> bool {
        match self.proto {
            PROTO_TCP => self.is_syn(),
            PROTO_UDP => self.ports.0 > self.ports.1,
            _ => self.echo() == Some(true),
        }
    }

    pub fn is_syn(&self) -> bool {
        self.proto == PROTO_TCP && self.tcp_flags & (SYN | ACK) == SYN
    }

    pub fn is_icmp(&self) -> bool {
        matches!(self.proto, PROTO_ICMP | PROTO_ICMPV6)
    }

    pub fn echo(&self) -> Option<bool> {
        echo(self.proto, self.icmp_type)
    }

    pub fn is_error(&self) -> bool {
        match self.proto {
            PROTO_ICMP => [3, 11, 12].contains(&self.icmp_type),
            PROTO_ICMPV6 => (1..=4).contains(&self.icmp_type),
            _ => false,
        }
    }

    /// What rules compare.
    pub fn service_port(&self) -> u16 {
        if self.is_icmp() { u16::from(self.icmp_type) } else { self.ports.1 }
    }

    pub fn key(&self) -> FlowKey {
        key(self.src, self.dst, self.ports, self.proto)
    }

    /// The flow that an error speaks of, if it says so to its sender.
    pub fn quoted(&self, frame: &[u8]) -> Option<FlowKey> {
        let inner = frame.get(self.transport + 8..)?;
        let (src, dst, proto, at) = if self.v6 {
            let head = inner.get(..40).filter(|h| h[0] >> 4 == 6)?;
            let (proto, at) = behind_extensions(inner, head[6])?;
            (v6_addr(&head[8..24]), v6_addr(&head[24..40]), proto, at)
        } else {
            let whole = |h: &&[u8]| h[0] >> 4 == 4 && h[0] & 15 >= 5 && short(h, 6) & 0x1fff == 0;
            let head = inner.get(..20).filter(whole)?;
            (v4_addr(&head[12..16]), v4_addr(&head[16..20]), head[9], usize::from(head[0] & 15) * 4)
        };
        let header = inner.get(at..at + 8)?;
        let has_flow = !matches!(proto, PROTO_ICMP | PROTO_ICMPV6) || echo(proto, header[0]).is_some();
        (src == self.dst && has_flow).then(|| key(src, dst, ports(proto, header).0, proto))
    }
}

/// Protocol and place of the transport header in an IPv6 packet that may end anywhere; none of a later fragment.
fn behind_extensions(packet: &[u8], mut next: u8) -> Option<(u8, usize)> {
    let end = 40 + usize::from(short(packet, 4));
    let (mut at, mut in_pieces) = (40, false);
    for _ in 0..8 {
        if ![0, 43, 44, 51, 60].contains(&next) {
            return Some((next, at));
        }
        let header = packet.get(at..at + 8).filter(|_| at + 8 <= end)?;
        let length = usize::from(header[1]);
        at += match next {
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        let fragment = if next == 44 { short(header, 2) & 0xfff9 } else { 0 };
        if fragment != 0 {
            let is_first = fragment == 1 && !in_pieces && end > at && (end - at).is_multiple_of(8);
            in_pieces = is_first.then_some(true)?;
        }
        next = header[0];
    }
    None
}

fn key(src: Addr, dst: Addr, (src_port, dst_port): (u16, u16), proto: u8) -> FlowKey {
    let ((low, low_port), (high, high_port)) = {
        let ends = ((src, src_port), (dst, dst_port));
        if ends.0 <= ends.1 { ends } else { (ends.1, ends.0) }
    };
    FlowKey { low, high, low_port, high_port, proto, reserved: [0; 3] }
}

pub fn is_link_control(r: &Reading) -> bool {
    r.proto == PROTO_ICMPV6
        && matches!(r.icmp_type, 133..=137 | 131 | 132 | 143)
        && (is_link_local(r.dst) || is_link_local_multicast(r.dst))
}

pub fn is_link_local(addr: Addr) -> bool {
    addr.0[0] == 0xfe && addr.0[1] & 0xc0 == 0x80
}

pub fn is_link_local_multicast(addr: Addr) -> bool {
    addr.0[0] == 0xff && addr.0[1] == 2
}

pub fn is_multicast(addr: Addr) -> bool {
    if is_mapped(addr) {
        return addr.0[12] >> 4 == 0xe || addr.0[12..] == [255; 4];
    }
    addr.0[0] == 0xff
}
