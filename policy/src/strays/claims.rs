//! Who has claimed what.

use crate::{Named, prefix::Prefix};
use bulkhead_api::objects::IPBlockSpec;
use bulkhead_ebpf_abi::Addr;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub struct Claims {
    blocks: BTreeMap<Prefix, Vec<String>>,
    lengths: BTreeSet<u8>,
}

impl Claims {
    pub fn of(blocks: &Named<IPBlockSpec>) -> Self {
        let mut claims = Self::default();
        for block in blocks.values() {
            let prefix = Prefix::of(block.cidr);
            claims.blocks.entry(prefix).or_default().push(block.node.clone());
            claims.lengths.insert(prefix.length);
        }
        claims
    }

    /// Whether a node has claimed a block around this address.
    pub fn hold(&self, node: &str, address: Addr) -> bool {
        let mut around =
            self.lengths.iter().filter_map(|l| self.blocks.get(&Prefix::of_address(address, *l)));
        around.any(|nodes| nodes.iter().any(|n| n == node))
    }
}
