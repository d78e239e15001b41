//! Keys and values of every eBPF map. Both sides of the kernel boundary use these types and no others.
//!
//! Rules of this crate: `repr(C)`, no implicit padding, no `bool`, every size asserted at compile time.
//! A change of layout raises [`ABI_VERSION`]; the daemon refuses to adopt pins of another version.
//!
//! ```text
//! address ──exact──▶ Identity ──class[half]──▶ address class ─┐
//!         └─longest prefix                                    ├─▶ row[half] ─▶ cell[half] ─▶ verdict, rule
//! (policy, direction) ─▶ PolicyDir[half] ─▶ port table ───────┘
//!                                            (proto, port) ─▶ port_dir[half] ─▶ port_page[half] ─▶ port class
//! ```
//! `half` is `generation & 1`: a generation owns one half of each of these arrays, and the other is idle.
#![no_std]

mod conntrack;
mod counters;
mod endpoint;
mod identity;
mod service;
mod tables;

pub use conntrack::*;
pub use counters::*;
pub use endpoint::*;
pub use identity::*;
pub use service::*;
pub use tables::*;

/// Layout version of all pinned maps.
pub const ABI_VERSION: u32 = 7;

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96`; network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    pub const fn from_ip(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(a) => Self::v4(a.octets()),
            core::net::IpAddr::V6(a) => Self(a.octets()),
        }
    }

    pub fn to_ip(self) -> core::net::IpAddr {
        let v6 = core::net::Ipv6Addr::from(self.0);
        match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => v6.into(),
        }
    }
}

/// The bits an IPv4 prefix length grows by when mapped into [`Addr`].
pub const V4_PREFIX_OFFSET: u32 = 96;

macro_rules! assert_size {
    ($($t:ty = $n:expr),* $(,)?) => { $(const _: () = assert!(core::mem::size_of::<$t>() == $n);)* };
}
pub(crate) use assert_size;

assert_size!(Addr = 16);
