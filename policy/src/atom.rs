//! What a rule can see of an address. An identity is a set of these.

use crate::prefix::Prefix;
use bulkhead_api::objects::{IpBlockPeer, IpNetwork};
use bulkhead_ebpf_abi::{SLOT_SCTP, SLOT_UDP};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

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
    /// A node of the control plane.
    ControlPlane,
    /// In a network group.
    Group(Arc<str>),
    /// In `cidr` and in none of `except` (sorted).
    Block { cidr: IpNetwork, except: Vec<IpNetwork> },
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
        Self::Block { cidr: canonical(&block.cidr), except }
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
            Self::Block { cidr, except } => {
                write!(f, "{cidr}")?;
                for (i, e) in except.iter().enumerate() {
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
