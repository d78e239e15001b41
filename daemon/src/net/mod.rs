//! The kernel's links, routes, neighbours and queues, as far as Bulkhead makes them.
//!
//! Small traits ([`Links`], [`Routes`], [`Shaper`], [`Translation`]) with one real implementation over rtnetlink ([`Kernel`]) and fakes in
//! tests. Nothing here knows of partitions, policy or records, and nothing here remembers: what is there is asked of the
//! kernel. Only interfaces whose name begins with [`HOST_PREFIX`] or [`IFB_PREFIX`], routes of [`RTPROT_BULKHEAD`] and
//! [`RTPROT_LEARNED`] and the tables `bulkhead` of nf_tables are ever changed or removed.
//!
//! ```text
//!  pod's namespace                 │ node's namespace
//!  eth0  10.65.0.7/32              │ bh0123456789 (no address)
//!  default via 169.254.1.1, fe80::1│ 10.65.0.7/32 dev bh0123456789, permanent neighbour
//!        ───────────── veth ───────┼──────▶ tbf: what enters the pod
//!                                  │ bi0123456789 (ifb) ─▶ tbf: what leaves the pod
//! ```

mod changes;
mod cookie;
mod inspect;
mod learned;
mod links;
pub mod mac;
mod narrow;
pub mod nat;
mod netlink;
pub mod node;
pub mod qdisc;
mod routes;
mod sockets;
pub mod uplinks;

pub use changes::watch_changes;
pub use inspect::PodState;
pub use learned::{Hops, Learned};
pub use mac::{Mac, Names};
pub use narrow::{NarrowRoutes, watch_narrow_routes};
pub use nat::{Nat, Translation};
pub use netlink::{Kernel, NetError};
pub use qdisc::{Limit, Limits, Shaper};
pub use sockets::{Connected, end_connected};
pub use uplinks::Uplink;

use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

/// Host side of a pod's interface.
pub const HOST_PREFIX: &str = "bh";
/// The `ifb` that paces what leaves a pod.
pub const IFB_PREFIX: &str = "bi";
/// `rtm_protocol` of the routes to pods and of the discard routes of own blocks.
pub const RTPROT_BULKHEAD: u8 = 66;
/// Of the routes that were learned by BGP.
pub const RTPROT_LEARNED: u8 = 67;
/// What every pod has as its next hop; no interface owns these: a permanent neighbour entry answers for them.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

pub fn gateway_of(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

/// The network of exactly this address.
pub fn host_network(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// The default route of the address's family.
pub fn default_of(address: IpAddr) -> IpNetwork {
    let (any, len): (IpAddr, u8) = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    IpNetwork::new(any, len).unwrap_or(host_network(any))
}

/// A veth pair to make: the host side here and the pod side directly in the pod's namespace, both down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub host: String,
    pub host_mac: Mac,
    pub netns: PathBuf,
    /// Name inside the pod.
    pub pod: String,
    pub pod_mac: Mac,
    pub mtu: u32,
    /// Whether processes of the node may call the pod from the loopback.
    pub from_loopback: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairIndex {
    pub host: u32,
    pub pod: u32,
}

/// The pod's side, complete: loopback up, addresses, up, routes, neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSide {
    pub netns: PathBuf,
    pub ifname: String,
    pub addresses: Vec<IpAddr>,
    /// MAC of the host side, which answers for both gateways.
    pub gateway_mac: Mac,
}

/// The host side, opened: up, neighbours and routes to the pod. The last step of wiring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSide {
    pub addresses: Vec<IpAddr>,
    pub pod_mac: Mac,
    pub sources: Sources,
}

/// The node's own addresses towards pods (`prefsrc`); without one the kernel chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sources {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Sources {
    pub fn towards(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// One of our interfaces as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// Index of the other end of a veth, in its own namespace; 0: none.
    pub peer: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
}

/// What leads to a pod on the host side.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostState {
    pub routes: BTreeSet<IpNetwork>,
    /// Permanent entries.
    pub neighbours: BTreeMap<IpAddr, Mac>,
}

/// A route of [`RTPROT_BULKHEAD`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnRoute {
    pub dst: IpNetwork,
    /// The interface of a pod's route; `None`: a discard route.
    pub ifindex: Option<u32>,
}

/// Interfaces. Everything that deletes succeeds also where there is nothing.
pub trait Links {
    fn create_pair(&self, pair: &Pair) -> impl Future<Output = Result<PairIndex, NetError>> + Send;
    fn configure_pod(&self, ifindex: u32, pod: &PodSide)
    -> impl Future<Output = Result<(), NetError>> + Send;
    /// The interface is gone when this returns.
    fn delete(&self, name: &str) -> impl Future<Output = Result<(), NetError>> + Send;
    fn find(&self, name: &str) -> impl Future<Output = Result<Option<Link>, NetError>> + Send;
    /// All of ours.
    fn list(&self) -> impl Future<Output = Result<Vec<Link>, NetError>> + Send;
    /// `None`: there is no such interface in the namespace.
    fn inspect_pod(
        &self,
        netns: &Path,
        ifname: &str,
    ) -> impl Future<Output = Result<Option<PodState>, NetError>> + Send;
    /// What the kernel's programs know a network namespace by: never 0, and never given twice.
    fn netns_cookie(&self, netns: &Path) -> impl Future<Output = Result<u64, NetError>> + Send;
}

/// Routes and neighbours of the node's namespace.
pub trait Routes {
    /// Idempotent: replaces what is there.
    fn open(&self, ifindex: u32, host: &HostSide) -> impl Future<Output = Result<(), NetError>> + Send;
    fn inspect_host(&self, ifindex: u32) -> impl Future<Output = Result<HostState, NetError>> + Send;
    fn list_routes(&self) -> impl Future<Output = Result<BTreeSet<OwnRoute>, NetError>> + Send;
    fn remove_routes(&self, routes: &[OwnRoute]) -> impl Future<Output = Result<(), NetError>> + Send;
    /// Exactly these blocks have discard routes afterwards; only differences are written.
    fn set_blocks(&self, blocks: &BTreeSet<IpNetwork>) -> impl Future<Output = Result<(), NetError>> + Send;
}

/// All that wiring needs.
pub trait Net: Links + Routes + Shaper + Translation {}
impl<T: Links + Routes + Shaper + Translation> Net for T {}
