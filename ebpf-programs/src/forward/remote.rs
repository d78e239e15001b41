//! Out of the node: the route's next hop, and its neighbour's address as the kernel knows or finds it.

use super::{Leg, frame};
use crate::{
    address::Address,
    maps::{NARROW, NARROWEST},
    origin,
    parse::Packet,
    skb,
    verdict::NEXT,
    words,
};
use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup, bpf_redir_neigh},
    helpers::generated,
    maps::lpm_trie::Key,
    programs::TcContext,
};
use core::mem::{MaybeUninit, size_of, zeroed};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// To a whole word.
#[repr(align(8))]
struct Aligned<T>(T);

/// The stack gets what has no route, and what is longer than the route allows: it answers.
#[inline(never)]
pub fn send(ctx: &TcContext, packet: &Packet, ipv6: u32) -> i32 {
    let length = frame::segment(ctx, &Leg::of(packet));
    if packet.hop_limit <= 1
        || length > u32::from(u16::MAX)
        || ipv6 == 0 && is_narrow(&packet.dst, length) != 0
    {
        return NEXT;
    }
    let mut room = Aligned(MaybeUninit::<bpf_fib_lookup>::uninit());
    // SAFETY: integers; zero is a value of all.
    let route = unsafe {
        words::zero(room.0.as_mut_ptr());
        room.0.assume_init_mut()
    };
    (route.l4_protocol, route.ifindex) = (packet.proto, skb::ifindex(ctx));
    (route.sport, route.dport) = (packet.src_port.to_be(), packet.dst_port.to_be());
    route.__bindgen_anon_1.tot_len = length as u16;
    if ipv6 != 0 {
        route.family = AF_INET6;
        route.__bindgen_anon_3.ipv6_src = packet.src.words();
        route.__bindgen_anon_4.ipv6_dst = packet.dst.words();
    } else {
        route.family = AF_INET;
        route.__bindgen_anon_3.ipv4_src = packet.src.words()[3];
        route.__bindgen_anon_4.ipv4_dst = packet.dst.words()[3];
    }
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the kernel reads and writes as many bytes as it is told.
    let found = unsafe {
        generated::bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut *route, size, BPF_FIB_LOOKUP_SKIP_NEIGH)
    };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS)
        || !frame::lower_hop_limit(ctx, packet.hop_limit, ipv6 != 0)
    {
        return NEXT;
    }
    origin::untranslated(ctx);
    redirect(route)
}

/// Is an IPv4 packet longer than its route allows? Of a route's MTU that is not locked the look-up says nothing, and the
/// stack forwards by it all the same (`ip_dst_mtu_maybe_forward`).
#[inline(never)]
fn is_narrow(dst: &Address, length: u32) -> u32 {
    let Some(narrowest) = NARROWEST.get(0) else { return 1 };
    if *narrowest == 0 || length <= *narrowest {
        return 0;
    }
    NARROW.get(Key::new(128, *dst)).map_or(0, |mtu| u32::from(*mtu != 0 && length > *mtu))
}

/// The next hop's family may be another than the packet's (RFC 8950).
#[inline(always)]
fn redirect(route: &bpf_fib_lookup) -> i32 {
    // SAFETY: as above.
    let mut hop: bpf_redir_neigh = unsafe { zeroed() };
    hop.nh_family = u32::from(route.family);
    // SAFETY: the look-up has written all of it; of IPv4 the first word counts.
    hop.__bindgen_anon_1.ipv6_nh = unsafe { route.__bindgen_anon_4.ipv6_dst };
    // SAFETY: the kernel reads as many bytes as it is told.
    unsafe {
        generated::bpf_redirect_neigh(route.ifindex, &raw mut hop, size_of::<bpf_redir_neigh>() as i32, 0)
            as i32
    }
}
