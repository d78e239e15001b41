//! ICMP but echo: errors, which are of the flow they speak of, and what has no flow.

use super::{
    At, Key, Via,
    decide::{self, ask, peer_of_packet},
    table,
};
use crate::{
    counters,
    maps::CONNTRACK,
    parse::{self, Packet},
    verdict::Verdict,
};
use aya_ebpf::{macros::map, maps::PerCpuArray, programs::TcContext};
use bulkhead_ebpf_abi::PATH_DIRECT;
use core::mem::MaybeUninit;

/// Errors belong to the flow they speak of, and take its path; all else of ICMP but echo has no flow.
#[inline(always)]
pub fn icmp(ctx: &TcContext, at: &At, packet: &Packet) -> Verdict {
    if packet.is_icmp_error() {
        match u8::try_from(path_of_quoted(ctx, packet)) {
            Ok(PATH_DIRECT) if at.via != Via::Stack => return Verdict::DIRECT,
            Ok(_) => return Verdict::PASS,
            Err(_) => {}
        }
    }
    if at.via == Via::Uplink {
        return Verdict::PASS;
    }
    let peer = peer_of_packet(at, packet);
    if peer.is_unasked() {
        return Verdict::PASS;
    }
    match ask(at, (at.policy, at.dir), peer, packet.proto, packet.service_port(), decide::FIRST, false) {
        Ok(answer) => {
            counters::hit(answer.rule(), at.bytes);
            Verdict::PASS
        }
        Err(verdict) => verdict,
    }
}

/// Off the stack, which has no room for a second packet.
#[map]
static QUOTED: PerCpuArray<MaybeUninit<Packet>> = PerCpuArray::with_max_entries(1, 0);

#[inline(never)]
fn path_of_quoted(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(inner) = QUOTED.get_ptr_mut(0) else { return NO_PATH };
    // SAFETY: this CPU's own, and nobody else's meanwhile: a program runs without being preempted by another of its kind.
    let inner = Packet::empty(unsafe { &mut *inner });
    if !parse::quoted(ctx, packet, inner) {
        return NO_PATH;
    }
    let (key, _) = Key::of(inner);
    let Some(flow) = CONNTRACK.get_ptr(key.as_abi()) else { return NO_PATH };
    // SAFETY: a live entry.
    let flow = unsafe { &*flow };
    let ended = flow.cut != 0 || table::is_dead(flow, inner.proto, counters::now());
    if ended { NO_PATH } else { u32::from(flow.path) }
}

const NO_PATH: u32 = 256;
