//! The decision: a fixed number of look-ups, whatever the number of rules. A look-up that fails is a no.

use crate::maps::{
    CELL, CLASS, HALF_CELLS, HALF_IDENTITIES, HALF_POLICIES, HALF_PORT_PAGES, HALF_PORT_TABLES, HALF_ROWS,
    POLICY, PORT_DIR, PORT_PAGE, ROW,
};
use bulkhead_ebpf_abi::{
    CELL_FINAL, CELL_KEEP, Cell, POLICY_AUDIT, POLICY_OPEN, PORT_SLOTS, PolicyDir, RULE_NONE, VERDICT_ALLOW,
    VERDICT_DENY, port_slot,
};

/// A cell and its policy's flags, in a register: rule, verdict, cell flags, policy flags.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Answer(u64);

impl Answer {
    #[inline(always)]
    fn new(rule: u32, verdict: u8, flags: u8, policy: u32) -> Self {
        Self(
            u64::from(rule)
                | u64::from(verdict) << 32
                | u64::from(flags) << 40
                | u64::from(policy as u8) << 48,
        )
    }

    #[inline(always)]
    pub fn rule(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub fn allows(self) -> bool {
        (self.0 >> 32) as u8 == VERDICT_ALLOW
    }

    #[inline(always)]
    pub fn keeps(self) -> bool {
        (self.0 >> 40) as u8 & CELL_KEEP != 0
    }

    /// Of a denial: no tier but the partition's says no.
    #[inline(always)]
    pub fn is_partitions(self) -> bool {
        (self.0 >> 40) as u8 & CELL_FINAL == 0
    }

    #[inline(always)]
    pub fn audits(self) -> bool {
        (self.0 >> 48) as u32 & POLICY_AUDIT != 0 && self.is_partitions()
    }

    #[inline(always)]
    pub fn is_open(self) -> bool {
        (self.0 >> 48) as u32 & POLICY_OPEN != 0
    }
}

/// `policy_dir` is `policy * 2 + dir`; `service` is protocol `<< 16 |` port.
#[inline(never)]
pub fn decide(generation: u32, policy_dir: u32, peer: u32, service: u32) -> Answer {
    let half = generation & 1;
    let Some(policy) = in_half(policy_dir, HALF_POLICIES.load() * 2, half).and_then(|i| POLICY.get(i)) else {
        return Answer::new(RULE_NONE, VERDICT_DENY, 0, 0);
    };
    match cell(half, policy, peer, service) {
        Some(cell) => Answer::new(cell.rule, cell.verdict, cell.flags, policy.flags),
        None => Answer::new(RULE_NONE, VERDICT_DENY, 0, policy.flags),
    }
}

#[inline(always)]
fn cell(half: u32, policy: &PolicyDir, peer: u32, service: u32) -> Option<&'static Cell> {
    // No row: no generation wrote this policy.
    if policy.row_count == 0 {
        return None;
    }
    let class = *CLASS.get(in_half(peer, HALF_IDENTITIES.load(), half)?)?;
    let class = if class < policy.row_count { class } else { 0 };
    let row = *ROW.get(in_half(policy.row_base.wrapping_add(class), HALF_ROWS.load(), half)?)?;

    let (slot, index) = port_slot((service >> 16) as u8, service as u16);
    let directory = policy.port_table.wrapping_mul(PORT_SLOTS).wrapping_add(slot);
    let directory = PORT_DIR.get(in_half(directory, HALF_PORT_TABLES.load() * PORT_SLOTS, half)?)?;
    let page = directory[usize::from(index >> 8)];
    let page = PORT_PAGE.get(in_half(page, HALF_PORT_PAGES.load(), half)?)?;
    let port_class = u32::from(page[usize::from(index & 0xff)]);
    CELL.get(in_half(row.wrapping_add(port_class), HALF_CELLS.load(), half)?)
}

/// Where an entry of a half stands; none beyond the half, so that no generation reads the other's.
#[inline(always)]
fn in_half(index: u32, entries: u32, half: u32) -> Option<u32> {
    if index < entries { Some(half * entries + index) } else { None }
}
