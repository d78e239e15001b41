//! Services at the socket: what a pod's process calls is a backend before there is a packet, and what comes back has the
//! service's address again.
//!
//! ```text
//! connect, sendmsg ──FRONTEND──▶ set ──▶ its backend of before, or one by chance ──▶ the call goes to the backend
//!                                       SERVICE_CALLER: socket, TRANSLATED: (socket, backend) ──▶ service
//! recvmsg, getpeername ◀───────────────────────┴───────────────────────────────────────┘
//! ```
//! Called for every socket of the host: those that are no pod's, by the cookie of their network namespace, are left alone.
//! A fixed number of look-ups, however many services there are. What no frontend stands for is no matter here.

use crate::{
    address::Address,
    maps::{
        AFFINITY, ALL_CALLERS_MARKED, BACKEND, FRONTEND, MEMBER, NODE_ADDRESS, POD_NETNS, SERVICE_CALLER,
        TRANSLATED,
    },
};
use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_ns,
        generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    },
    programs::SockAddrContext,
};
use bulkhead_ebpf_abi::{
    AFFINITY_OF_CLIENT, AFFINITY_OF_SOCKET, Affinity, AffinityKey, BackendAddr, BackendKey,
    FRONTEND_ANY_NODE_V4, FRONTEND_ANY_NODE_V6, FrontendKey, FrontendValue, MemberKey, PROTO_TCP, PROTO_UDP,
    TranslatedKey,
};
use core::ptr::{read_volatile, write_volatile};

/// The kernel goes on with the call.
const GO: i32 = 1;
/// It fails with the error that was set.
const FAIL: i32 = 0;
/// What kube-proxy's REJECT makes of a connection.
const ECONNREFUSED: i32 = 111;

macro_rules! field {
    ($ctx:expr, $name:ident $([$n:literal])?) => {
        // SAFETY: the kernel hands every program a valid context.
        unsafe { read_volatile(&raw const (*$ctx.sock_addr).$name$([$n])?) }
    };
}

/// `connect` and `sendmsg`: to a backend, where a service is called.
#[inline(always)]
pub fn forward<const V6: bool>(ctx: &SockAddrContext) -> i32 {
    let Some(netns) = pod(ctx) else { return GO };
    let Some(proto) = protocol(ctx) else { return GO };
    let (address, port) = peer::<V6>(ctx);
    let Some(frontend) = frontend(&address, port, proto) else { return GO };
    // SAFETY: takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(backend) = choose(&frontend, proto, netns, cookie) else {
        // SAFETY: takes a number.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return FAIL;
    };
    let key = TranslatedKey { cookie, backend, proto: u32::from(proto) };
    remember(&key, &BackendAddr { address: *address.as_addr(), port, reserved: 0 });
    // SAFETY: the socket of the call.
    unsafe { SERVICE_CALLER.get_or_insert_ptr_mut(ctx, None) };
    set_peer::<V6>(ctx, &backend);
    GO
}

/// `recvmsg` and `getpeername`: the service in the place of its backend.
#[inline(always)]
pub fn back<const V6: bool>(ctx: &SockAddrContext) -> i32 {
    if !may_have_called(ctx) {
        return GO;
    }
    let Some(proto) = protocol(ctx) else { return GO };
    let (address, port) = peer::<V6>(ctx);
    let backend = BackendAddr { address: *address.as_addr(), port, reserved: 0 };
    // SAFETY: takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = TranslatedKey { cookie, backend, proto: u32::from(proto) };
    // SAFETY: read whole at once; whoever has the socket is the only one to write its entries.
    if let Some(called) = unsafe { TRANSLATED.get(key) } {
        set_peer::<V6>(ctx, called);
    }
    GO
}

/// Most sockets have called no service: those that were accepted, and those of the host. What stands at the socket itself is
/// there when the kernel asks; an entry by its cookie never is.
#[inline(always)]
fn may_have_called(ctx: &SockAddrContext) -> bool {
    if ALL_CALLERS_MARKED.load() == 0 {
        return pod(ctx).is_some();
    }
    // SAFETY: the socket of the call.
    unsafe { !SERVICE_CALLER.get_ptr_mut(ctx).is_null() }
}

/// The cookie of the socket's network namespace, if it is a pod's of this node.
#[inline(always)]
fn pod(ctx: &SockAddrContext) -> Option<u64> {
    // SAFETY: takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: that there is an entry is all that is asked.
    unsafe { POD_NETNS.get(netns) }.map(|_| netns)
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    let proto = field!(ctx, protocol);
    if proto == u32::from(PROTO_TCP) || proto == u32::from(PROTO_UDP) { Some(proto as u8) } else { None }
}

/// Who is called, or who has answered.
#[inline(always)]
fn peer<const V6: bool>(ctx: &SockAddrContext) -> (Address, u16) {
    let port = u16::from_be(field!(ctx, user_port) as u16);
    if !V6 {
        return (Address::v4(field!(ctx, user_ip4)), port);
    }
    let [a, b, c, d] = [
        field!(ctx, user_ip6[0]),
        field!(ctx, user_ip6[1]),
        field!(ctx, user_ip6[2]),
        field!(ctx, user_ip6[3]),
    ]
    .map(u64::from);
    (Address([a | b << 32, c | d << 32]), port)
}

/// A service of one IP version has backends of that version alone, so a mapped address stays one.
#[inline(always)]
fn set_peer<const V6: bool>(ctx: &SockAddrContext, to: &BackendAddr) {
    let [a, b, c, d] = Address::of_value(&to.address).words();
    // SAFETY: as above; programs of this type may write these, whole words at a time.
    unsafe {
        if V6 {
            write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], a);
            write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], b);
            write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], c);
            write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], d);
        } else {
            write_volatile(&raw mut (*ctx.sock_addr).user_ip4, d);
        }
        write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(to.port.to_be()));
    }
}

#[inline(always)]
fn frontend(address: &Address, port: u16, proto: u8) -> Option<FrontendValue> {
    // It means itself; what stands there are the node ports of all.
    if address.is_unspecified() {
        return None;
    }
    let mut key = FrontendKey { address: *address.as_addr(), port, proto, reserved: 0 };
    // SAFETY: read whole; the daemon replaces entries, it never writes into them.
    if let Some(found) = unsafe { FRONTEND.get(key) } {
        return Some(*found);
    }
    // SAFETY: that there is an entry is all that is asked.
    unsafe { NODE_ADDRESS.get(address.as_addr()) }?;
    key.address = if address.is_mapped() { FRONTEND_ANY_NODE_V4 } else { FRONTEND_ANY_NODE_V6 };
    // SAFETY: as above.
    unsafe { FRONTEND.get(key) }.copied()
}

/// None: there is no backend.
#[inline(always)]
fn choose(frontend: &FrontendValue, proto: u8, netns: u64, cookie: u64) -> Option<BackendAddr> {
    let FrontendValue { set, count, service, .. } = *frontend;
    if count == 0 {
        return None;
    }
    let of_client = frontend.affinity_seconds != 0;
    // The datagrams of a socket go to one backend, as with kube-proxy's connection tracking.
    let keeps = of_client || proto == PROTO_UDP;
    let key = if of_client {
        AffinityKey { of: netns, service, kind: AFFINITY_OF_CLIENT }
    } else {
        AffinityKey { of: cookie, service, kind: AFFINITY_OF_SOCKET }
    };
    // SAFETY: takes nothing.
    let now = if of_client { unsafe { bpf_ktime_get_ns() } } else { 0 };
    let before = if keeps { kept(frontend, &key, now) } else { None };
    if let (Some(backend), false) = (before, of_client) {
        return Some(backend);
    }
    let backend = match before {
        Some(backend) => backend,
        None => {
            // SAFETY: takes nothing.
            let index = unsafe { bpf_get_prandom_u32() } % count;
            // SAFETY: sets are written before they are named and never changed.
            *unsafe { BACKEND.get(BackendKey { set, index }) }?
        }
    };
    if keeps {
        // Without room the next call chooses anew.
        let _ = AFFINITY.insert(key, Affinity { backend, reserved: 0, last: now }, 0);
    }
    Some(backend)
}

/// The backend of before, while it is one of the set and not too long ago.
#[inline(always)]
fn kept(frontend: &FrontendValue, key: &AffinityKey, now: u64) -> Option<BackendAddr> {
    // SAFETY: an entry that is overwritten meanwhile may be read half; MEMBER tells whether it is a backend.
    let Affinity { backend, last, .. } = *unsafe { AFFINITY.get(key) }?;
    let age = now.saturating_sub(last) / 1_000_000_000;
    if frontend.affinity_seconds != 0 && age >= u64::from(frontend.affinity_seconds) {
        return None;
    }
    // SAFETY: that there is an entry is all that is asked.
    unsafe { MEMBER.get(MemberKey { backend, set: frontend.set }) }.map(|_| backend)
}

/// An update costs four look-ups, and most of what a socket sends goes where it went before.
#[inline(always)]
fn remember(key: &TranslatedKey, called: &BackendAddr) {
    // SAFETY: as in `back`.
    if unsafe { TRANSLATED.get(key) }.is_some_and(|known| *known == *called) {
        return;
    }
    // Without room the application sees the backend's address.
    let _ = TRANSLATED.insert(key, called, 0);
}
