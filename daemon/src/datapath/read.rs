//! What the kernel knows: drops, connections, endpoints.

use super::{
    Datapath, DatapathError,
    sys::{self, Plain},
    values::Raw,
};
use aya::maps::MapError;
use bulkhead_ebpf_abi::{Counter, DropKey, Endpoint, Flow, FlowKey};
use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd},
};

impl Datapath {
    /// Why packets were dropped and how often, summed over all CPUs, since the maps were made.
    pub fn drops(&self) -> Result<Vec<(DropKey, Counter)>, DatapathError> {
        let mut drops = Vec::new();
        for entry in self.drops.iter() {
            let (Raw(key), values) =
                entry.map_err(|source| DatapathError::Map { what: "reading drops".into(), source })?;
            let sum = values.iter().fold(Counter::default(), |sum, Raw(cpu)| Counter {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                last: sum.last.max(cpu.last),
            });
            drops.push((key, sum));
        }
        drops.sort_unstable_by_key(|(key, _)| *key);
        Ok(drops)
    }

    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>, DatapathError> {
        match self.conntrack.get(&Raw(*key), 0) {
            Ok(Raw(flow)) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(DatapathError::Map { what: "reading a connection".into(), source }),
        }
    }

    /// Every connection, in no order. One that comes or goes meanwhile may be seen or not.
    pub fn flows(&self) -> Flows<'_> {
        Entries::of(self.conntrack_fd.as_fd(), "connections", 4096)
    }

    pub(super) fn read_endpoints(&self) -> Result<BTreeMap<u32, Endpoint>, DatapathError> {
        Entries::of(self.endpoints_fd.as_fd(), "endpoints", 256).collect()
    }
}

/// Iterates over the connection table, thousands at a time.
pub type Flows<'a> = Entries<'a, FlowKey, Flow>;

/// Iterates over a hash map, many entries a call.
pub struct Entries<'a, K, V> {
    map: BorrowedFd<'a>,
    what: &'static str,
    cursor: Option<u64>,
    room: u32,
    more: bool,
    read: VecDeque<(K, V)>,
}

impl<'a, K, V> Entries<'a, K, V> {
    /// `room`: entries a call.
    pub(super) fn of(map: BorrowedFd<'a>, what: &'static str, room: u32) -> Self {
        Self { map, what, cursor: None, room, more: true, read: VecDeque::new() }
    }
}

impl<K: Plain, V: Plain> Iterator for Entries<'_, K, V> {
    type Item = Result<(K, V), DatapathError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.read.is_empty() && self.more {
            match sys::read_batch(self.map, &mut self.cursor, self.room) {
                Ok((entries, more)) => {
                    self.read = entries.into();
                    self.more = more;
                }
                // A bucket that holds more than there was room for.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => self.room *= 2,
                Err(source) => {
                    self.more = false;
                    return Some(Err(DatapathError::Kernel {
                        what: format!("reading {}", self.what),
                        source,
                    }));
                }
            }
        }
        self.read.pop_front().map(Ok)
    }
}
