//! The kernel side: what happens to a packet at each hook.
//!
//! ```text
//!             pod                                pod ◀───── direct ─────┐
//!              │ tcx ingress of the host side     ▲ tcx egress          │
//!          from_pod ─── direct: pod, uplink     to_pod                  │
//!              │ (ifb: paced)                     │                     │
//!              └───▶ host stack: routing, translation ◀── from_uplink ──┘ ◀── uplink
//!                                        └───────────▶ to_uplink ────────────▶ uplink
//! ```
//! Entry points here only put the parts in order. Every packet ends in `Next` (the kernel goes on with it), a drop that
//! is counted, or a redirect. Nothing here may let a packet pass because a look-up failed.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "atomic addition, which the target has without compare-and-swap")]

mod address;
mod conntrack;
mod counters;
mod departure;
mod endpoint;
mod forward;
mod fragment;
mod identity;
mod known;
mod maps;
mod origin;
mod parse;
mod policy;
mod service;
mod skb;
mod uplink;
mod verdict;
mod words;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

/// What a pod sends, before the host sees it.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    endpoint::from_pod(&ctx)
}

/// What the host hands to a pod, after routing and translation.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    endpoint::to_pod(&ctx)
}

/// What comes from the network outside.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    uplink::from_uplink(&ctx)
}

/// What leaves for the network outside.
#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    departure::to_uplink(&ctx)
}

/// Never attached: run by the daemon, once for each connection that it wants forgotten.
#[classifier]
pub fn forget(ctx: TcContext) -> i32 {
    conntrack::forget_named(&ctx)
}

// Whom a process of a pod calls; see `service`. A program for each place, because the kernel wants one.
#[cgroup_sock_addr(connect4)]
pub fn service_connect4(ctx: SockAddrContext) -> i32 {
    service::forward::<false>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn service_connect6(ctx: SockAddrContext) -> i32 {
    service::forward::<true>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn service_sendmsg4(ctx: SockAddrContext) -> i32 {
    service::forward::<false>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn service_sendmsg6(ctx: SockAddrContext) -> i32 {
    service::forward::<true>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn service_recvmsg4(ctx: SockAddrContext) -> i32 {
    service::back::<false>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn service_recvmsg6(ctx: SockAddrContext) -> i32 {
    service::back::<true>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn service_getpeername4(ctx: SockAddrContext) -> i32 {
    service::back::<false>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn service_getpeername6(ctx: SockAddrContext) -> i32 {
    service::back::<true>(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
