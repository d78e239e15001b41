//! Random frames: mostly what a network carries, some of it in pieces, cut or broken.

use super::{objects, random::Random};
use crate::packet::{ICMP, ICMPV6, Packet, SCTP, SYN, TCP, UDP, ip};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a frame may go and come from.
pub struct Site<'a> {
    pub own: IpAddr,
    pub own_mac: [u8; 6],
    pub sends: bool,
    /// Addresses that rules speak of one by one, and the other pod's.
    pub known: &'a [IpAddr],
    /// Ports that have a name at whoever is called.
    pub named: &'a [u16],
}

/// One frame, or the fragments of one datagram. `serial` makes a flow the first of its kind; `about` is an earlier
/// packet that an ICMP error may quote.
pub fn frames(random: &mut Random, site: &Site<'_>, serial: u16, about: Option<&[u8]>) -> Vec<Vec<u8>> {
    let packet = packet(random, site, serial, about);
    if random.percent(12) && packet.payload.len() > 16 {
        return fragments(random, &packet, serial);
    }
    let mut frame = packet.frame();
    match random.below(20) {
        0 => cut(random, &mut frame),
        1 => shorten(random, &mut frame),
        2 | 3 => flip(random, &mut frame),
        4 => frame.extend({
            let length = 1 + random.below(40);
            random.bytes(length)
        }),
        _ => {}
    }
    vec![frame]
}

fn packet(random: &mut Random, site: &Site<'_>, serial: u16, about: Option<&[u8]>) -> Packet {
    let peer = peer(random, site);
    let (src, dst) = if site.sends { (site.own, peer) } else { (peer, site.own) };
    let src = if site.sends && random.percent(2) { objects::address(random, src.is_ipv6()) } else { src };
    let (proto, payload) = payload(random, site, serial, about);
    let mut packet = ip(&src.to_string(), &dst.to_string(), proto, payload);
    packet.src_mac = if random.percent(1) { [2; 6] } else { site.own_mac };
    packet.hop_limit = random.pick(&[1, 64, 64, 255]);
    if random.percent(20) {
        let length = random.below(11) * 4;
        packet.options = random.bytes(length);
    }
    if random.percent(40) {
        let most = if random.percent(10) { 12 } else { 4 };
        packet.extensions = (0..random.below(most)).map(|_| extension(random)).collect();
    }
    packet
}

fn peer(random: &mut Random, site: &Site<'_>) -> IpAddr {
    let v6 = site.own.is_ipv6();
    if random.percent(3) {
        let multicast =
            (Ipv4Addr::new(239, 1, 1, 1).into(), Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 1).into());
        return if v6 { multicast.1 } else { multicast.0 };
    }
    let known: Vec<IpAddr> = site.known.iter().copied().filter(|a| a.is_ipv6() == v6).collect();
    if !known.is_empty() && random.percent(30) { random.pick(&known) } else { objects::address(random, v6) }
}

/// Number and bytes behind its first.
fn extension(random: &mut Random) -> (u8, Vec<u8>) {
    let number = random.pick(&[0, 43, 60, 51]);
    let units = random.below(3);
    let (length, field) = if number == 51 { (units * 8 + 8, units * 2) } else { (units * 8 + 8, units) };
    let mut rest = random.bytes(length - 1);
    // Now and then it says more than there is.
    rest[0] = if random.percent(2) { 200 } else { field as u8 };
    (number, rest)
}

fn port(random: &mut Random, named: &[u16]) -> u16 {
    match random.below(100) {
        0..=24 if !named.is_empty() => random.pick(named),
        0..=84 => objects::port(random),
        _ => random.next() as u16,
    }
}

fn payload(random: &mut Random, site: &Site<'_>, serial: u16, about: Option<&[u8]>) -> (u8, Vec<u8>) {
    let v6 = site.own.is_ipv6();
    let mut bytes = {
        let length = 20 + random.below(80);
        random.bytes(length)
    };
    bytes[..2].copy_from_slice(&serial.to_be_bytes());
    bytes[2..4].copy_from_slice(&port(random, site.named).to_be_bytes());
    let icmp = if v6 { ICMPV6 } else { ICMP };
    match random.below(100) {
        0..=44 => {
            if random.percent(40) {
                bytes[13] = SYN;
            }
            (TCP, bytes)
        }
        45..=64 => (UDP, bytes),
        65..=72 => (SCTP, bytes),
        73..=82 => {
            bytes[0] = random.pick(if v6 { &[128, 128, 129] } else { &[8, 8, 0] });
            bytes[4..6].copy_from_slice(&serial.to_be_bytes());
            (icmp, bytes)
        }
        83..=87 => (icmp, bytes),
        88..=91 => {
            bytes[0] = random.pick(if v6 { &[1, 2, 3, 4] } else { &[3, 11, 12, 5] });
            bytes.truncate(8);
            bytes.extend(about.unwrap_or_default());
            (icmp, bytes)
        }
        92..=93 => (if v6 { ICMP } else { ICMPV6 }, bytes),
        _ => (random.next() as u8, bytes),
    }
}

/// In order; now and then one goes missing, or begins within the one before.
fn fragments(random: &mut Random, packet: &Packet, serial: u16) -> Vec<Vec<u8>> {
    let mut whole = packet.clone();
    whole.options.clear();
    whole.payload.extend(vec![0; 60]);
    if whole.src.is_ipv6() && random.percent(20) {
        // A header of the chain within the part that is cut to pieces.
        whole.payload = [vec![whole.proto, 0, 1, 4, 0, 0, 0, 0], whole.payload].concat();
        whole.proto = 60;
    }
    let first = if random.percent(15) { 8 } else { 32 + 8 * random.below(3) };
    let second = if random.percent(10) { 8 } else { first };
    let mut parts = vec![whole.fragment(serial, 0, first)];
    if random.percent(90) {
        parts.push(whole.fragment(serial, second, first + 8));
    }
    parts.push(whole.fragment(serial, first + 8, whole.payload.len()));
    if random.percent(10) {
        parts.remove(0);
    }
    parts.iter().map(Packet::frame).collect()
}

/// Ends before it says so, but not within its IP header: a test-run takes no such packet (`interfaces` sends some).
fn cut(random: &mut Random, frame: &mut Vec<u8>) {
    let header = if frame[12] == 0x86 { 54 } else { 34 };
    frame.truncate(header + random.below(frame.len() - header + 1));
}

/// Ends early, and its length fields agree.
fn shorten(random: &mut Random, frame: &mut Vec<u8>) {
    let v6 = frame[12] == 0x86;
    let header = if v6 { 54 } else { 34 };
    frame.truncate(header + random.below(frame.len() - header + 1));
    let (at, length) = if v6 { (18, frame.len() - 54) } else { (16, frame.len() - 14) };
    frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
}

/// Some bytes become others.
fn flip(random: &mut Random, frame: &mut [u8]) {
    for _ in 0..1 + random.below(3) {
        // Headers matter most.
        let at = 12 + random.below(frame.len().min(80) - 12);
        frame[at] = random.next() as u8;
    }
}
