//! Decision tables by hand: every identity its own class, every row its own, a few ports that rules can tell apart.

use bulkhead_ebpf_abi::{
    CELL_FINAL, CELL_KEEP, Cell, DIR_EGRESS, DIR_INGRESS, PORT_SLOTS, PolicyDir, RULE_DEFAULT_DENY, Sizes,
    VERDICT_ALLOW, VERDICT_DENY, port_slot,
};
use bulkhead_policy::Tables;
use std::{collections::BTreeMap, sync::Arc};

pub const SIZES: Sizes =
    Sizes { identities: 64, policies: 4, port_tables: 1, port_pages: 64, rows: 512, cells: 4096 };

/// Identities with rows of their own; those above are told apart by no rule.
pub const CLASSES: u32 = 40;

/// What rules can name; all else is `Port::Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Port {
    Other,
    Tcp80,
    /// 8000 to 9999: over several pages.
    TcpRange,
    Udp53,
    Sctp3868,
    Echo,
    EchoReply,
    Unreachable,
    Gre,
}
const PORTS: usize = 9;

#[derive(Clone, Default)]
pub struct Rules {
    cells: BTreeMap<(u32, u32, u32, Port), Cell>,
    flags: BTreeMap<u32, u32>,
    /// By how much the numbers of classes are turned.
    turn: u32,
}

impl Rules {
    /// Nothing is allowed.
    pub fn none() -> Self {
        Self::default()
    }

    pub fn egress(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.cell(policy, DIR_EGRESS, peer, port, rule, 0)
    }

    pub fn ingress(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.cell(policy, DIR_INGRESS, peer, port, rule, 0)
    }

    pub fn egress_keep(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.cell(policy, DIR_EGRESS, peer, port, rule, CELL_KEEP)
    }

    pub fn ingress_keep(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.cell(policy, DIR_INGRESS, peer, port, rule, CELL_KEEP)
    }

    /// Denied by another tier than the partition's.
    pub fn egress_final(mut self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        let cell = Cell { rule, verdict: VERDICT_DENY, flags: CELL_FINAL, reserved: 0 };
        self.cells.insert((policy, DIR_EGRESS, peer, port), cell);
        self
    }

    /// Denied, and by which rule.
    pub fn egress_denied(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.denied(policy, DIR_EGRESS, peer, port, rule)
    }

    pub fn ingress_denied(self, policy: u32, peer: u32, port: Port, rule: u32) -> Self {
        self.denied(policy, DIR_INGRESS, peer, port, rule)
    }

    fn denied(mut self, policy: u32, dir: u32, peer: u32, port: Port, rule: u32) -> Self {
        let cell = Cell { rule, verdict: VERDICT_DENY, flags: 0, reserved: 0 };
        self.cells.insert((policy, dir, peer, port), cell);
        self
    }

    /// The same meaning in other places of the tables.
    pub fn turned(mut self, by: u32) -> Self {
        self.turn = by % CLASSES;
        self
    }

    /// `POLICY_*` bits.
    pub fn flags(mut self, policy: u32, flags: u32) -> Self {
        self.flags.insert(policy, flags);
        self
    }

    fn cell(mut self, policy: u32, dir: u32, peer: u32, port: Port, rule: u32, flags: u8) -> Self {
        let cell = Cell { rule, verdict: VERDICT_ALLOW, flags, reserved: 0 };
        self.cells.insert((policy, dir, peer, port), cell);
        self
    }

    pub fn tables(&self) -> Tables {
        let classes = (0..CLASSES).map(|identity| (identity + self.turn) % CLASSES).collect();
        let mut tables = Tables { classes: Arc::new(classes), ..Tables::default() };
        let (directories, pages) = ports();
        (tables.port_directories, tables.port_pages) = (directories.into(), pages.into());
        let (mut rows, mut cells) = (Vec::new(), Vec::new());
        for policy in 0..SIZES.policies {
            let dirs = [DIR_EGRESS, DIR_INGRESS].map(|dir| self.policy(&mut rows, &mut cells, policy, dir));
            Arc::make_mut(&mut tables.policies).push(dirs);
        }
        (tables.rows, tables.cells) = (rows.into(), cells.into());
        tables
    }

    fn policy(&self, rows: &mut Vec<u32>, cells: &mut Vec<Cell>, policy: u32, dir: u32) -> PolicyDir {
        let row_base = rows.len() as u32;
        for class in 0..CLASSES {
            let peer = (class + CLASSES - self.turn) % CLASSES;
            rows.push(cells.len() as u32);
            for port in ALL_PORTS {
                let deny = Cell { rule: RULE_DEFAULT_DENY, verdict: VERDICT_DENY, flags: 0, reserved: 0 };
                cells.push(*self.cells.get(&(policy, dir, peer, port)).unwrap_or(&deny));
            }
        }
        let flags = self.flags.get(&policy).copied().unwrap_or(0);
        PolicyDir { port_table: 0, row_base, row_count: CLASSES, flags }
    }
}

const ALL_PORTS: [Port; PORTS] = [
    Port::Other,
    Port::Tcp80,
    Port::TcpRange,
    Port::Udp53,
    Port::Sctp3868,
    Port::Echo,
    Port::EchoReply,
    Port::Unreachable,
    Port::Gre,
];

/// One port table; page 0 is `Port::Other` throughout.
fn ports() -> (Vec<[u32; 256]>, Vec<[u16; 256]>) {
    let mut directories = vec![[0u32; 256]; PORT_SLOTS as usize];
    let mut pages = vec![[0u16; 256]];
    let mut set = |proto: u8, port: u16, class: Port| {
        let (slot, index) = port_slot(proto, port);
        let page = &mut directories[slot as usize][usize::from(index >> 8)];
        if *page == 0 {
            *page = pages.len() as u32;
            pages.push([0; 256]);
        }
        pages[*page as usize][usize::from(index & 0xff)] = class as u16;
    };
    (8000..10_000).for_each(|port| set(6, port, Port::TcpRange));
    set(6, 80, Port::Tcp80);
    set(17, 53, Port::Udp53);
    set(132, 3868, Port::Sctp3868);
    set(47, 0, Port::Gre);
    for (proto, echo, reply, unreachable) in [(1, 8, 0, 3), (58, 128, 129, 1)] {
        set(proto, echo, Port::Echo);
        set(proto, reply, Port::EchoReply);
        set(proto, unreachable, Port::Unreachable);
    }
    (directories, pages)
}
