//! Reads the tables as the kernel does: look-up by look-up, from the very same values.

use crate::{Compiled, atom::Atom, compile::Policy, prefix::Prefix};
use bulkhead_ebpf_abi::{
    Addr, CELL_FINAL, CELL_KEEP, Cell, ID_WORLD, Identity, POLICY_AUDIT, POLICY_OPEN, PORT_SLOTS, RULE_NONE,
    VERDICT_ALLOW, port_slot,
};
use std::net::IpAddr;

/// What one end of a flow decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The true verdict, also where it is only recorded.
    pub allowed: bool,
    /// `isolation: Audit`: a deny drops nothing.
    pub audit: bool,
    /// `established: Keep`.
    pub keep: bool,
    /// See [`crate::RuleBook`]; `RULE_NONE` for a policy that does not exist.
    pub rule: u32,
    /// A deny of another tier than the partition's: neither Audit nor Keep softens it.
    pub last: bool,
    /// Admits packets of unknown origin.
    pub open: bool,
}

impl Decision {
    const NONE: Self =
        Self { allowed: false, audit: false, keep: false, rule: RULE_NONE, last: false, open: false };

    /// What a cell says under a policy whose rules are read as a list.
    pub(crate) fn of(list: &Policy, cell: &Cell) -> Self {
        Self {
            allowed: cell.verdict == VERDICT_ALLOW,
            audit: list.audit() && cell.flags & CELL_FINAL == 0,
            keep: cell.flags & CELL_KEEP != 0,
            rule: cell.rule,
            last: cell.flags & CELL_FINAL != 0,
            open: list.is_open(),
        }
    }

    /// Whether the packet goes on.
    pub fn passes(self) -> bool {
        self.allowed || self.audit
    }
}

impl Compiled {
    /// Who an address is, as the kernel's maps say it. Of local pods they hold
    /// [`Self::pod_identity`] besides.
    pub fn identity(&self, address: IpAddr) -> Identity {
        let address = Addr::from_ip(address);
        let of_prefix = || {
            let mut prefixes = (0..=128).rev().map(|length| Prefix::of_address(address, length));
            prefixes.find_map(|p| self.prefixes.get(&(p.address, p.length)))
        };
        self.exact.get(&address).or_else(of_prefix).copied().unwrap_or(Identity { id: ID_WORLD, flags: 0 })
    }

    /// Decides as the kernel does. `dir` is `DIR_EGRESS` or `DIR_INGRESS`; the port is that of the responder, or the
    /// ICMP type.
    pub fn evaluate(&self, policy: u32, dir: u32, peer_identity: u32, proto: u8, port: u16) -> Decision {
        self.look_up(policy, dir, peer_identity, proto, port).unwrap_or(Decision::NONE)
    }

    fn look_up(&self, policy: u32, dir: u32, peer: u32, proto: u8, port: u16) -> Option<Decision> {
        let tables = &self.tables;
        let policy = tables.policies.get(policy as usize)?.get(dir as usize)?;
        let class = tables.classes.get(peer as usize).copied().unwrap_or(0);
        let class = if class < policy.row_count { class } else { 0 };
        let row = *tables.rows.get((policy.row_base + class) as usize)?;
        let (slot, port) = port_slot(proto, port);
        let directory = tables.port_directories.get((policy.port_table * PORT_SLOTS + slot) as usize)?;
        let page = tables.port_pages.get(directory[usize::from(port >> 8)] as usize)?;
        let cell = tables.cells.get(row as usize + usize::from(page[usize::from(port & 0xff)]))?;
        Some(Decision {
            allowed: cell.verdict == VERDICT_ALLOW,
            audit: policy.flags & POLICY_AUDIT != 0 && cell.flags & CELL_FINAL == 0,
            last: cell.flags & CELL_FINAL != 0,
            keep: cell.flags & CELL_KEEP != 0,
            rule: cell.rule,
            open: policy.flags & POLICY_OPEN != 0,
        })
    }

    /// Network groups and prefixes of rules that hold its addresses, and what nodes are; `world` outside where there is
    /// nothing to say.
    pub(crate) fn places(&self, identity: u32) -> Vec<String> {
        let atoms = self.meaning(identity);
        if atoms.is_empty() {
            return vec!["world".into()];
        }
        let of_pods =
            |a: &&Atom| matches!(a, Atom::Pod | Atom::Partition(_) | Atom::Selected(_) | Atom::NamedPort(_));
        atoms.iter().filter(|a| !of_pods(a)).map(ToString::to_string).collect()
    }

    /// Groups and prefixes of rules that hold its addresses, selectors that pick it, `node`, `localNode`, `controlPlane`, `clusterDNS`; `world`
    /// where there is nothing to say, not even a partition.
    pub fn known_as(&self, identity: u32) -> Vec<String> {
        let atoms = self.meaning(identity);
        if atoms.is_empty() {
            return vec!["world".into()];
        }
        let said = |a: &&Atom| !matches!(a, Atom::Pod | Atom::Partition(_));
        atoms.iter().filter(said).map(ToString::to_string).collect()
    }
}
