//! Tables depend on the objects alone: whatever came before, and however much of it was kept, they are those of a compile
//! from scratch, but for numbers and places.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

#[path = "oracle/cases.rs"]
#[allow(dead_code, reason = "packets are the oracle's")]
mod cases;
mod common;

use bulkhead_api::objects::NetworkGroupSpec;
use bulkhead_ebpf_abi::{
    Addr, Cell, ID_WORLD, PORT_SLOTS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PolicyDir,
    PortPage, port_slot,
};
use bulkhead_policy::{Compiled, Decision, Interner, Local, LocalPod, Objects, compile};
use cases::any_objects;
use common::*;
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

fn pods(objects: &Objects) -> Vec<LocalPod> {
    objects.pods.iter().filter(|(_, p)| !p.host_network).map(|(key, _)| local(objects, key)).collect()
}

/// One snapshot after another, each made of the one before and of parts of another: whole kinds, or a pod or a policy alone.
fn changes() -> impl Strategy<Value = Vec<Objects>> {
    let parts = (prop::collection::vec(any::<bool>(), 8), any_objects());
    (any_objects(), prop::collection::vec(parts, 1..6)).prop_map(|(first, changes)| {
        let mut history = vec![first];
        for (parts, other) in changes {
            history.push(mixed(history.last().unwrap().clone(), other, &parts));
        }
        history
    })
}

fn mixed(mut objects: Objects, other: Objects, parts: &[bool]) -> Objects {
    let [partitions, groups, policies, cluster_policies, namespaces, nodes, all_pods, one] = parts else {
        panic!("eight parts")
    };
    if *partitions {
        objects.partitions = other.partitions;
        objects.strays = other.strays;
    }
    if *groups {
        objects.network_groups = other.network_groups;
        objects.cluster_dns = other.cluster_dns;
        objects.cluster_dns_ports = other.cluster_dns_ports;
    }
    if *policies {
        objects.network_policies = other.network_policies;
    } else if let Some((key, policy)) = other.network_policies.get_min().filter(|_| *one) {
        objects.network_policies.insert(key.clone(), policy.clone());
    }
    if *cluster_policies {
        objects.cluster_network_policies = other.cluster_network_policies;
    }
    if *namespaces {
        objects.namespaces = other.namespaces;
    }
    if *nodes {
        objects.nodes = other.nodes;
        objects.api_servers = other.api_servers;
        // Pods with addresses of elsewhere are gone.
        objects.strays.clear();
    }
    if *all_pods {
        objects.pods = other.pods;
    } else if let Some((key, pod)) = other.pods.get_max().filter(|_| *one) {
        objects.pods.insert(key.clone(), pod.clone());
    } else if let Some((key, _)) = objects.pods.get_min().cloned() {
        objects.pods.remove(&key);
    }
    objects
}

/// Every snapshot compiled from what the one before was made of, and switched to: as it goes on, and once nothing is left
/// of what was in force before it.
fn after(history: &[Objects]) -> Vec<[Compiled; 2]> {
    let mut interner = Interner::default();
    let mut all: Vec<[Compiled; 2]> = Vec::new();
    for objects in history {
        let pods = pods(objects);
        let next = |former, interner: &mut Interner| {
            let compiled = compile(objects, interner, &Local { pods: &pods, former, ..HERE }).unwrap();
            interner.switched();
            compiled
        };
        let compiled = next(all.last().map(|[compiled, _]| compiled), &mut interner);
        let alone = next(Some(&compiled), &mut interner.clone());
        all.push([compiled, alone]);
    }
    all
}

type Named = (String, Cell);

/// A policy's direction without a number in it.
#[derive(Debug, PartialEq)]
struct WrittenOut {
    flags: u32,
    /// Pages in order of first appearance, and which of them each 256 ports have.
    pages: (Vec<PortPage>, Vec<usize>),
    /// By class: the cells that ports lead to, with the rules' names.
    rows: Vec<Vec<Named>>,
}

fn written_out(c: &Compiled, policy: PolicyDir, classes: &[u32]) -> WrittenOut {
    let tables = &c.tables;
    let first = (policy.port_table * PORT_SLOTS) as usize;
    let directories = (first..first + PORT_SLOTS as usize).map(|at| tables.port_directories[at]);
    let (mut pages, mut seen) = (Vec::new(), BTreeMap::new());
    let mut of_ports = Vec::new();
    for page in directories.flatten() {
        of_ports.push(*seen.entry(page).or_insert_with(|| {
            pages.push(tables.port_pages[page as usize]);
            pages.len() - 1
        }));
    }
    let widest = usize::from(*pages.iter().flatten().max().unwrap());
    let name = |cell: &Cell| (c.rules.get(cell.rule).unwrap().name.clone(), Cell { rule: 0, ..*cell });
    let row = |class: &u32| {
        let class = if *class < policy.row_count { *class } else { 0 };
        let row = tables.rows[(policy.row_base + class) as usize] as usize;
        (row..=row + widest).map(|at| name(&tables.cells[at])).collect()
    };
    WrittenOut { flags: policy.flags, pages: (pages, of_ports), rows: classes.iter().map(row).collect() }
}

/// The class of the world, of every entry, and of the pods of this node, in order; and the same by first appearance.
fn classes(c: &Compiled, objects: &Objects) -> (Vec<u32>, Vec<usize>) {
    let of_pods = pods(objects).into_iter().flat_map(|pod| {
        let placement = c.place(objects, &pod).unwrap();
        pod.addresses.into_iter().map(move |a| c.pod_identity(&placement, a)).collect::<Vec<_>>()
    });
    let entries = c.prefixes.values().chain(c.exact.values()).map(|i| i.id).chain(of_pods);
    let classes: Vec<u32> = [0].into_iter().chain(entries.map(|id| c.tables.classes[id as usize])).collect();
    let mut seen = BTreeMap::new();
    let canonical = classes
        .iter()
        .map(|class| {
            let next = seen.len();
            *seen.entry(*class).or_insert(next)
        })
        .collect();
    (classes, canonical)
}

fn check(found: &Compiled, objects: &Objects) -> Result<(), TestCaseError> {
    let pods = pods(objects);
    let scratch = compiled_for(objects, &pods);
    prop_assert!(
        found.prefixes.keys().eq(scratch.prefixes.keys()) && found.exact.keys().eq(scratch.exact.keys())
    );
    let flags =
        |c: &Compiled| c.prefixes.values().chain(c.exact.values()).map(|i| i.flags).collect::<Vec<_>>();
    prop_assert_eq!(flags(found), flags(&scratch));
    let ((found_classes, found_order), (scratch_classes, scratch_order)) =
        (classes(found, objects), classes(&scratch, objects));
    prop_assert_eq!(found_order, scratch_order);
    let policies = |c: &Compiled| {
        let of_pods = pods.iter().map(|pod| c.place(objects, pod).unwrap().policy).collect::<Vec<_>>();
        let of_partitions = scratch.policies.keys().map(|name| c.policies[name]).collect::<Vec<_>>();
        [of_pods, of_partitions].concat()
    };
    for (a, b) in policies(found).into_iter().zip(policies(&scratch)) {
        for dir in 0..2 {
            let (a, b) = (found.tables.policies[a as usize][dir], scratch.tables.policies[b as usize][dir]);
            prop_assert_eq!(
                written_out(found, a, &found_classes),
                written_out(&scratch, b, &scratch_classes)
            );
        }
    }
    Ok(())
}

/// The identity of what no other entry than this prefix, or one around it, says.
fn identity_of(c: &Compiled, (addr, length): (Addr, u8)) -> u32 {
    let differs = |other: &Addr| u128::from_be_bytes(addr.0) ^ u128::from_be_bytes(other.0);
    let holds =
        |at: &Addr, l: u8| l <= length && differs(at).checked_shr(128 - u32::from(l)).unwrap_or(0) == 0;
    let around = c.prefixes.iter().filter(|((at, l), _)| holds(at, *l));
    around.max_by_key(|((_, l), _)| *l).map_or(ID_WORLD, |(_, identity)| identity.id)
}

/// Everybody that one of the two tells apart, as a number to each; one for each pair of classes.
fn peers(found: &Compiled, scratch: &Compiled, objects: &Objects) -> Vec<[u32; 2]> {
    let both = [found, scratch];
    let prefixes = both.into_iter().flat_map(|c| c.prefixes.keys().copied());
    let exact = both.into_iter().flat_map(|c| c.exact.keys().copied());
    let of_pods = pods(objects).into_iter().flat_map(|pod| {
        let placed = both.map(|c| c.place(objects, &pod).unwrap());
        let number = move |a: &IpAddr| [0, 1].map(|n| both[n].pod_identity(&placed[n], *a));
        pod.addresses.iter().map(number).collect::<Vec<_>>()
    });
    let all = prefixes.map(|prefix| both.map(|c| identity_of(c, prefix)));
    let all = all.chain(exact.map(|address| both.map(|c| c.identity(address.to_ip()).id))).chain(of_pods);
    let class = |c: &Compiled, id: u32| c.tables.classes.get(id as usize).copied().unwrap_or(0);
    let by_class =
        all.chain([[ID_WORLD; 2]]).map(|ids| ([class(found, ids[0]), class(scratch, ids[1])], ids));
    by_class.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// The first protocol and port of every run that the policy does not tell apart.
fn edges(c: &Compiled, policy: PolicyDir) -> BTreeSet<(u8, u16)> {
    let protocols = [PROTO_TCP, PROTO_UDP, PROTO_SCTP, PROTO_ICMP, PROTO_ICMPV6, 0];
    let mut edges = BTreeSet::new();
    for proto in protocols {
        let directory = policy.port_table * PORT_SLOTS + port_slot(proto, 0).0;
        let mut before = None;
        for (high, page) in c.tables.port_directories[directory as usize].iter().enumerate() {
            if before.replace(page) == Some(page) {
                continue;
            }
            let classes = &c.tables.port_pages[*page as usize];
            let begins = |low: &usize| *low == 0 || classes[*low] != classes[low - 1];
            let ports = (0..classes.len()).filter(begins).map(|low| (high * 256 + low) as u16);
            // Of protocols without ports the number stands in the port's place.
            edges.extend(ports.map(|port| if proto == 0 { (port as u8, 0) } else { (proto, port) }));
        }
    }
    edges
}

/// The tables that are switched to: whatever numbers and classes they have kept from before, they decide as those of a compile
/// from scratch do; how many questions that were.
fn check_decisions(found: &Compiled, objects: &Objects) -> Result<usize, TestCaseError> {
    let pods = pods(objects);
    let scratch = compiled_for(objects, &pods);
    let both = [found, &scratch];
    let of_pods = pods.iter().map(|pod| both.map(|c| c.place(objects, pod).unwrap().policy));
    let of_partitions = scratch.policies.keys().map(|name| both.map(|c| c.policies[name]));
    let policies: BTreeSet<[u32; 2]> = of_pods.chain(of_partitions).collect();
    let peers = peers(found, &scratch, objects);
    let mut questions = 0;
    for policy in policies {
        for dir in 0..2 {
            let edges = |n: usize| edges(both[n], both[n].tables.policies[policy[n] as usize][dir]);
            for (proto, port) in edges(0).union(&edges(1)) {
                for peer in &peers {
                    let [a, b] = [0, 1].map(|n| {
                        let c = both[n];
                        let decision = c.evaluate(policy[n], dir as u32, peer[n], *proto, *port);
                        (&c.rules.get(decision.rule).unwrap().name, Decision { rule: 0, ..decision })
                    });
                    prop_assert_eq!(
                        a,
                        b,
                        "policies {:?}, direction {}, {:?}, {} {}",
                        policy,
                        dir,
                        peer,
                        proto,
                        port
                    );
                    questions += 1;
                }
            }
        }
    }
    Ok(questions)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_every_change_the_tables_are_those_of_a_compile_from_scratch(history in changes()) {
        for ([_, alone], objects) in after(&history).iter().zip(&history) {
            check(alone, objects)?;
        }
    }

    #[test]
    fn after_every_change_the_tables_that_are_switched_to_decide_as_those_of_a_compile_from_scratch(
        history in changes()
    ) {
        for ([going_on, _], objects) in after(&history).iter().zip(&history) {
            prop_assert!(check_decisions(going_on, objects)? > 0);
        }
    }

    #[test]
    fn the_same_objects_again_change_nothing(objects in any_objects()) {
        let [first, again] = &after(&[objects])[0];
        prop_assert_eq!(&first.tables, &again.tables);
        prop_assert_eq!(&first.exact, &again.exact);
    }
}

/// Rows are policies times classes: what is gone must not take the room of what is there.
#[test]
fn numbers_of_what_is_gone_leave_few_gaps_in_the_tables() {
    let with = |groups: std::ops::Range<usize>| {
        let peers: Vec<String> = groups.clone().map(|n| format!("{{networkGroup: g{n}}}")).collect();
        let mut objects = web_with(&format!("egress: [{{to: [{}]}}]", peers.join(", ")));
        for n in groups {
            let spec = NetworkGroupSpec {
                cidrs: vec![format!("172.16.{}.{}/32", n / 250, n % 250).parse().unwrap()],
            };
            objects.network_groups.insert(format!("g{n}"), sourced(spec, "g.yaml"));
        }
        objects
    };
    let later = (0..4).map(|_| with(400..800));
    let history: Vec<Objects> = [with(0..800)].into_iter().chain(later).collect();
    let classes = |c: &Compiled| c.tables.classes.iter().max().copied().unwrap();
    let needed = classes(&compiled(&history[4]));
    let [_, last] = &after(&history)[4];
    assert!(classes(last) <= needed + needed / 4 + 64, "{} classes where {needed} are needed", classes(last));
}

/// A list that is moved is written whole, and all lists have as many classes: where one moves all do.
#[test]
fn identities_that_come_one_by_one_seldom_move_what_is_in_the_tables() {
    let peers: Vec<String> =
        (0..800).map(|n| format!("{{podSelector: {{matchLabels: {{app: a{n}}}}}}}")).collect();
    let mut objects = web_with("");
    add_network_policy(
        &mut objects,
        "web/peers",
        &format!("podSelector: {{}}\ningress: [{{from: [{}]}}]", peers.join(", ")),
    );
    let mut come = |n: usize| {
        let address = format!("10.65.{}.{}", n / 250, 1 + n % 250);
        add_pod(&mut objects, &format!("web/a{n}"), &address, &format!("labels: {{app: a{n}}}"));
        objects.clone()
    };
    let first = (0..600).map(&mut come).last();
    let history: Vec<Objects> = first.into_iter().chain((600..670).map(&mut come)).collect();
    let mut interner = Interner::default();
    let mut former: Option<Compiled> = None;
    let mut places = Vec::new();
    for objects in &history {
        let pods = [local(objects, "web/a0")];
        let local = Local { pods: &pods, former: former.as_ref(), ..HERE };
        let compiled = compile(objects, &mut interner, &local).unwrap();
        interner.switched();
        places.push(compiled.tables.policies.iter().flatten().map(|p| p.row_base).collect::<Vec<_>>());
        former = Some(compiled);
    }
    places.dedup();
    assert_eq!(places.len(), 1);
}
