//! What begins: each end that is here is asked, and the entry made.

use super::{
    At, Key, Via,
    decide::{self, ask, peer_of_packet},
    path, table,
};
use crate::{counters, maps::CONNTRACK, origin, parse::Packet, policy::Answer, verdict::Verdict};
use bulkhead_ebpf_abi::{
    DIR_INGRESS, DROP_CONNTRACK_FULL, FLOW_INITIATOR_LOW, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED,
    FLOW_VERSION, Flow, PATH_DIRECT, PATH_STACK, RULE_NONE, TCP_FIN, TCP_RST,
};

/// From an uplink only what is direct is decided on here.
#[inline(always)]
pub fn begin(at: &At, packet: &Packet, key: &Key, from_low: bool, replaces: bool) -> Verdict {
    let direct = path::begins_direct(at, packet);
    if at.via == Via::Uplink && !direct {
        return Verdict::PASS;
    }
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let how = flag(from_low, FROM_LOW) | flag(replaces, REPLACES) | flag(direct, ON_DIRECT);
    let verdict = open(at, packet, key, how);
    match direct && verdict.passes() {
        true if at.via == Via::Local && !verdict.is_direct() => Verdict::SETTLED,
        true => Verdict::DIRECT,
        false => verdict,
    }
}

/// Of a new entry: the packet goes from low to high; another entry stands in its place; it takes the direct path.
const FROM_LOW: u32 = 1;
const REPLACES: u32 = 2;
const ON_DIRECT: u32 = 4;

/// Decides in the packet's direction and makes the entry. (Bits, because a function here has five arguments at most.)
#[inline(never)]
fn open(at: &At, packet: &Packet, key: &Key, how: u32) -> Verdict {
    let Some(draft) = table::draft(key) else { return Verdict::drop(DROP_CONNTRACK_FULL) };
    let peer = peer_of_packet(at, packet);
    let flow = &mut draft.flow;
    let kept_zero = flow.reserved;
    *flow = Flow {
        last_seen: counters::now(),
        generations: [0; 2],
        rules: [RULE_NONE; 2],
        packets: 1,
        bytes: u64::from(at.bytes),
        service_port: packet.service_port(),
        flags: if how & FROM_LOW != 0 { FLOW_INITIATOR_LOW } else { 0 },
        path: if how & ON_DIRECT != 0 { PATH_DIRECT } else { PATH_STACK },
        version: FLOW_VERSION,
        fin: packet.tcp_flags & (TCP_FIN | TCP_RST),
        origin: peer.origin(),
        owner: 0,
        serial: 0,
        tick: 0,
        begun: 1 << (at.dir & 1),
        cut: 0,
        fin_back: 0,
        padding: [0; 2],
        entered_by: 0,
        ring: 0,
        origin_turn: origin::turn(u32::from(peer.origin())),
        // Zero, and never anything else: see `Draft`.
        reserved: kept_zero,
    };
    if peer.is_unasked() {
        flow.flags |= FLOW_UNASKED;
        (flow.rules[1], flow.begun) = (peer.unasked_rule(), 1 << DIR_INGRESS);
    } else {
        match ask(at, (at.policy, at.dir), peer, packet.proto, packet.service_port(), decide::FIRST, false) {
            Ok(answer) => stamp(flow, at.generation, at.dir, answer),
            Err(verdict) => return verdict,
        }
        if how & ON_DIRECT != 0 && at.via == Via::Local {
            let verdict = open_there(at, packet, flow);
            if !verdict.passes() {
                return verdict;
            }
        }
    }
    // A reply without its request is let through or not, but is no connection.
    if packet.is_echo_reply() {
        flow.begun = 0;
        counters::fold(flow);
        return Verdict::PASS;
    }
    flow.flags |= table::closing(flow);
    if how & REPLACES != 0
        && let Some(old) = CONNTRACK.get_ptr_mut(key.as_abi())
    {
        // SAFETY: a live entry.
        table::remove(key.as_abi(), unsafe { &mut *old });
    }
    match table::insert(at, draft) {
        0 => Verdict::PASS,
        // Of whichever direction and path: the other end looks at it.
        table::MADE_BY_ANOTHER if how & ON_DIRECT != 0 => Verdict::DIRECT,
        table::MADE_BY_ANOTHER => Verdict::PASS,
        reason => Verdict::drop(reason as u8),
    }
}

/// The receiver's end of a connection from pod to pod, which the sender's has just admitted.
#[inline(always)]
fn open_there(at: &At, packet: &Packet, flow: &mut Flow) -> Verdict {
    let sender = decide::peer_at(&packet.src);
    match ask(at, (at.there, DIR_INGRESS), sender, packet.proto, packet.service_port(), decide::FIRST, false)
    {
        Ok(answer) => {
            stamp(flow, at.generation, DIR_INGRESS, answer);
            flow.begun |= 1 << DIR_INGRESS;
            Verdict::PASS
        }
        Err(verdict) => {
            // The sender's rule has let it out.
            counters::fold(flow);
            verdict.of_receiver()
        }
    }
}

#[inline(always)]
fn stamp(flow: &mut Flow, generation: u32, dir: u32, answer: Answer) {
    // Not indexed: the verifier likes constants on the stack.
    if dir == DIR_INGRESS {
        (flow.generations[1], flow.rules[1]) = (generation, answer.rule());
        flow.flags |= if answer.keeps() { FLOW_KEEP_INGRESS } else { 0 };
    } else {
        (flow.generations[0], flow.rules[0]) = (generation, answer.rule());
        flow.flags |= if answer.keeps() { FLOW_KEEP_EGRESS } else { 0 };
    }
}
