//! Flows that no rule judges on one of the two sides alone: a node's, to a pod that comes to it or leaves it in the change.

use super::side::Side;
use bulkhead_ebpf_abi::Addr;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// From an address of a node to one of a pod.
pub(super) struct Own {
    pub from: IpAddr,
    pub to: IpAddr,
    /// On which side the pod is the node's own: on one.
    pub own: [bool; 2],
    pub node: String,
    /// `namespace/name`.
    pub pod: String,
}

pub(super) fn own_on_one_side(sides: [&Side; 2]) -> Vec<Own> {
    let mut nodes: BTreeMap<&str, BTreeSet<Addr>> = BTreeMap::new();
    for (address, name) in sides.iter().flat_map(|side| side.nodes()) {
        nodes.entry(name).or_default().insert(address);
    }
    let mut all = Vec::new();
    let told: BTreeSet<Addr> = sides.iter().flat_map(|side| side.pods.keys()).copied().collect();
    for pod in told {
        let at = sides.map(|side| side.pods.get(&pod));
        let of: BTreeSet<&str> = at.into_iter().flatten().filter_map(|p| p.node.as_deref()).collect();
        for (node, address) in
            of.into_iter().flat_map(|n| nodes.get(n).into_iter().flatten().map(move |a| (n, *a)))
        {
            let own = sides.map(|side| side.is_own(address, pod));
            let (from, to) = (address.to_ip(), pod.to_ip());
            if own[0] == own[1] || from.is_ipv4() != to.is_ipv4() {
                continue;
            }
            let key = at[usize::from(own[1])].map(|p| p.key.clone()).unwrap_or_default();
            all.push(Own { from, to, own, node: node.to_string(), pod: key });
        }
    }
    all
}
