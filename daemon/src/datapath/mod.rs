//! The kernel side as the daemon sees it: programs, maps, pins, generations.
//!
//! ```text
//! open ──▶ adopt or make maps ──▶ load programs ──▶ point pinned links to them
//! apply ─▶ idle half: write, read back ─▶ addresses: see `transition`, pods: see `endpoints` ─▶ switch ─┐ (grace period)
//! settle ───────────────────────── addresses and pods: what only the former half needs goes ◀───────────┘
//! ```
//! One daemon owns the pins. Nothing here decides what the tables say; it must never leave a moment in which a hook runs
//! with half a generation, or an interface without its hook.

mod apply;
mod connections;
mod direct;
mod endpoints;
mod generation;
mod identities;
mod links;
mod load;
mod pins;
mod pods;
mod read;
mod rules;
mod services;
mod sys;
mod table;
mod transition;
mod values;
mod verified;

pub use apply::Prepared;
pub use endpoints::Placed;
pub use generation::Generation;
pub use identities::{Exact, Identities, Prefix, Prefixes};
pub use links::Hook;
pub use load::Opened;
pub use read::Flows;
pub use services::{Unwritten, find_cgroup};

use crate::causes::with_causes;
use bulkhead_ebpf_abi::{
    Addr, Cell, Connections, Counter, Delivery, DropKey, Endpoint, Flow, FlowKey, FragmentKey, Identity,
    PolicyDir, PortDirectory, PortPage, RecentKey, RecentPage, RuleCounter, Share, Sizes,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
};
use table::{HashMap, Table};
use values::Raw;

/// The eBPF object that build.rs made.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BULKHEAD_EBPF_OBJECT"));

/// A call into the eBPF side that failed, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("{what}: {}", with_causes(.source))]
    Map { what: String, source: aya::maps::MapError },
    #[error("{what}: {}", with_causes(.source))]
    Program { what: String, source: aya::programs::ProgramError },
    #[error("{what}: {source}")]
    Kernel { what: String, source: io::Error },
    #[error("{what} {path}: {source}", path = path.display())]
    Pin { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot load the eBPF object: {}", with_causes(.0))]
    Load(#[from] aya::EbpfError),
    #[error("pinned maps have layout version {found}, this daemon needs {needed}")]
    Version { found: u32, needed: u32 },
    #[error(
        "pinned map {map} has {what} {found}, this daemon is set to {needed}: \
         start it with the former sizes, or drain the node and remove the pins"
    )]
    Incompatible { map: &'static str, what: &'static str, found: u32, needed: u32 },
    #[error("{table} needs {needed} entries and has room for {room}")]
    TooLarge { table: &'static str, needed: usize, room: u32 },
    #[error("{0}")]
    Other(String),
}

/// What wiring a pod needs of the kernel's maps and hooks. One real implementation ([`Datapath`]), one fake in tests.
pub trait PodMaps {
    /// Makes the interface's hooks know their pod, and the others the way to it; replaces.
    fn set_endpoint(&mut self, ifindex: u32, endpoint: &Endpoint) -> Result<(), DatapathError>;
    /// Succeeds also when there is none.
    fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), DatapathError>;
    /// The exact entry of an address; replaces.
    fn set_address(&mut self, address: IpAddr, identity: Identity) -> Result<(), DatapathError>;
    /// Succeeds also when there is none.
    fn remove_address(&mut self, address: IpAddr) -> Result<(), DatapathError>;
    /// Attaches both hooks to the host side of a pod's interface and pins the links.
    fn attach_pod(&mut self, ifname: &str, ifindex: u32) -> Result<(), DatapathError>;
    /// Removes the pins; succeeds also when there are none.
    fn detach_pod(&mut self, ifname: &str) -> Result<(), DatapathError>;
    /// Forgets every connection of these addresses; says how many there were.
    fn forget_flows(&mut self, addresses: &[IpAddr]) -> Result<usize, DatapathError>;
    /// How the hooks of others deliver to an address.
    fn delivery(&self, address: IpAddr) -> Result<Option<Delivery>, DatapathError>;
    /// Processes of this network namespace (by its cookie) are a pod's: what they call may be a service.
    fn set_netns(&mut self, cookie: u64) -> Result<(), DatapathError>;
    /// Succeeds also when there is none.
    fn remove_netns(&mut self, cookie: u64) -> Result<(), DatapathError>;
    /// All of them.
    fn netns(&self) -> Result<BTreeSet<u64>, DatapathError>;
    /// Every endpoint entry there is, by interface index (CHECK and the reconcile at start read these four).
    fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError>;
    /// The exact entry of an address.
    fn address(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError>;
    /// Names of the pod interfaces whose links are pinned, both of them.
    fn attached(&self) -> Result<BTreeSet<String>, DatapathError>;
}

/// The loaded programs and maps of this node.
///
/// # Memory
/// What each map takes of the kernel's stands in docs/ARCHITECTURE.md ("What the maps take"). This struct holds both halves as far
/// as they are filled, and shares them with the generations that were written.
pub struct Datapath {
    pins: pins::Pins,
    object: aya::Ebpf,
    sizes: Sizes,
    generation: aya::maps::Array<aya::maps::MapData, u32>,
    tables: MapTables,
    exact: HashMap<Addr, Identity>,
    prefixes: aya::maps::lpm_trie::LpmTrie<aya::maps::MapData, Raw<Addr>, Raw<Identity>>,
    endpoints: HashMap<u32, Endpoint>,
    endpoints_fd: OwnedFd,
    /// Tells the hooks to read anew what they keep of `endpoints`.
    endpoint_epoch: aya::maps::Array<aya::maps::MapData, u32>,
    /// Tells connections which number of an identity has been given out again since.
    origin_turns: aya::maps::Array<aya::maps::MapData, u32>,
    local: HashMap<Addr, Delivery>,
    direct: direct::Ranges,
    range_policies: direct::Ranges,
    narrow: direct::Narrow,
    conntrack: HashMap<FlowKey, Flow>,
    conntrack_fd: OwnedFd,
    recent: HashMap<RecentKey, RecentPage>,
    fragment_rings: HashMap<RecentKey, FragmentKey>,
    shares: HashMap<u32, Share>,
    connections: Connections,
    drops: aya::maps::PerCpuHashMap<aya::maps::MapData, Raw<DropKey>, Raw<Counter>>,
    rules: aya::maps::PerCpuHashMap<aya::maps::MapData, u32, Raw<RuleCounter>>,
    services: services::Services,
    /// What both identity maps hold: this daemon alone writes them.
    identities: Identities,
    /// What each half holds; `None`: it must be read first.
    shadow: [Option<generation::Half>; 2],
    barrier: sys::Barrier,
    /// What follows the last switch once no packet is left in the generation before.
    pending: Option<apply::After>,
    /// How it was before the switch that is prepared, or could not be.
    before: Option<apply::Before>,
}

/// The tables of generations.
struct MapTables {
    classes: Table<u32>,
    policies: Table<PolicyDir>,
    port_directories: Table<PortDirectory>,
    port_pages: Table<PortPage>,
    rows: Table<u32>,
    cells: Table<Cell>,
}

/// The daemon hands it from task to task.
const fn assert_send<T: Send>() {}
const _: () = assert_send::<Datapath>();
