//! How the hooks of this node's pods get from one generation to the next. Pure.
//!
//! With the rules a pod may get another policy, and another identity, with which its packets are marked. An endpoint has a
//! policy for each half, so the new one stands there before the switch and is met by nobody. The mark is at all times the
//! number that the pod's own address has in the maps: as that number it means to either generation what it should.

use super::{identities::Identities, transition::Transition};
use bulkhead_ebpf_abi::{Addr, Endpoint, IDENTITY_LOCAL_POD, Identity};
use std::collections::BTreeMap;

/// Where an address of a local pod stands in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub identity: u32,
    /// The pod's: all its addresses have the same.
    pub policy: u32,
}

impl Placed {
    pub(super) fn entry(self) -> Identity {
        Identity { id: self.identity, flags: IDENTITY_LOCAL_POD }
    }
}

/// Endpoints to be written, by interface.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moves {
    /// Behind the entries that come before the switch,
    pub before: Vec<(u32, Endpoint)>,
    /// and behind those that come after it.
    pub after: Vec<(u32, Endpoint)>,
}

/// Whether each pod that has a place has its policy already.
pub fn have_policies(endpoints: &BTreeMap<u32, Endpoint>, pods: &BTreeMap<Addr, Placed>) -> bool {
    endpoints.values().all(|e| place(e, pods).is_none_or(|placed| e.policies == [placed.policy; 2]))
}

impl Moves {
    /// `held`: what the maps hold before the transition; `idle`: the half to come. Pods without a place stay as they are.
    pub fn of(
        endpoints: &BTreeMap<u32, Endpoint>,
        pods: &BTreeMap<Addr, Placed>,
        held: &Identities,
        transition: &Transition,
        idle: usize,
    ) -> Self {
        let mut moves = Self::default();
        let [entered, left] = [&transition.before, &transition.after]
            .map(|entries| entries.exact.iter().copied().collect::<BTreeMap<Addr, _>>());
        for (ifindex, now) in endpoints {
            let Some(placed) = place(now, pods) else { continue };
            let mark = |addr: &Addr, mark: u32| held.pod(addr).map_or(mark, |i| i.id);
            let entry = |entries: &BTreeMap<Addr, Option<Identity>>, addr: &Addr, mark: u32| {
                entries.get(addr).copied().flatten().map_or(mark, |i| i.id)
            };
            let mut before = Endpoint {
                identity_v4: entry(&entered, &now.ipv4, mark(&now.ipv4, now.identity_v4)),
                identity_v6: entry(&entered, &now.ipv6, mark(&now.ipv6, now.identity_v6)),
                ..*now
            };
            before.policies[idle & 1] = placed.policy;
            let after = Endpoint {
                policies: [placed.policy; 2],
                identity_v4: entry(&left, &now.ipv4, before.identity_v4),
                identity_v6: entry(&left, &now.ipv6, before.identity_v6),
                ..before
            };
            if before != *now {
                moves.before.push((*ifindex, before));
            }
            if after != before {
                moves.after.push((*ifindex, after));
            }
        }
        moves
    }
}

fn place(endpoint: &Endpoint, pods: &BTreeMap<Addr, Placed>) -> Option<Placed> {
    [endpoint.ipv4, endpoint.ipv6].iter().find_map(|addr| pods.get(addr)).copied()
}
