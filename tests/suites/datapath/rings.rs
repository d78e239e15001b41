//! What stands among the connections that may be evicted, and what does not.

use crate::{
    node::{A, B, End, FAMILIES, Node, POLICY_A, POLICY_B, V4, ifindex},
    packet::{ACK, SYN, TCP, tcp},
    rules::{Port, Rules},
};
use aya::maps::{HashMap, Map, MapData};
use bulkhead_ebpf_abi::{
    DIR_INGRESS, DROP_POLICY, FlowName, NAMES_PER_PAGE, RULE_DEFAULT_DENY, RecentKey, RecentPage,
};

crate::trials! {
    rings:
    what_is_established_leaves_its_ring,
    a_connection_that_the_receiver_refuses_has_no_entry_and_counts_where_it_was_let_out_and_refused,
}

/// On which packets go straight from pod to pod.
fn node(rules: Rules) -> Node {
    let mut node = Node::new(rules);
    node.rewire(1500, 0);
    node
}

/// Names in the rings of all pods.
fn names(node: &Node) -> usize {
    const NAME: usize = size_of::<FlowName>();
    let pinned = MapData::from_pin(node.pins.join("maps/RECENT")).expect("a pinned map");
    let map: HashMap<_, [u8; size_of::<RecentKey>()], [u8; size_of::<RecentPage>()]> =
        Map::from_map_data(pinned).expect("a map").try_into().expect("a hash");
    let serial = std::mem::offset_of!(FlowName, serial);
    map.iter()
        .flat_map(|entry| {
            let (_, page) = entry.expect("a page");
            (0..NAMES_PER_PAGE as usize).map(move |n| page[n * NAME + serial..][..4] != [0; 4])
        })
        .filter(|is_name| *is_name)
        .count()
}

fn what_is_established_leaves_its_ring() {
    let node = node(Rules::none().egress(POLICY_A, B, Port::Tcp80, 70).ingress(POLICY_B, A, Port::Tcp80, 71));
    for (n, f) in FAMILIES.iter().enumerate() {
        let (client, server) = ((f.a, 5), (f.b, 80));
        assert_eq!(node.send(A, &tcp(client, server, SYN)).end, End::Redirect);
        assert_eq!(node.send(B, &tcp(server, client, SYN | ACK)).end, End::Redirect);
        assert_eq!(names(&node), 1);
        assert_eq!(node.send(A, &tcp(client, server, ACK)).end, End::Redirect);
        assert_eq!(names(&node), 0, "{n}");
    }
}

fn a_connection_that_the_receiver_refuses_has_no_entry_and_counts_where_it_was_let_out_and_refused() {
    let node = node(Rules::none().egress(POLICY_A, B, Port::Tcp80, 70));
    for port in 5..10 {
        let refused = node.send(A, &tcp((V4.a, port), (V4.b, 80), SYN)).end;
        assert_eq!(refused, End::Drop(DROP_POLICY, RULE_DEFAULT_DENY));
        assert_eq!(node.flow((V4.a, port), (V4.b, 80), TCP), None);
    }
    assert_eq!(names(&node), 0, "none stands in another's place");
    assert_eq!(node.datapath.share(ifindex("pod-a")).expect("share").map_or(0, |share| share.flows), 0);
    let drops = node.datapath.drops().expect("drops");
    let [(key, counter)] = drops[..] else { panic!("{drops:?}") };
    assert_eq!((key.policy, u32::from(key.dir), counter.packets), (POLICY_B, DIR_INGRESS, 5));
    let out = node.datapath.rules().expect("rules")[&70];
    assert_eq!((out.packets, out.connections), (5, 5));
}
