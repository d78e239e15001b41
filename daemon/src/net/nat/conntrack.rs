//! Connections that the node's stack has to forget when a host port comes or goes. Pure.
//!
//! A flow that the stack knows is translated as its first packet was, so a client that sends datagrams from one port would
//! never reach a pod that came later, and go on to the address of one that is gone. TCP begins anew by itself.

use super::{
    HostPort,
    expression::family,
    wire::{self, Attributes, CONNTRACK, Message},
};
use bulkhead_api::messages::PortProtocol;
use netlink_packet_core::NLM_F_DUMP;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

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
/// Of addresses: of IPv4, of IPv6.
const SOURCE: [u16; 2] = [1, 3];
const DESTINATION: [u16; 2] = [2, 4];
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

    /// Whether flows to it go on as they began.
    pub fn concerns_flows(&self) -> bool {
        self.port().protocol != PortProtocol::Tcp
    }

    /// The request to forget this flow, if it is of those: one to the port that was translated to the pod that is gone, or one to
    /// the port of the node that nothing has translated so far. `local`: the node's addresses; what goes to none of them passes by.
    pub fn forget(&self, flow: &[u8], local: &BTreeSet<IpAddr>) -> Option<Message> {
        let (original, reply) = (wire::find(flow, ORIGINAL)?, wire::find(flow, REPLY)?);
        let HostPort { address, protocol, port } = self.port();
        let called = wire::find(original, PROTOCOL)?;
        if wire::find(called, NUMBER)? != [protocol.number()]
            || wire::find(called, DESTINATION_PORT)? != port.to_be_bytes()
        {
            return None;
        }
        let at = |tuple, kinds: [u16; 2]| -> Option<IpAddr> {
            let octets = wire::find(wire::find(tuple, ADDRESSES)?, kinds[usize::from(self.v6())])?;
            if let Ok(v4) = <[u8; 4]>::try_from(octets) {
                return Some(v4.into());
            }
            <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
        };
        let is_of_those = match self {
            Self::Gone(_, pod) => at(reply, SOURCE)? == *pod,
            Self::Come(_) => {
                let called = at(original, DESTINATION)?;
                let is_here = || called.is_loopback() || local.contains(&called);
                let is_the_ports = if address.is_unspecified() { is_here() } else { called == *address };
                is_the_ports && mirrors(original, reply)
            }
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

/// Asks for the flows of each family and protocol, once, and whom they may concern; of TCP none. (Not by address: of IPv6
/// kernels answer with all others.)
pub fn questions(changed: &[Changed]) -> Vec<(Message, Vec<&Changed>)> {
    let mut kinds: BTreeMap<_, Vec<&Changed>> = BTreeMap::new();
    for change in changed.iter().filter(|c| c.concerns_flows()) {
        kinds.entry((change.v6(), change.port().protocol)).or_default().push(change);
    }
    let question = |((v6, protocol), of_kind): ((bool, PortProtocol), Vec<_>)| {
        let ports: BTreeSet<u16> = of_kind.iter().map(|c: &&Changed| c.port().port).collect();
        let mut called = Attributes::new().bytes(NUMBER, &[protocol.number()]);
        let mut by = BY_PROTOCOL;
        // The kernel picks by one.
        if let (1, Some(port)) = (ports.len(), ports.first()) {
            called = called.bytes(DESTINATION_PORT, &port.to_be_bytes());
            by |= BY_DESTINATION_PORT;
        }
        // In the machine's order, for once.
        let filter = Attributes::new().bytes(1, &by.to_ne_bytes()).bytes(2, &0u32.to_ne_bytes());
        let attributes =
            Attributes::new().nest(FILTER, filter).nest(ORIGINAL, Attributes::new().nest(PROTOCOL, called));
        (Message::new(CONNTRACK, GET, family(v6), NLM_F_DUMP, attributes), of_kind)
    };
    kinds.into_iter().map(question).collect()
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
        let local = BTreeSet::from([node.into()]);
        for (changed, forgotten, kept) in [(gone, &translated, &plain), (come, &plain, &translated)] {
            assert!(changed.forget(forgotten.as_bytes(), &local).is_some());
            assert_eq!(changed.forget(kept.as_bytes(), &local), None);
        }
        // To somebody else, another port, another protocol, another address of the node.
        assert_eq!(come.forget(plain.as_bytes(), &BTreeSet::new()), None);
        for other in [
            HostPort { port: 54, ..port },
            HostPort { protocol: PortProtocol::Sctp, ..port },
            HostPort { address: "192.0.2.2".parse().unwrap(), ..port },
        ] {
            assert_eq!(Changed::Come(other).forget(plain.as_bytes(), &local), None);
        }
        let of_address = Changed::Come(HostPort { address: node.into(), ..port });
        assert!(of_address.forget(plain.as_bytes(), &BTreeSet::new()).is_some());
    }

    #[test]
    fn the_kernel_is_asked_once_for_each_protocol_and_family() {
        let of = |address: &str, protocol, port| {
            Changed::Come(HostPort { address: address.parse().unwrap(), protocol, port })
        };
        let changed = [
            of("0.0.0.0", PortProtocol::Udp, 53),
            of("192.0.2.1", PortProtocol::Udp, 54),
            of("::", PortProtocol::Udp, 53),
            of("0.0.0.0", PortProtocol::Sctp, 53),
            of("0.0.0.0", PortProtocol::Tcp, 80),
        ];
        let mut asked: Vec<_> = questions(&changed).iter().map(|(_, of_kind)| of_kind.len()).collect();
        asked.sort_unstable();
        assert_eq!(asked, [1, 1, 2]);
        assert_eq!(questions(&changed[4..]), []);
    }
}
