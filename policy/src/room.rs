//! Whether tables fit the kernel's maps, where no kernel is there to ask.

use crate::Compiled;
use bulkhead_ebpf_abi::{PORT_SLOTS, Sizes};

/// As the datapath says it of its maps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{table} needs {needed} entries and has room for {room}")]
pub struct NoRoom {
    pub table: &'static str,
    pub needed: usize,
    pub room: u32,
}

impl Compiled {
    /// By the sizes that every daemon's maps have.
    ///
    /// # Errors
    /// Names the first table that is too small.
    pub fn check_room(&self) -> Result<(), NoRoom> {
        let (tables, sizes) = (&self.tables, Sizes::DEFAULT);
        let last = self.prefixes.values().chain(self.exact.values()).map(|identity| identity.id as usize + 1);
        let identities = tables.classes.len().max(last.max().unwrap_or_default());
        let all = [
            ("CLASS", identities, sizes.identities),
            ("POLICY", tables.policies.len() * 2, sizes.policies * 2),
            ("PORT_DIR", tables.port_directories.len(), sizes.port_tables * PORT_SLOTS),
            ("PORT_PAGE", tables.port_pages.len(), sizes.port_pages),
            ("ROW", tables.rows.len(), sizes.rows),
            ("CELL", tables.cells.len(), sizes.cells),
            ("IDENTITY_PREFIX", self.prefixes.len(), sizes.identities * 2),
            ("IDENTITY_EXACT", self.exact.len(), sizes.identities * 2),
        ];
        match all.into_iter().find(|(_, needed, room)| *needed > *room as usize) {
            Some((table, needed, room)) => Err(NoRoom { table, needed, room }),
            None => Ok(()),
        }
    }
}
