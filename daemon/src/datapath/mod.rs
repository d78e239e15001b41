//! The kernel side as the daemon sees it: programs, maps, pins, generations.

use bulkhead_ebpf_abi::{Endpoint, Identity};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
};

/// The eBPF object that build.rs made.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BULKHEAD_EBPF_OBJECT"));

/// A call into the eBPF side that failed, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("{what}: {source}")]
    Map { what: String, source: aya::maps::MapError },
    #[error("{what}: {source}")]
    Program { what: String, source: aya::programs::ProgramError },
    #[error("{what} {path}: {source}", path = path.display())]
    Pin { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] aya::EbpfError),
    #[error("pinned maps have layout version {found}, this daemon needs {needed}")]
    Version { found: u32, needed: u32 },
    #[error("{table} needs {needed} entries and has room for {room}")]
    TooLarge { table: &'static str, needed: usize, room: u32 },
    #[error("{0}")]
    Other(String),
}

/// What wiring a pod needs of the kernel's maps and hooks. One real implementation ([`Datapath`]), one fake in tests.
pub trait PodMaps {
    /// Makes the interface's hooks know their pod; replaces.
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

    /// Every endpoint entry there is, by interface index (CHECK and the reconcile at start read these three).
    fn endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError>;
    /// The exact entry of an address.
    fn address(&self, address: IpAddr) -> Result<Option<Identity>, DatapathError>;
    /// Names of the pod interfaces whose links are pinned, both of them.
    fn attached(&self) -> Result<BTreeSet<String>, DatapathError>;
}
