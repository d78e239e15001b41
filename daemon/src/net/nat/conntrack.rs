//! Connections that the node's stack has to forget when a host port comes or goes. Pure.
//!
//! A flow that the stack knows is translated as its first packet was, so a client that sends datagrams from one port would
//! never reach a pod that came later, and go on to the address of one that is gone. TCP begins anew by itself.

use super::{
    HostPort,
    expression::{family, octets},
    wire::{self, Attributes, CONNTRACK, Message},
};
use bulkhead_api::messages::PortProtocol;
use netlink_packet_core::NLM_F_DUMP;
use std::net::IpAddr;

pub const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Of a tuple.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// Of addresses.
const V4_SOURCE: u16 = 1;
const V6_SOURCE: u16 = 3;
/// Of a protocol.
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// `CTA_FILTER_F_*`.
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// And the pod's address that it led to.
    Gone(HostPort, IpAddr),
    Come(HostPort),
}

impl Changed {
    fn port(&self) -> &HostPort {
        match self {
            Self::Gone(port, _) | Self::Come(port) => port,
        }
    }

    fn v6(&self) -> bool {
        self.port().address.is_ipv6()
    }

    /// Asks for the flows to the port; none where none goes on as it began. (Not by address: of IPv6 kernels answer with all
    /// others.)
    pub fn dump(&self) -> Option<Message> {
        let HostPort { protocol, port, .. } = self.port();
        if *protocol == PortProtocol::Tcp {
            return None;
        }
        let of_port = Attributes::new()
            .bytes(NUMBER, &[protocol.number()])
            .bytes(DESTINATION_PORT, &port.to_be_bytes());
        let filter = Attributes::new().bytes(1, &(BY_PROTOCOL | BY_DESTINATION_PORT).to_ne_bytes());
        // In the machine's order, for once.
        let filter = filter.bytes(2, &0u32.to_ne_bytes());
        let attributes =
            Attributes::new().nest(FILTER, filter).nest(ORIGINAL, Attributes::new().nest(PROTOCOL, of_port));
        Some(Message::new(CONNTRACK, GET, family(self.v6()), NLM_F_DUMP, attributes))
    }

    /// The request to forget this flow, if it is of those: one that was translated to the pod that is gone, or one that
    /// nothing has translated so far.
    pub fn forget(&self, flow: &[u8]) -> Option<Message> {
        let (original, reply) = (wire::find(flow, ORIGINAL)?, wire::find(flow, REPLY)?);
        let is_of_those = match self {
            Self::Gone(_, pod) => {
                let kind = if self.v6() { V6_SOURCE } else { V4_SOURCE };
                wire::find(wire::find(reply, ADDRESSES)?, kind)? == octets(*pod)
            }
            Self::Come(_) => mirrors(original, reply),
        };
        if !is_of_those {
            return None;
        }
        let mut named = Attributes::new().bytes(ORIGINAL | netlink_packet_core::NLA_F_NESTED, original);
        for kind in [ZONE, ID] {
            if let Some(value) = wire::find(flow, kind) {
                named = named.bytes(kind, value);
            }
        }
        Some(Message::new(CONNTRACK, DELETE, family(self.v6()), 0, named))
    }
}

/// Whether the answers come from whom was called, and go to who called.
fn mirrors(original: &[u8], reply: &[u8]) -> bool {
    let of = |tuple, kind, inner| wire::find(wire::find(tuple, kind)?, inner);
    let ends = [(1, 2), (2, 1), (3, 4), (4, 3)];
    let ports = [(2, 3), (3, 2)];
    ends.iter().all(|(a, b)| of(original, ADDRESSES, *a) == of(reply, ADDRESSES, *b))
        && ports.iter().all(|(a, b)| of(original, PROTOCOL, *a) == of(reply, PROTOCOL, *b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: [u8; 4], destination: [u8; 4], ports: (u16, u16)) -> Attributes {
        let addresses = Attributes::new().bytes(1, &source).bytes(2, &destination);
        let protocol = Attributes::new().bytes(1, &[17]).bytes(2, &ports.0.to_be_bytes());
        let protocol = protocol.bytes(3, &ports.1.to_be_bytes());
        Attributes::new().nest(ADDRESSES, addresses).nest(PROTOCOL, protocol)
    }

    #[test]
    fn only_what_the_change_concerns_is_forgotten() {
        let (client, node, pod) = ([192, 0, 2, 9], [192, 0, 2, 1], [10, 64, 0, 1]);
        let flow = |reply| {
            Attributes::new()
                .nest(ORIGINAL, tuple(client, node, (999, 53)))
                .nest(REPLY, reply)
                .bytes(ID, &[1, 2, 3, 4])
        };
        let plain = flow(tuple(node, client, (53, 999)));
        let translated = flow(tuple(pod, client, (5353, 999)));
        let address = "0.0.0.0".parse().unwrap();
        let port = HostPort { address, protocol: PortProtocol::Udp, port: 53 };
        let (gone, come) = (Changed::Gone(port, pod.into()), Changed::Come(port));
        for (changed, forgotten, kept) in [(gone, &translated, &plain), (come, &plain, &translated)] {
            assert!(changed.forget(forgotten.as_bytes()).is_some());
            assert_eq!(changed.forget(kept.as_bytes()), None);
            assert!(changed.dump().is_some());
        }
        assert_eq!(Changed::Come(HostPort { protocol: PortProtocol::Tcp, ..port }).dump(), None);
    }
}
