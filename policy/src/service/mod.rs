//! Services: which address, protocol and port stands for which pods, as this node's pods see it. Pure.
//!
//! ```text
//! Service ────────┐
//! EndpointSlice ──┼─update─▶ plan of each service that changed ──▶ claims on frontends ──▶ the frontends that changed
//! Node ───────────┘          (reach: who is ready, local, near)    (one winner each)
//! ```
//! The result depends on the objects and never on the path to them; an update looks only at services that changed, whose
//! endpoints did, or, when a node's addresses or this node's zone change, at all.

mod objects;
mod plan;
mod reach;
mod table;

pub use objects::{Endpoint, EndpointSlice, LeftOut, Service, ServicePort, SlicePort};
pub use plan::{Backend, Frontend, Left, Stands};
pub use table::ServiceTable;

use bulkhead_ebpf_abi::{Addr, FRONTEND_ANY_NODE_V4, FRONTEND_ANY_NODE_V6};

/// Where node ports of all nodes stand.
const fn any_node(v6: bool) -> Addr {
    if v6 { FRONTEND_ANY_NODE_V6 } else { FRONTEND_ANY_NODE_V4 }
}
