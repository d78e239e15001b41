//! BMP, the BGP Monitoring Protocol (RFC 7854): what a collector is told of our sessions and of what they received.
//!
//! ```text
//!   Initiation ─▶ Peer Up ─▶ Route Monitoring … End-of-RIB ─▶ Route Monitoring, Statistics … ─▶ Peer Down ─▶ Termination
//! ```
//!
//! Values to bytes, no more: BMP goes one way, and a collector says nothing. Who connects, and what is left out when a
//! collector does not read, is the driver's. Route Monitoring is of Adj-RIB-In before any policy (L flag off); its UPDATEs
//! have AS numbers of four octets or of two, as the session has, which the A flag says.

mod tap;

pub use tap::{Tap, is_update};

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Version, length, type.
pub const HEADER_LEN: usize = 6;
const VERSION: u8 = 3;
/// Type, flags, distinguisher, address, AS number, router id, time.
const PEER_HEADER_LEN: usize = 42;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    RouteMonitoring = 0,
    Statistics = 1,
    PeerDown = 2,
    PeerUp = 3,
    Initiation = 4,
    Termination = 5,
}

/// The per-peer header (section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHeader {
    pub address: IpAddr,
    pub asn: u32,
    pub router_id: Ipv4Addr,
    /// UPDATEs have AS numbers of two octets (A flag).
    pub two_octet_as: bool,
    /// Since the Unix epoch.
    pub time: Duration,
}

/// What ended a session (section 4.9). NOTIFICATIONs are whole messages, with their header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// We ended it, and said so.
    LocalNotification(Vec<u8>),
    /// We ended it without a word, for the event of RFC 4271 section 8.1; 0: none of them.
    LocalEvent(u16),
    RemoteNotification(Vec<u8>),
    /// The connection was lost.
    RemoteClosed,
    /// It is no peer any more, or nothing is to be told of it.
    Deconfigured,
}

/// Section 4.8: counters wrap around, gauges do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// UPDATEs taken for withdrawals (RFC 7606).
    pub treated_as_withdraw: u32,
    /// Routes in Adj-RIB-In, of IPv4 and IPv6.
    pub routes: [u64; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Initiation {
        name: String,
        description: String,
    },
    /// Of the session that comes up: our end, ports, and the OPENs as they went over the wire.
    PeerUp {
        peer: PeerHeader,
        local: IpAddr,
        local_port: u16,
        remote_port: u16,
        sent: Vec<u8>,
        received: Vec<u8>,
    },
    /// A whole UPDATE, with its header; End-of-RIB as well.
    RouteMonitoring {
        peer: PeerHeader,
        update: Vec<u8>,
    },
    Statistics {
        peer: PeerHeader,
        statistics: Statistics,
    },
    PeerDown {
        peer: PeerHeader,
        reason: Reason,
    },
    /// Administratively closed.
    Termination {
        why: String,
    },
}

/// Information TLVs (sections 4.4 and 4.5).
mod information {
    pub const DESCRIPTION: u16 = 1;
    pub const NAME: u16 = 2;
    pub const TERMINATION_TEXT: u16 = 0;
    pub const TERMINATION_REASON: u16 = 1;
}

mod statistic {
    pub const ROUTES: u16 = 7;
    pub const ROUTES_OF_FAMILY: u16 = 9;
    pub const TREATED_AS_WITHDRAW: u16 = 11;
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match self {
            Message::Initiation { name, description } => {
                put_tlv(&mut body, information::DESCRIPTION, description.as_bytes());
                put_tlv(&mut body, information::NAME, name.as_bytes());
                Type::Initiation
            }
            Message::PeerUp { peer, local, local_port, remote_port, sent, received } => {
                peer.encode(&mut body);
                body.extend_from_slice(&sixteen(*local));
                for port in [local_port, remote_port] {
                    body.extend_from_slice(&port.to_be_bytes());
                }
                body.extend_from_slice(sent);
                body.extend_from_slice(received);
                Type::PeerUp
            }
            Message::RouteMonitoring { peer, update } => {
                peer.encode(&mut body);
                body.extend_from_slice(update);
                Type::RouteMonitoring
            }
            Message::Statistics { peer, statistics } => {
                peer.encode(&mut body);
                statistics.encode(&mut body);
                Type::Statistics
            }
            Message::PeerDown { peer, reason } => {
                peer.encode(&mut body);
                reason.encode(&mut body);
                Type::PeerDown
            }
            Message::Termination { why } => {
                put_tlv(&mut body, information::TERMINATION_TEXT, why.as_bytes());
                put_tlv(&mut body, information::TERMINATION_REASON, &0u16.to_be_bytes());
                Type::Termination
            }
        };
        let mut out = Vec::with_capacity(HEADER_LEN + body.len());
        out.push(VERSION);
        out.extend_from_slice(&((HEADER_LEN + body.len()) as u32).to_be_bytes());
        out.push(kind as u8);
        out.extend_from_slice(&body);
        out
    }
}

impl PeerHeader {
    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let start = out.len();
        // Global instance peer.
        out.push(0);
        out.push(flag(self.address.is_ipv6(), 0x80) | flag(self.two_octet_as, 0x20));
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&sixteen(self.address));
        out.extend_from_slice(&self.asn.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());
        out.extend_from_slice(&(self.time.as_secs() as u32).to_be_bytes());
        out.extend_from_slice(&self.time.subsec_micros().to_be_bytes());
        debug_assert_eq!(out.len() - start, PEER_HEADER_LEN);
    }
}

impl Reason {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Reason::LocalNotification(message) => {
                out.push(1);
                out.extend_from_slice(message);
            }
            Reason::LocalEvent(event) => {
                out.push(2);
                out.extend_from_slice(&event.to_be_bytes());
            }
            Reason::RemoteNotification(message) => {
                out.push(3);
                out.extend_from_slice(message);
            }
            Reason::RemoteClosed => out.push(4),
            Reason::Deconfigured => out.push(5),
        }
    }
}

impl Statistics {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&4u32.to_be_bytes());
        put_tlv(out, statistic::TREATED_AS_WITHDRAW, &self.treated_as_withdraw.to_be_bytes());
        put_tlv(out, statistic::ROUTES, &self.routes.iter().sum::<u64>().to_be_bytes());
        for (family, routes) in crate::Family::ALL.into_iter().zip(self.routes) {
            let value = [&family.afi().to_be_bytes()[..], &[family.safi()], &routes.to_be_bytes()].concat();
            put_tlv(out, statistic::ROUTES_OF_FAMILY, &value);
        }
    }
}

/// IPv4 addresses stand in the last four octets.
fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut out = [0; 16];
            out[12..].copy_from_slice(&address.octets());
            out
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// A value that is longer than a length can say is cut: it is text.
fn put_tlv(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
pub(crate) mod tests;
