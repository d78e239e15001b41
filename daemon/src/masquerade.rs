//! Whose connections leave as the node's, what that takes off the direct path, and who judges those that kube-proxy or somebody
//! else sends to pods of other nodes that way. Pure.
//!
//! A masquerade is the stack's work. So an address outside is called past it (`directTo`) only where no partition's pods are
//! masqueraded for it: which path a connection takes is decided by whom it is with, and not by whose it is.

use crate::net::nat::Masquerade;
use bulkhead_api::objects::{IpNetwork, Isolation, PartitionMasquerade};
use bulkhead_ebpf_abi::{RANGE_CLOSED, RANGE_OPEN};
use bulkhead_policy::Objects;
use std::collections::{BTreeMap, BTreeSet};

/// Ranges whose pods are masqueraded, and for whom they are not. `own`: what the node's configuration says of the default
/// partition.
fn masqueraded<'a>(
    objects: &'a Objects,
    own: Option<&'a PartitionMasquerade>,
) -> impl Iterator<Item = (&'a [IpNetwork], &'a PartitionMasquerade)> {
    let of_partitions = objects
        .partitions
        .values()
        .filter_map(|p| Some((&p.spec.pod_cidrs[..], p.spec.masquerade.as_ref()?)));
    of_partitions.chain(own.map(|own| (&objects.default_pod_cidrs[..], own)))
}

/// What the node's stack has to do. Pods and nodes are never told another address than the pod's own.
pub fn masquerade(objects: &Objects, own: Option<&PartitionMasquerade>) -> Masquerade {
    let of_range = |ranges: &[IpNetwork], except: &PartitionMasquerade| -> Vec<_> {
        ranges.iter().map(|range| (*range, except.non_masquerade_cidrs.clone())).collect()
    };
    let ranges: Vec<_> =
        masqueraded(objects, own).flat_map(|(ranges, except)| of_range(ranges, except)).collect();
    if ranges.is_empty() {
        return Masquerade::default();
    }
    let pods = objects.ranges().map(|(_, range)| *range);
    let nodes = objects.nodes.values().flat_map(|node| &node.addresses).map(|a| IpNetwork::from(*a));
    // In order: the same objects ask for the same table.
    let cluster: BTreeSet<_> = pods.chain(nodes).collect();
    Masquerade { ranges, cluster: cluster.into_iter().collect() }
}

/// Those of these addresses for which nobody is masqueraded.
pub fn direct(
    configured: &[IpNetwork],
    objects: &Objects,
    own: Option<&PartitionMasquerade>,
) -> Vec<IpNetwork> {
    masqueraded(objects, own).fold(configured.to_vec(), |direct, (ranges, masquerade)| {
        let concerns = |of: &&IpNetwork| ranges.iter().any(|range| range.is_ipv4() == of.is_ipv4());
        let (touched, others): (Vec<_>, Vec<_>) = direct.iter().partition(concerns);
        let except = &masquerade.non_masquerade_cidrs;
        let both = touched.iter().flat_map(|a| except.iter().filter_map(|b| common(*a, *b)));
        let all: BTreeSet<_> = others.into_iter().chain(both).collect();
        all.into_iter().collect()
    })
}

/// The policy that is asked here about what this node sends on to a range in its own name: the partition's, for at the pod's node
/// only this node would be seen. The pod's own policies are asked there. `policies`: of pods that only their partition judges.
pub fn judges(
    objects: &Objects,
    policies: &BTreeMap<String, u32>,
    strays: usize,
) -> BTreeMap<IpNetwork, u32> {
    let judge = |name: &str| match objects.partitions.get(name).map(|p| p.spec.isolation) {
        None | Some(Isolation::Open) => RANGE_OPEN,
        Some(isolation) => match (policies.get(name), isolation) {
            (Some(policy), _) => *policy,
            // The tables of this node have no room for it.
            (None, Isolation::Enforced) => RANGE_CLOSED,
            (None, _) => RANGE_OPEN,
        },
    };
    let mut all = BTreeMap::new();
    for (name, range) in objects.own_ranges() {
        all.entry(*range).or_insert_with(|| judge(name));
    }
    let lengths: BTreeSet<u8> = all.keys().map(|range| range.prefix()).collect();
    // To a stray that there is no room for, nobody may come by the words of the range that it lies in.
    for (stray, _) in objects.strays.iter().skip(strays).filter(|(_, of)| judge(&of.partition) != RANGE_OPEN)
    {
        for range in lengths.iter().filter_map(|length| around(*stray, *length)) {
            all.entry(range).and_modify(|judge| *judge = RANGE_CLOSED);
        }
    }
    all.extend(objects.strays.iter().take(strays).map(|(range, stray)| (*range, judge(&stray.partition))));
    all
}

/// The range of this length that holds the other; none in its family is so long.
fn around(range: IpNetwork, length: u8) -> Option<IpNetwork> {
    let wide = IpNetwork::new(range.network(), length).ok()?;
    IpNetwork::new(wide.network(), length).ok()
}

/// Of two prefixes one lies in the other, or they have nothing in common.
fn common(a: IpNetwork, b: IpNetwork) -> Option<IpNetwork> {
    let (outer, inner) = if a.prefix() <= b.prefix() { (a, b) } else { (b, a) };
    (a.is_ipv4() == b.is_ipv4() && outer.contains(inner.network())).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::PartitionSpec;
    use bulkhead_policy::{NodeInfo, Sourced};
    use std::sync::Arc;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    /// Its name, its ranges, and its exceptions where it is masqueraded.
    type Named<'a> = (&'a str, &'a [&'a str], Option<&'a [&'a str]>);

    fn objects(partitions: &[Named<'_>]) -> Objects {
        let mut objects = Objects { default_pod_cidrs: networks(&["10.64.0.0/16"]), ..Objects::default() };
        for (name, ranges, except) in partitions {
            let masquerade =
                except.map(|except| PartitionMasquerade { non_masquerade_cidrs: networks(except) });
            let spec = PartitionSpec { pod_cidrs: networks(ranges), masquerade, ..PartitionSpec::default() };
            objects.partitions.insert((*name).into(), Arc::new(Sourced::new(spec, None)));
        }
        let node = NodeInfo { addresses: vec!["192.0.2.1".parse().unwrap()], ..NodeInfo::default() };
        objects.nodes.insert("n1".into(), Arc::new(node));
        objects
    }

    #[test]
    fn nobody_is_masqueraded_unless_somebody_says_so() {
        let objects = objects(&[("web", &["10.66.0.0/16"], None)]);
        assert_eq!(masquerade(&objects, None), Masquerade::default());
        let all = networks(&["0.0.0.0/0", "::/0"]);
        assert_eq!(direct(&all, &objects, None), all);
    }

    #[test]
    fn pods_and_nodes_see_the_pods_own_address() {
        let objects = objects(&[
            ("db", &["10.65.0.0/16"], None),
            ("web", &["10.66.0.0/16", "fd00:66::/48"], Some(&["10.0.0.0/8"])),
        ]);
        let own = PartitionMasquerade::default();
        let expected = Masquerade {
            ranges: vec![
                ("10.66.0.0/16".parse().unwrap(), networks(&["10.0.0.0/8"])),
                ("fd00:66::/48".parse().unwrap(), networks(&["10.0.0.0/8"])),
                ("10.64.0.0/16".parse().unwrap(), vec![]),
            ],
            cluster: networks(&[
                "10.64.0.0/16",
                "10.65.0.0/16",
                "10.66.0.0/16",
                "192.0.2.1/32",
                "fd00:66::/48",
            ]),
        };
        assert_eq!(masquerade(&objects, Some(&own)), expected);
    }

    #[test]
    fn what_is_masqueraded_for_anybody_is_direct_for_nobody() {
        let web: Named<'_> = ("web", &["10.66.0.0/16"], Some(&["10.0.0.0/8", "172.16.0.0/12"][..]));
        let all = networks(&["0.0.0.0/0", "::/0"]);
        // Of the family that nobody is masqueraded in all stays.
        let one = objects(&[web]);
        assert_eq!(direct(&all, &one, None), networks(&["10.0.0.0/8", "172.16.0.0/12", "::/0"]));
        let two = objects(&[web, ("db", &["10.65.0.0/16"], Some(&["10.1.0.0/16", "192.0.2.0/24"][..]))]);
        assert_eq!(direct(&all, &two, None), networks(&["10.1.0.0/16", "::/0"]));
        // A part of what is excepted.
        let narrow = networks(&["10.9.0.0/16", "192.0.2.0/24"]);
        assert_eq!(direct(&narrow, &one, None), networks(&["10.9.0.0/16"]));
        assert_eq!(direct(&all, &one, Some(&PartitionMasquerade::default())), networks(&["::/0"]));
    }

    #[test]
    fn a_partition_judges_what_comes_to_its_pods_in_a_nodes_name() {
        let mut objects = objects(&[
            ("db", &["10.65.0.0/16"], None),
            ("far", &["10.66.0.0/16"], None),
            ("lab", &["10.67.0.0/16"], None),
            ("open", &["10.68.0.0/16"], None),
        ]);
        for (name, isolation) in [("lab", Isolation::Audit), ("open", Isolation::Open)] {
            let mut partition = objects.partitions[name].as_ref().clone();
            partition.spec.isolation = isolation;
            objects.partitions.insert(name.into(), Arc::new(partition));
        }
        // A pod of the default partition within another's range.
        objects.strays.insert("10.65.0.9/32".parse().unwrap(), "default".into());
        // Not all partitions have a policy on each node of a large cluster.
        let policies: BTreeMap<String, u32> =
            [("db".to_owned(), 7), ("open".to_owned(), 9), ("default".to_owned(), 0)].into();
        let expected = [
            ("10.64.0.0/16", RANGE_OPEN),
            ("10.65.0.0/16", 7),
            ("10.65.0.9/32", RANGE_OPEN),
            ("10.66.0.0/16", RANGE_CLOSED),
            ("10.67.0.0/16", RANGE_OPEN),
            ("10.68.0.0/16", RANGE_OPEN),
        ];
        let expected: BTreeMap<IpNetwork, u32> =
            expected.map(|(range, policy)| (range.parse().unwrap(), policy)).into();
        assert_eq!(judges(&objects, &policies, 10), expected);
        // Where there is no room for a stray, its range is nobody's way to it; one that is open needs none.
        let of_range =
            |objects: &Objects, strays| judges(objects, &policies, strays)[&"10.64.0.0/16".parse().unwrap()];
        assert_eq!(of_range(&objects, 0), RANGE_OPEN);
        objects.strays.insert("10.64.0.9/32".parse().unwrap(), "db".into());
        assert_eq!((of_range(&objects, 10), of_range(&objects, 0)), (RANGE_OPEN, RANGE_CLOSED));
    }
}
