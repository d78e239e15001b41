//! What must become of a frame at a pod's hook, by `Compiled::evaluate` and a second reading of the bytes.

use super::reading::{Part, Reading, is_mapped, read};
use crate::packet::ip;
use bulkhead_ebpf_abi::{
    AUDIT_POLICY, Addr, DIR_EGRESS, DIR_INGRESS, DROP_FRAGMENT, DROP_FRAGMENT_TINY, DROP_MULTICAST,
    DROP_POLICY, DROP_SPOOFED_POD, DROP_UNKNOWN_ORIGIN, FLOW_CLOSING, FLOW_INITIATOR_LOW, FLOW_KEEP_EGRESS,
    FLOW_KEEP_INGRESS, FLOW_UNASKED, FlowKey, ID_WORLD, IDENTITY_LOCAL_NODE, ORIGIN_ITSELF, ORIGIN_NONE,
    ORIGIN_UNKNOWN, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, RULE_LOOPBACK, RULE_NONE, RULE_OWN_NODE, origin_of,
};
use bulkhead_policy::Compiled;
use std::collections::BTreeMap;

pub struct Pod {
    pub mac: [u8; 6],
    pub policy: u32,
    /// IPv4, IPv6.
    pub addresses: [Addr; 2],
    pub identities: [u32; 2],
}

/// What the entry of a passed packet's flow says.
#[derive(Debug, PartialEq)]
pub struct Admitted {
    pub key: FlowKey,
    pub dir: u32,
    pub rule: u32,
    pub origin: u16,
    pub service_port: u16,
    /// `FLOW_*` bits.
    pub flags: u8,
}

#[derive(Debug, PartialEq)]
pub enum Expected {
    /// Reason, rule.
    Drop(u8, u32),
    Pass {
        admitted: Option<Admitted>,
        /// Rule of a refusal that is only recorded.
        audited: Option<u32>,
    },
    /// A packet of a flow that other packets have made: not this test's matter.
    Known,
}

const PLAIN: Expected = Expected::Pass { admitted: None, audited: None };

/// How a first fragment passed.
#[derive(Clone, Copy)]
struct First {
    end: u16,
    ports: (u16, u16),
    icmp_type: u8,
    proto: u8,
}

/// An entry: which ends have decided.
struct Entry {
    decided: [bool; 2],
    initiator: Addr,
    unasked: bool,
}

pub struct Model<'a> {
    pub compiled: &'a Compiled,
    pub pods: [Pod; 2],
    flows: BTreeMap<FlowKey, Entry>,
    /// By source, destination, number, protocol (IPv4) and hook.
    firsts: BTreeMap<(Addr, Addr, u32, u8, u32), First>,
}

/// Source or destination seen from a pod: an identity, this node, or that very pod.
enum Peer {
    OwnNode,
    Itself,
    Unknown,
    Identity { id: u32, by_mark: bool },
}

impl<'a> Model<'a> {
    pub fn new(compiled: &'a Compiled, pods: [Pod; 2]) -> Self {
        Self { compiled, pods, flows: BTreeMap::new(), firsts: BTreeMap::new() }
    }

    /// Origin marks of everybody that the maps tell apart.
    pub fn identities(&self) -> Vec<u32> {
        let all = self.compiled.prefixes.values().chain(self.compiled.exact.values());
        all.map(|identity| origin_of(identity.id)).chain([ORIGIN_UNKNOWN]).collect()
    }

    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// The beginning of a packet of some flow of this pod's, as an error to it would quote it.
    pub fn quote(&self, choice: u64, own: Addr) -> Option<Vec<u8>> {
        let of_own: Vec<&FlowKey> = self.flows.keys().filter(|k| k.low == own || k.high == own).collect();
        let key = of_own.get(choice as usize % of_own.len().max(1))?;
        let ((src, src_port), (dst, dst_port)) = if key.low == own {
            ((key.low, key.low_port), (key.high, key.high_port))
        } else {
            ((key.high, key.high_port), (key.low, key.low_port))
        };
        let echo = match key.proto {
            PROTO_ICMP => Some(8),
            PROTO_ICMPV6 => Some(128),
            _ => None,
        };
        let (src, dst) = (src.to_ip().to_string(), dst.to_ip().to_string());
        let mut header = vec![0; 8];
        if let Some(kind) = echo {
            header[0] = kind;
            header[4..6].copy_from_slice(&src_port.to_be_bytes());
        } else {
            header[..2].copy_from_slice(&src_port.to_be_bytes());
            header[2..4].copy_from_slice(&dst_port.to_be_bytes());
        }
        let mut packet = ip(&src, &dst, key.proto, header);
        // As the sender of a long packet may have written it.
        if choice & 1 << 40 != 0 {
            packet.options = vec![1; 4];
            packet.extensions = vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (60, vec![1; 15])];
        }
        if choice & 3 << 40 == 3 << 40 {
            packet.payload.resize(16, 0);
            packet.fragment = src.contains(':').then_some((7, 0, true));
        }
        Some(packet.network())
    }

    /// At the hook of a pod, with the origin mark it comes with (into a pod), and the pod at whose interface it came in.
    pub fn expect(
        &mut self,
        pod: usize,
        dir: u32,
        frame: &[u8],
        origin: u32,
        from: Option<usize>,
    ) -> Expected {
        let mut reading = match read(frame) {
            Ok(reading) => reading,
            Err(reason) => return Expected::Drop(reason, RULE_NONE),
        };
        let early = if dir == DIR_EGRESS { self.leaving(pod, &reading) } else { entering(&reading, origin) };
        if let Some(end) = early {
            return end;
        }
        let piece =
            (reading.src, reading.dst, reading.fragment_id, if reading.v6 { 0 } else { reading.proto }, dir);
        if let Part::Later(start) = reading.part {
            let Some(first) = self.firsts.get(&piece) else {
                return Expected::Drop(DROP_FRAGMENT, RULE_NONE);
            };
            if start < first.end {
                return Expected::Drop(DROP_FRAGMENT_TINY, RULE_NONE);
            }
            (reading.ports, reading.icmp_type, reading.proto) = (first.ports, first.icmp_type, first.proto);
        }
        let peer = self.peer(pod, dir, &reading, origin, from);
        let end = self.connection(pod, dir, &reading, frame, peer);
        if let (Part::First(end), Expected::Pass { .. }) = (reading.part, &end) {
            let Reading { ports, icmp_type, proto, .. } = reading;
            self.firsts.insert(piece, First { end, ports, icmp_type, proto });
        }
        end
    }

    /// What is settled before a connection is looked for.
    fn leaving(&self, pod: usize, reading: &Reading) -> Option<Expected> {
        let pod = &self.pods[pod];
        let link_control = is_link_control(reading);
        let own = pod.addresses[usize::from(reading.v6)];
        let from_link = link_control && (is_link_local(reading.src) || reading.src == Addr::default());
        if reading.src_mac != pod.mac || !(reading.src == own || from_link) {
            return Some(Expected::Drop(DROP_SPOOFED_POD, RULE_NONE));
        }
        if link_control {
            return Some(PLAIN);
        }
        is_multicast(reading.dst).then_some(Expected::Drop(DROP_MULTICAST, RULE_NONE))
    }

    fn connection(&mut self, pod: usize, dir: u32, r: &Reading, frame: &[u8], peer: Peer) -> Expected {
        let keyless = r.is_icmp() && r.echo().is_none();
        if keyless && r.is_error() && r.quoted(frame).is_some_and(|key| self.flows.contains_key(&key)) {
            return PLAIN;
        }
        if !keyless && let Some(entry) = self.flows.get(&r.key()) {
            let other_end = entry.initiator == r.src && !entry.decided[dir as usize] && !entry.unasked;
            if !other_end {
                return if matches!(r.part, Part::Later(_)) { PLAIN } else { Expected::Known };
            }
            // Begun by a stranger under the pod's own address, of which no network carries a packet to a pod's hook.
            if matches!(peer, Peer::Itself) {
                return Expected::Known;
            }
        }
        let (audited, rule, keep) = match self.ask(pod, dir, &peer, r) {
            Ok(answer) => answer,
            Err(drop) => {
                if !keyless {
                    self.flows.remove(&r.key());
                }
                return drop;
            }
        };
        if keyless || r.echo() == Some(false) {
            return Expected::Pass { admitted: None, audited };
        }
        let unasked = matches!(peer, Peer::OwnNode | Peer::Itself);
        let entry =
            self.flows.entry(r.key()).or_insert(Entry { decided: [false; 2], initiator: r.src, unasked });
        entry.decided[dir as usize] = !unasked;
        let admitted = Admitted {
            key: r.key(),
            dir: if unasked { DIR_INGRESS } else { dir },
            rule,
            origin: match peer {
                Peer::Unknown => ORIGIN_UNKNOWN as u16,
                Peer::Itself => ORIGIN_ITSELF as u16,
                Peer::Identity { id, by_mark: true } => id as u16,
                _ => 0,
            },
            service_port: r.service_port(),
            flags: flags(r, dir, keep, unasked),
        };
        Expected::Pass { admitted: Some(admitted), audited }
    }

    /// The rule of a refusal that is only recorded; the rule; Keep.
    fn ask(
        &self,
        pod: usize,
        dir: u32,
        peer: &Peer,
        r: &Reading,
    ) -> Result<(Option<u32>, u32, bool), Expected> {
        let identity = match peer {
            Peer::OwnNode => return Ok((None, RULE_OWN_NODE, false)),
            Peer::Itself => return Ok((None, RULE_LOOPBACK, false)),
            Peer::Unknown => ID_WORLD,
            Peer::Identity { id, .. } => *id,
        };
        let decision =
            self.compiled.evaluate(self.pods[pod].policy, dir, identity, r.proto, r.service_port());
        let known = !matches!(peer, Peer::Unknown) || decision.open;
        if known && decision.allowed {
            return Ok((None, decision.rule, decision.keep));
        }
        let (reason, named) =
            if known { (DROP_POLICY, decision.rule) } else { (DROP_UNKNOWN_ORIGIN, RULE_NONE) };
        if decision.audit {
            return Ok((Some(named), decision.rule, decision.keep));
        }
        Err(Expected::Drop(reason, named))
    }

    fn peer(&self, pod: usize, dir: u32, r: &Reading, origin: u32, from: Option<usize>) -> Peer {
        let itself =
            if dir == DIR_EGRESS { r.src == r.dst } else { from == Some(pod) && origin != ORIGIN_NONE };
        if itself {
            return Peer::Itself;
        }
        if dir == DIR_EGRESS {
            return Peer::Identity { id: self.identity(r.dst).0, by_mark: false };
        }
        // It came in, and nobody marked it.
        let origin = if origin == ORIGIN_NONE && from.is_some() { ORIGIN_UNKNOWN } else { origin };
        let of_pod = self.pods.iter().any(|pod| pod.addresses.contains(&r.src));
        match self.identity(r.src) {
            (id, false) if of_pod && origin == ORIGIN_UNKNOWN && origin_of(id) != ORIGIN_UNKNOWN => {
                Peer::Unknown
            }
            (id, false) => Peer::Identity { id, by_mark: false },
            (_, true) => match origin {
                ORIGIN_NONE => Peer::OwnNode,
                ORIGIN_UNKNOWN => Peer::Unknown,
                id => Peer::Identity { id, by_mark: true },
            },
        }
    }

    /// And whether it is this node's own address.
    fn identity(&self, address: Addr) -> (u32, bool) {
        let own = self.pods.iter().flat_map(|p| p.addresses.into_iter().zip(p.identities));
        if let Some((_, id)) = own.into_iter().find(|(a, _)| *a == address) {
            return (id, false);
        }
        let identity = self.compiled.identity(address.to_ip());
        (identity.id, identity.flags & IDENTITY_LOCAL_NODE != 0)
    }
}

fn flags(r: &Reading, dir: u32, keep: bool, unasked: bool) -> u8 {
    let keep = match (keep, dir) {
        (false, _) => 0,
        (true, DIR_INGRESS) => FLOW_KEEP_INGRESS,
        (true, _) => FLOW_KEEP_EGRESS,
    };
    let closing = r.proto == PROTO_TCP && r.tcp_flags & 5 != 0;
    let low = r.key().low == r.src && (r.src != r.dst || r.ports.0 <= r.ports.1);
    keep | if unasked { FLOW_UNASKED } else { 0 }
        | if closing { FLOW_CLOSING } else { 0 }
        | if low { FLOW_INITIATOR_LOW } else { 0 }
}

fn entering(r: &Reading, origin: u32) -> Option<Expected> {
    let discovery = r.proto == PROTO_ICMPV6
        && match r.icmp_type {
            133..=137 => r.hop_limit == 255,
            130..=132 | 143 => is_link_local_multicast(r.dst),
            _ => false,
        };
    (origin == ORIGIN_NONE && discovery).then_some(PLAIN)
}

fn is_link_control(r: &Reading) -> bool {
    r.proto == PROTO_ICMPV6
        && matches!(r.icmp_type, 133..=137 | 131 | 132 | 143)
        && (is_link_local(r.dst) || is_link_local_multicast(r.dst))
}

fn is_link_local(addr: Addr) -> bool {
    addr.0[0] == 0xfe && addr.0[1] & 0xc0 == 0x80
}

fn is_link_local_multicast(addr: Addr) -> bool {
    addr.0[0] == 0xff && addr.0[1] == 2
}

fn is_multicast(addr: Addr) -> bool {
    if is_mapped(addr) {
        return addr.0[12] >> 4 == 0xe || addr.0[12..] == [255; 4];
    }
    addr.0[0] == 0xff
}

/// `AUDIT_POLICY` for a refusal that passes.
pub const AUDITED: u8 = AUDIT_POLICY;
