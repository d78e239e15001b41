//! What a rule can see of an address. An identity is a set of these.

use crate::prefix::Prefix;
use bulkhead_api::objects::{IpBlockPeer, IpNetwork};
use bulkhead_ebpf_abi::{SLOT_SCTP, SLOT_UDP};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// A container port's name and what it stands for; the protocol as a slot of the port tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedPort {
    pub name: String,
    pub slot: u32,
    pub port: u16,
}

impl fmt::Display for NamedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.slot {
            SLOT_UDP => "UDP",
            SLOT_SCTP => "SCTP",
            _ => "TCP",
        };
        write!(f, "{}={protocol}/{}", self.name, self.port)
    }
}

/// In `cidr` and in none of `except` (sorted).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Block {
    pub cidr: IpNetwork,
    pub except: Box<[IpNetwork]>,
}

/// One for many: compared at a glance where it is the very same.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T: Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<T: Ord> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

/// The order is that of classes: what many policies see stands first, partitions last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Atom {
    /// Answers cluster DNS.
    ClusterDns,
    /// A node.
    Node,
    /// The node that the tables are for.
    LocalNode,
    /// A node of the control plane, or an API server.
    ControlPlane,
    /// In a network group.
    Group(Arc<str>),
    /// In the block.
    Block(Shared<Block>),
    /// Picked by a selector of a policy; the selector as text.
    Selected(Arc<str>),
    /// A pod with a container port of this name and number.
    NamedPort(NamedPort),
    /// In the range of some partition.
    Pod,
    /// In the range of this partition.
    Partition(Arc<str>),
}

impl Atom {
    /// Equal blocks are equal atoms, however they are written.
    pub fn block(block: &IpBlockPeer) -> Self {
        let canonical = |n: &IpNetwork| Prefix::of(*n).network();
        let mut except: Vec<_> = block.except.iter().map(canonical).collect();
        except.sort_unstable();
        except.dedup();
        Self::Block(Shared::new(Block { cidr: canonical(&block.cidr), except: except.into() }))
    }
}

/// Equal glances are equal atoms; unequal ones may be.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Glance {
    At(u8, usize),
    Whole(Atom),
}

impl Atom {
    /// By where its contents lie, if they lie anywhere.
    pub fn glance(&self) -> Glance {
        match self {
            Self::Group(text) => Glance::At(0, text.as_ptr().addr()),
            Self::Selected(text) => Glance::At(1, text.as_ptr().addr()),
            Self::Partition(text) => Glance::At(2, text.as_ptr().addr()),
            Self::Block(block) => Glance::At(3, std::ptr::from_ref::<Block>(block).addr()),
            other => Glance::Whole(other.clone()),
        }
    }
}

/// As `explain` says it; a partition is said elsewhere.
impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterDns => f.write_str("clusterDNS"),
            Self::Node => f.write_str("node"),
            Self::LocalNode => f.write_str("localNode"),
            Self::ControlPlane => f.write_str("controlPlane"),
            Self::Group(name) => write!(f, "NetworkGroup/{name}"),
            Self::Block(block) => {
                write!(f, "{}", block.cidr)?;
                for (i, e) in block.except.iter().enumerate() {
                    write!(f, "{}{e}", if i == 0 { " except " } else { ", " })?;
                }
                Ok(())
            }
            Self::Selected(selector) => f.write_str(selector),
            Self::NamedPort(port) => write!(f, "port {port}"),
            Self::Pod => f.write_str("pod"),
            Self::Partition(name) => write!(f, "Partition/{name}"),
        }
    }
}
