//! What every packet finds, after every single write of the maps on the way from one generation to the next, and on the way
//! back.

use super::*;
use crate::datapath::endpoints::{Moves, Placed};
use bulkhead_ebpf_abi::{Endpoint, IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD};
use proptest::prelude::*;

const NUMBERS: u32 = 9;
/// The running half; the other is the next generation's.
const LIVE: usize = 0;
const IDLE: usize = 1;

/// Two sets of entries over few addresses, so that they nest and collide, and classes for each. Two pods are of this node.
#[derive(Clone, Debug)]
struct Case {
    prefixes: [Prefixes; 2],
    exact: [Exact; 2],
    pods: [BTreeMap<Addr, Identity>; 2],
    policies: [[u32; 2]; 2],
    classes: [Vec<u32>; 2],
}

fn v4(last: u8) -> Addr {
    Addr::v4([10, 0, 0, last])
}

/// Of pod 0 or 1, which have two each.
fn pod_of(addr: Addr) -> usize {
    usize::from(addr.0[15] >= 14)
}

fn any_case() -> impl Strategy<Value = Case> {
    let number = || prop_oneof![Just(ID_WORLD), 2..NUMBERS];
    let prefix = (0u8..16, prop_oneof![Just(120u8), 124u8..=128]).prop_map(|(last, length)| {
        let mask = u8::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        (v4(last & mask), length)
    });
    let id = |id| Identity { id, flags: 0 };
    let prefixes = || prop::collection::vec((prefix.clone(), number().prop_map(id)), 0..8);
    let flags = prop_oneof![Just(0), Just(IDENTITY_LOCAL_NODE)];
    let identity = (number(), flags).prop_map(|(id, flags)| Identity { id, flags });
    let exact = || prop::collection::vec(((0u8..12).prop_map(v4), identity.clone()), 0..6);
    let pod = number().prop_map(|id| Identity { id, flags: IDENTITY_LOCAL_POD });
    let pods = || prop::collection::btree_map((12u8..16).prop_map(v4), pod.clone(), 0..4);
    let classes = || {
        prop::collection::vec(0u32..5, NUMBERS as usize).prop_map(|mut classes| {
            classes[ID_WORLD as usize] = 0;
            classes
        })
    };
    let side = || (prefixes(), exact(), pods(), [0u32..3, 0..3], classes());
    (side(), side()).prop_map(|(a, b)| Case {
        prefixes: [a.0.into_iter().collect(), b.0.into_iter().collect()],
        exact: [a.1.into_iter().collect(), b.1.into_iter().collect()],
        pods: [a.2, b.2],
        policies: [a.3, b.3],
        classes: [a.4, b.4],
    })
}

/// What is in the maps.
#[derive(Clone, Debug, PartialEq)]
struct Maps {
    held: Identities,
    classes: [Vec<u32>; 2],
    endpoints: BTreeMap<u32, Endpoint>,
}

#[derive(Clone, Debug)]
enum Write {
    Class(usize, u32, u32),
    Prefix(Prefix, Option<Identity>),
    Exact(Addr, Option<Identity>),
    Endpoint(u32, Endpoint),
}

/// What packets are judged by: the class of every address, and of each pod its policy and the classes of its marks.
#[derive(Debug, PartialEq)]
struct Meaning {
    addresses: Vec<u32>,
    pods: Vec<(u32, [u32; 2])>,
}

impl Maps {
    fn write(&mut self, write: &Write) {
        match *write {
            Write::Class(half, id, class) => self.classes[half][id as usize] = class,
            Write::Prefix(prefix, value) => self.held.set_prefix(prefix, value),
            Write::Exact(addr, Some(identity)) => self.held.set_exact(addr, identity),
            Write::Exact(addr, None) => self.held.remove_exact(&addr),
            Write::Endpoint(ifindex, endpoint) => drop(self.endpoints.insert(ifindex, endpoint)),
        }
    }

    fn meaning(&self, half: usize) -> Meaning {
        let class = |id: u32| class(&self.classes[half], id);
        let lookup = Lookup::of(&self.held.prefixes);
        let who = |a: Addr| self.held.exact.get(&a).map_or_else(|| lookup.covering(a, 128), |i| i.id);
        let pod = |e: &Endpoint| (e.policies[half], [e.identity_v4, e.identity_v6].map(class));
        Meaning {
            addresses: (0..18).map(|n| class(who(v4(n)))).collect(),
            pods: self.endpoints.values().map(pod).collect(),
        }
    }
}

fn entries(entries: &Entries) -> impl Iterator<Item = Write> {
    let prefixes = entries.prefixes.iter().map(|(prefix, value)| Write::Prefix(*prefix, *value));
    prefixes.chain(entries.exact.iter().map(|(addr, value)| Write::Exact(*addr, *value)))
}

fn endpoints(endpoints: &[(u32, Endpoint)]) -> impl Iterator<Item = Write> {
    endpoints.iter().map(|(ifindex, endpoint)| Write::Endpoint(*ifindex, *endpoint))
}

fn classes(half: usize, classes: &BTreeMap<u32, u32>) -> impl Iterator<Item = Write> {
    classes.iter().map(move |(id, class)| Write::Class(half, *id, *class))
}

/// Everybody's entries, and an endpoint for each pod that has an address.
fn maps_of(prefixes: &Prefixes, exact: &Exact, pods: &BTreeMap<Addr, Identity>, policies: [u32; 2]) -> Maps {
    let all = exact.iter().chain(pods).map(|(a, i)| (*a, *i)).collect();
    let mut maps = Maps {
        held: Identities::of(prefixes.clone(), all),
        classes: [Vec::new(), Vec::new()],
        endpoints: BTreeMap::new(),
    };
    for (addr, identity) in pods {
        let pod = pod_of(*addr);
        let endpoint = maps.endpoints.entry(pod as u32).or_default();
        endpoint.policies = [policies[pod]; 2];
        if addr.0[15] % 2 == 0 {
            (endpoint.ipv4, endpoint.identity_v4) = (*addr, identity.id);
        } else {
            (endpoint.ipv6, endpoint.identity_v6) = (*addr, identity.id);
        }
    }
    maps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    /// Before the switch everything is what it was, behind it what it is to be, at every single step; and so it is when a
    /// write fails and all before it is taken back.
    #[test]
    fn every_packet_finds_the_addresses_and_pods_of_the_generation_it_is_decided_by(
        case in any_case(),
        turn in 0u32..2,
        refused in 0usize..24,
    ) {
        let Case { prefixes, exact, pods, policies, classes: [running, next] } = case;
        let mut maps = maps_of(&prefixes[0], &exact[0], &pods[0], policies[0]);
        // Pods neither come nor go with a generation; of some it does not know.
        let mut to_be = pods[0].clone();
        let mut policies_to_be = policies[0];
        for (addr, identity) in &mut to_be {
            if let Some(other) = pods[1].get(addr) {
                *identity = *other;
                policies_to_be[pod_of(*addr)] = policies[1][pod_of(*addr)];
            }
        }
        let mut goal = maps_of(&prefixes[1], &exact[1], &to_be, policies_to_be);
        let placed = pods[1]
            .iter()
            .map(|(addr, i)| (*addr, Placed { identity: i.id, policy: policies[1][pod_of(*addr)] }))
            .collect();
        let wanted = Wanted { prefixes: &prefixes[1], exact: &exact[1], pods: &pods[1] };
        let marks: Vec<u32> = maps.endpoints.values().flat_map(|e| [e.identity_v4, e.identity_v6]).collect();
        let known = Classes { running: &running, next: &next, room: 128, turn, marks: &marks };
        let plan = Transition::of(&maps.held, &wanted, &known);
        prop_assert_eq!(plan.unmatched, 0);
        let moves = Moves::of(&maps.endpoints, &placed, &maps.held, &plan, IDLE);

        maps.classes = [running, next];
        maps.classes.iter_mut().for_each(|half| half.resize(128, 0));
        goal.classes = maps.classes.clone();
        let (old, new) = (maps.meaning(LIVE), goal.meaning(IDLE));
        let began = maps.clone();
        let before: Vec<Write> = classes(LIVE, &plan.running)
            .chain(classes(IDLE, &plan.next))
            .chain(entries(&plan.before))
            .chain(endpoints(&moves.before))
            .collect();
        let mut broken = maps.clone();
        for (n, write) in before.iter().enumerate() {
            maps.write(write);
            prop_assert_eq!(&maps.meaning(LIVE), &old, "before the switch, at {} {:?}", n, write);
            if n < refused {
                broken.write(write);
            }
        }
        prop_assert_eq!(&maps.meaning(IDLE), &new, "at the switch");
        for write in entries(&plan.after).chain(endpoints(&moves.after)) {
            maps.write(&write);
            prop_assert_eq!(&maps.meaning(IDLE), &new, "behind the switch, at {:?}", write);
        }
        prop_assert_eq!((&maps.held, &maps.endpoints), (&goal.held, &goal.endpoints));

        let were = moves.before.iter().map(|(i, _)| (*i, began.endpoints[i])).collect::<Vec<_>>();
        let former = plan.running.keys().map(|id| (*id, class(&began.classes[LIVE], *id))).collect();
        let inverse = plan.before.inverse(&began.held);
        let back = endpoints(&were).chain(entries(&inverse)).chain(classes(LIVE, &former));
        for write in back.collect::<Vec<_>>() {
            broken.write(&write);
            prop_assert_eq!(&broken.meaning(LIVE), &old, "taken back, at {:?}", write);
        }
        broken.classes[IDLE].clone_from(&began.classes[IDLE]);
        prop_assert_eq!(broken, began);
    }
}
