//! How far a connection is: answers, acknowledgements, FINs. What begins or resets one goes the long way.

use crate::conntrack::{self, Key};
use crate::parse::{TCP_ACK, TCP_FIN, TCP_SYN};
use bulkhead_ebpf_abi::{
    FLOW_ANSWERED, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_UNASKED, Flow, PROTO_TCP,
};

/// What a packet makes of its connection.
#[derive(Clone, Copy)]
pub struct Stage {
    /// `FLOW_*` bits.
    flags: u8,
    /// The FIN that it adds to its direction's byte.
    fin: u8,
}

impl Stage {
    /// `None`: the long way. Who speaks must be what the addresses say, and no end have cut the connection: then it has an age of
    /// its own.
    #[inline(always)]
    pub fn after(flow: &Flow, proto: u8, tcp_flags: u8, forward: bool) -> Option<Self> {
        let flags = flow.flags;
        if flow.origin != 0 || flow.cut != 0 || flags & FLOW_UNASKED != 0 {
            return None;
        }
        let stage = flags & (FLOW_ESTABLISHED | FLOW_CLOSING | FLOW_CLOSED);
        if stage == FLOW_ESTABLISHED && tcp_flags & (TCP_SYN | TCP_FIN) == 0 {
            return Some(Self { flags, fin: 0 });
        }
        Some(if proto == PROTO_TCP { Self::tcp(flow, tcp_flags, forward) } else { Self::udp(flags, forward) })
    }

    #[inline(always)]
    fn udp(flags: u8, forward: bool) -> Self {
        let answer = if forward { 0 } else { FLOW_ANSWERED | FLOW_ESTABLISHED };
        Self { flags: flags | answer, fin: 0 }
    }

    #[inline(always)]
    fn tcp(flow: &Flow, tcp_flags: u8, forward: bool) -> Self {
        let mut flags = flow.flags;
        if !forward {
            flags |= FLOW_ANSWERED;
        } else if flags & FLOW_ANSWERED != 0 && tcp_flags & (TCP_SYN | TCP_ACK) == TCP_ACK {
            flags |= FLOW_ESTABLISHED;
        }
        let fin = tcp_flags & TCP_FIN;
        let (ours, theirs) = if forward { (flow.fin, flow.fin_back) } else { (flow.fin_back, flow.fin) };
        flags |= Flow::closing(ours | fin, theirs);
        Self { flags, fin }
    }

    /// Writes what is new.
    #[inline(always)]
    pub fn enter(self, key: &Key, flow: &mut Flow, forward: bool) {
        if self.fin != 0 {
            let fin = if forward { &mut flow.fin } else { &mut flow.fin_back };
            *fin |= self.fin;
        }
        let new = self.flags & !flow.flags;
        if new != 0 {
            conntrack::advance(key, flow, new);
        }
    }
}
