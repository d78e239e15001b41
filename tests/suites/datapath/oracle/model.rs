//! What must become of a frame at a hook, by `Compiled::evaluate` and a second reading of the bytes.

use super::{
    outcome::{Admitted, Outcome, PODS, Place, Way, refusal},
    reading::{
        ETHERNET, Part, Reading, addresses, is_link_control, is_link_local, is_link_local_multicast,
        is_multicast, read,
    },
    roads::Ranges,
};
use crate::packet::ip;
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    AUDIT_POLICY, Addr, DIR_EGRESS, DIR_INGRESS, DROP_FRAGMENT, DROP_FRAGMENT_TINY, DROP_MULTICAST,
    DROP_POLICY, DROP_SPOOFED_POD, DROP_SPOOFED_UPLINK, DROP_UNKNOWN_ORIGIN, DropKey, FLOW_CLOSING,
    FLOW_INITIATOR_LOW, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED, FlowKey, ID_WORLD,
    IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD, Identity, ORIGIN_ITSELF, ORIGIN_NONE, ORIGIN_UNKNOWN,
    PATH_DIRECT, PATH_STACK, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, RULE_LOOPBACK, RULE_NONE,
    RULE_OWN_NODE, origin_of,
};
use bulkhead_policy::Compiled;
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Pod {
    pub mac: [u8; 6],
    pub policy: u32,
    /// IPv4, IPv6.
    pub addresses: [Addr; 2],
    pub identities: [u32; 2],
    /// It has a limit: whatever it sends and gets passes the stack.
    pub paced: bool,
    pub mtu: u16,
}

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
    direct: bool,
}

/// How a packet came to the hook, or would leave it.
#[derive(Clone, Copy, PartialEq)]
enum Via {
    Stack,
    /// To this pod of the node.
    Local(usize),
    Remote,
}

/// What one end says: the refusal that is only recorded, the rule, Keep.
type Answer = (Option<DropKey>, u32, bool);

pub struct Model<'a> {
    pub compiled: &'a Compiled,
    pub pods: [Pod; 2],
    /// Of whom nothing translates the addresses.
    pub untranslated: Ranges,
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
    pub fn new(compiled: &'a Compiled, pods: [Pod; 2], untranslated: Ranges) -> Self {
        Self { compiled, pods, untranslated, flows: BTreeMap::new(), firsts: BTreeMap::new() }
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

    /// None: of a flow that other packets have made, which is `follow`'s matter.
    pub fn expect(&mut self, at: Place, frame: &[u8]) -> Option<Outcome> {
        match at.hook {
            Hook::FromPod => self.at_pod(at, DIR_EGRESS, frame),
            Hook::ToPod => self.at_pod(at, DIR_INGRESS, frame),
            Hook::FromUplink => self.at_uplink(frame),
            Hook::ToUplink => None,
        }
    }

    fn at_pod(&mut self, at: Place, dir: u32, frame: &[u8]) -> Option<Outcome> {
        let (pod, policy) = (at.pod, self.pods[at.pod].policy);
        let dropped = |reason| Some(Outcome::dropped(refusal(reason, RULE_NONE, policy, dir)));
        let mut reading = match read(frame) {
            Ok(reading) => reading,
            Err(reason) => return dropped(reason),
        };
        let marked = match dir {
            DIR_EGRESS => origin_of(self.pods[pod].identities[usize::from(reading.v6)]),
            _ => at.origin,
        };
        let early =
            if dir == DIR_EGRESS { self.leaving(pod, &reading) } else { entering(&reading, at.origin) };
        match early {
            Some(Ok(())) => return Some(Outcome { origin: marked, ..Outcome::stack() }),
            Some(Err(reason)) => return dropped(reason),
            None => {}
        }
        let piece =
            (reading.src, reading.dst, reading.fragment_id, if reading.v6 { 0 } else { reading.proto }, dir);
        if let Part::Later(start) = reading.part {
            let Some(first) = self.firsts.get(&piece) else { return dropped(DROP_FRAGMENT) };
            if start < first.end {
                return dropped(DROP_FRAGMENT_TINY);
            }
            (reading.ports, reading.icmp_type, reading.proto) = (first.ports, first.icmp_type, first.proto);
        }
        let via = if dir == DIR_EGRESS { self.via(pod, &reading) } else { Via::Stack };
        let peer = self.peer(&at, dir, &reading);
        let outcome = self.connection(pod, dir, via, &reading, frame, peer)?;
        if let Part::First(end) = reading.part
            && outcome.way != Way::Dropped
        {
            let Reading { ports, icmp_type, proto, .. } = reading;
            self.firsts.insert(piece, First { end, ports, icmp_type, proto });
        }
        Some(Outcome { origin: marked, ..outcome })
    }

    /// Only what begins a direct connection, or belongs to one, is judged here.
    fn at_uplink(&mut self, frame: &[u8]) -> Option<Outcome> {
        let Ok(Reading { src, dst, .. }) = addresses(frame) else {
            return Some(Outcome { origin: ORIGIN_UNKNOWN, ..Outcome::stack() });
        };
        let who = self.who(src);
        if who.flags & (IDENTITY_LOCAL_NODE | IDENTITY_LOCAL_POD) != 0 {
            return Some(Outcome::dropped(refusal(DROP_SPOOFED_UPLINK, RULE_NONE, 0, DIR_INGRESS)));
        }
        let on = Outcome { origin: origin_of(who.id), ..Outcome::stack() };
        let to = self.pod_at(dst).filter(|pod| !self.pods[*pod].paced);
        let (Some(pod), Ok(r)) = (to, read(frame)) else { return Some(on) };
        if !r.is_plain() {
            return Some(on);
        }
        if is_keyless(&r) {
            let direct = self.quoted(&r, frame) == Some(true);
            let way = if direct { self.straight(pod, &r, frame) } else { Way::Stack };
            return Some(Outcome { way, ..on });
        }
        if let Some(entry) = self.flows.get(&r.key()) {
            return (!entry.direct && !r.begins()).then_some(on);
        }
        if r.proto == PROTO_UDP || !r.begins() || !self.untranslated.contains(src) {
            return Some(on);
        }
        let peer = Peer::Identity { id: who.id, by_mark: false };
        let answer = match self.ask(pod, DIR_INGRESS, &peer, &r) {
            Ok(answer) => answer,
            Err(drop) => return Some(Outcome::dropped(drop)),
        };
        let entry = Entry { decided: [false, true], initiator: src, unasked: false, direct: true };
        self.flows.insert(r.key(), entry);
        Some(Outcome {
            way: self.straight(pod, &r, frame),
            counted: answer.0.into_iter().collect(),
            admitted: vec![admitted(&r, DIR_INGRESS, &peer, &answer, true)],
            ..on
        })
    }

    /// What is settled before a connection is looked for: passed, or the reason to drop it.
    fn leaving(&self, pod: usize, reading: &Reading) -> Option<Result<(), u8>> {
        let pod = &self.pods[pod];
        let link_control = is_link_control(reading);
        let own = pod.addresses[usize::from(reading.v6)];
        let from_link = link_control && (is_link_local(reading.src) || reading.src == Addr::default());
        if reading.src_mac != pod.mac || !(reading.src == own || from_link) {
            return Some(Err(DROP_SPOOFED_POD));
        }
        if link_control {
            return Some(Ok(()));
        }
        is_multicast(reading.dst).then_some(Err(DROP_MULTICAST))
    }

    fn via(&self, pod: usize, r: &Reading) -> Via {
        if !r.is_plain() || self.pods[pod].paced {
            return Via::Stack;
        }
        match self.pod_at(r.dst) {
            None => Via::Remote,
            Some(to) if to != pod && !self.pods[to].paced => Via::Local(to),
            Some(_) => Via::Stack,
        }
    }

    /// Would a readable packet of the pod go to the other one past the stack?
    pub fn is_straight(&self, pod: usize, r: &Reading) -> bool {
        matches!(self.via(pod, r), Via::Local(_)) && r.begins()
    }

    /// Of a packet that need not pass the stack: the stack answers where its hops are at an end, or it is too long.
    fn straight(&self, to: usize, r: &Reading, frame: &[u8]) -> Way {
        let fits = frame.len() - ETHERNET <= usize::from(self.pods[to].mtu);
        if r.hop_limit > 1 && fits { Way::Straight } else { Way::Stack }
    }

    /// Does an error speak of a connection, and is that direct?
    fn quoted(&self, r: &Reading, frame: &[u8]) -> Option<bool> {
        let key = r.quoted(frame).filter(|_| r.is_error())?;
        self.flows.get(&key).map(|entry| entry.direct)
    }

    fn connection(
        &mut self,
        pod: usize,
        dir: u32,
        via: Via,
        r: &Reading,
        frame: &[u8],
        peer: Peer,
    ) -> Option<Outcome> {
        let keyless = is_keyless(r);
        if keyless && let Some(direct) = self.quoted(r, frame) {
            let way = match via {
                Via::Local(to) if direct => self.straight(to, r, frame),
                _ => Way::Stack,
            };
            return Some(Outcome { way, ..Outcome::stack() });
        }
        if !keyless && let Some(entry) = self.flows.get(&r.key()) {
            let other_end = entry.initiator == r.src && !entry.decided[dir as usize] && !entry.unasked;
            if !other_end {
                return matches!(r.part, Part::Later(_)).then(Outcome::stack);
            }
            // Begun by a stranger under the pod's own address, of which no network carries a packet to a pod's hook.
            if matches!(peer, Peer::Itself) || via != Via::Stack {
                return None;
            }
        }
        let answer = match self.ask(pod, dir, &peer, r) {
            Ok(answer) => answer,
            Err(drop) => {
                if !keyless {
                    self.flows.remove(&r.key());
                }
                return Some(Outcome::dropped(drop));
            }
        };
        let counted = Vec::from_iter(answer.0);
        if keyless || r.echo() == Some(false) {
            return Some(Outcome { counted, ..Outcome::stack() });
        }
        let unasked = matches!(peer, Peer::OwnNode | Peer::Itself);
        let direct = r.begins()
            && match via {
                Via::Stack => false,
                Via::Local(_) => true,
                Via::Remote => self.untranslated.contains(r.dst),
            };
        let mut outcome =
            Outcome { counted, admitted: vec![admitted(r, dir, &peer, &answer, direct)], ..Outcome::stack() };
        let mut decided = [false; 2];
        if let (Via::Local(to), true) = (via, direct) {
            // Both ends are asked before there is an entry.
            let sender = Peer::Identity { id: self.who(r.src).id, by_mark: false };
            match self.ask(to, DIR_INGRESS, &sender, r) {
                Ok(answer) => {
                    outcome.counted.extend(answer.0);
                    outcome.admitted.push(admitted(r, DIR_INGRESS, &sender, &answer, true));
                }
                Err(drop) => {
                    outcome.counted.push(drop);
                    return Some(Outcome { way: Way::Dropped, admitted: Vec::new(), ..outcome });
                }
            }
            outcome.way = self.straight(to, r, frame);
            decided[DIR_INGRESS as usize] = true;
        }
        let entry = self.flows.entry(r.key()).or_insert(Entry { decided, initiator: r.src, unasked, direct });
        entry.decided[dir as usize] = !unasked;
        Some(outcome)
    }

    /// Or the refusal.
    fn ask(&self, pod: usize, dir: u32, peer: &Peer, r: &Reading) -> Result<Answer, DropKey> {
        let identity = match peer {
            Peer::OwnNode => return Ok((None, RULE_OWN_NODE, false)),
            Peer::Itself => return Ok((None, RULE_LOOPBACK, false)),
            Peer::Unknown => ID_WORLD,
            Peer::Identity { id, .. } => *id,
        };
        let policy = self.pods[pod].policy;
        let decision = self.compiled.evaluate(policy, dir, identity, r.proto, r.service_port());
        let known = !matches!(peer, Peer::Unknown) || decision.open;
        if known && decision.allowed {
            return Ok((None, decision.rule, decision.keep));
        }
        let (reason, named) =
            if known { (DROP_POLICY, decision.rule) } else { (DROP_UNKNOWN_ORIGIN, RULE_NONE) };
        if decision.audit {
            return Ok((Some(refusal(AUDIT_POLICY, named, policy, dir)), decision.rule, decision.keep));
        }
        Err(refusal(reason, named, policy, dir))
    }

    fn peer(&self, at: &Place, dir: u32, r: &Reading) -> Peer {
        let itself = if dir == DIR_EGRESS {
            r.src == r.dst
        } else {
            at.from == Some(PODS[at.pod]) && at.origin != ORIGIN_NONE
        };
        if itself {
            return Peer::Itself;
        }
        if dir == DIR_EGRESS {
            return Peer::Identity { id: self.who(r.dst).id, by_mark: false };
        }
        // It came in, and nobody marked it.
        let origin = if at.origin == ORIGIN_NONE && at.from.is_some() { ORIGIN_UNKNOWN } else { at.origin };
        let Identity { id, flags } = self.who(r.src);
        if flags & IDENTITY_LOCAL_NODE == 0 {
            let strange =
                self.pod_at(r.src).is_some() && origin == ORIGIN_UNKNOWN && origin_of(id) != ORIGIN_UNKNOWN;
            return if strange { Peer::Unknown } else { Peer::Identity { id, by_mark: false } };
        }
        match origin {
            ORIGIN_NONE => Peer::OwnNode,
            ORIGIN_UNKNOWN => Peer::Unknown,
            id => Peer::Identity { id, by_mark: true },
        }
    }

    pub fn pod_at(&self, address: Addr) -> Option<usize> {
        self.pods.iter().position(|pod| pod.addresses.contains(&address))
    }

    pub fn who(&self, address: Addr) -> Identity {
        let own = self.pods.iter().flat_map(|p| p.addresses.into_iter().zip(p.identities));
        match own.into_iter().find(|(a, _)| *a == address) {
            Some((_, id)) => Identity { id, flags: IDENTITY_LOCAL_POD },
            None => self.compiled.identity(address.to_ip()),
        }
    }
}

/// ICMP but for echo is of no connection.
fn is_keyless(r: &Reading) -> bool {
    r.is_icmp() && r.echo().is_none()
}

fn admitted(r: &Reading, dir: u32, peer: &Peer, answer: &Answer, direct: bool) -> Admitted {
    let (_, rule, keep) = *answer;
    let unasked = matches!(peer, Peer::OwnNode | Peer::Itself);
    Admitted {
        key: r.key(),
        dir: if unasked { DIR_INGRESS } else { dir },
        rule,
        origin: match peer {
            Peer::Unknown => ORIGIN_UNKNOWN as u16,
            Peer::Itself => ORIGIN_ITSELF as u16,
            Peer::Identity { id, by_mark: true } => *id as u16,
            _ => 0,
        },
        service_port: r.service_port(),
        flags: flags(r, dir, keep, unasked),
        path: if direct { PATH_DIRECT } else { PATH_STACK },
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

fn entering(r: &Reading, origin: u32) -> Option<Result<(), u8>> {
    let discovery = r.proto == PROTO_ICMPV6
        && match r.icmp_type {
            133..=137 => r.hop_limit == 255,
            130..=132 | 143 => is_link_local_multicast(r.dst),
            _ => false,
        };
    (origin == ORIGIN_NONE && discovery).then_some(Ok(()))
}
