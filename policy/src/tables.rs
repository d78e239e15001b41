//! The decision tables of one generation, as they are written to the kernel. How they are read: `bulkhead_ebpf_abi`.

use crate::Chunked;
use bulkhead_ebpf_abi::{Cell, PolicyDir, PortDirectory, PortPage};
use std::sync::Arc;

/// A clone shares them all.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Tables {
    /// Address class by identity; 0: told apart by no rule.
    pub classes: Arc<Vec<u32>>,
    /// By policy number, then by direction (`DIR_EGRESS`, `DIR_INGRESS`).
    pub policies: Arc<Vec<[PolicyDir; 2]>>,
    pub port_directories: Chunked<PortDirectory>,
    pub port_pages: Chunked<PortPage>,
    /// Offsets into `cells`.
    pub rows: Chunked<u32>,
    pub cells: Chunked<Cell>,
}
