//! Nobody speaks in another's name.

use crate::{
    node::{A, End, FAMILIES, MAC_A, MAC_B, Node, POLICY_A, V4, V6, VM, WORLD, ifindex},
    packet::{ACK, SYN, arp, frame, icmp, tcp, udp},
    rules::{Port, Rules},
};
use bulkhead_daemon::datapath::{Hook, PodMaps};
use bulkhead_ebpf_abi::{
    DROP_MALFORMED, DROP_MULTICAST, DROP_NO_ENDPOINT, DROP_POLICY, DROP_SPOOFED_POD, DROP_SPOOFED_UPLINK,
    DROP_TRUNCATED, RULE_DEFAULT_DENY, RULE_NONE,
};

crate::trials! {
    sources:
    a_source_that_is_not_the_pods_is_dropped,
    a_mac_that_is_not_the_pods_is_dropped,
    a_pod_without_an_address_of_a_family_cannot_send_in_it,
    arp_passes_for_the_pods_own_address_and_mac_only,
    neighbour_discovery_on_the_link_passes_without_policy,
    link_local_sources_pass_for_nothing_else,
    multicast_and_broadcast_are_dropped,
    an_interface_without_an_endpoint_passes_nothing,
    a_removed_endpoint_passes_nothing,
    the_uplink_drops_addresses_of_this_node_and_its_pods,
    the_hosts_own_arp_and_neighbour_discovery_reach_the_pod,
}

fn open() -> Node {
    Node::new(Rules::none().egress(POLICY_A, VM, Port::Tcp80, 70).egress(POLICY_A, WORLD, Port::Tcp80, 71))
}

const SPOOFED: End = End::Drop(DROP_SPOOFED_POD, RULE_NONE);

fn a_source_that_is_not_the_pods_is_dropped() {
    let node = open();
    for f in FAMILIES {
        for source in [f.b, f.node, f.vm, f.world] {
            assert_eq!(node.send(A, &tcp((source, 1), (f.vm, 80), SYN)).end, SPOOFED);
        }
        assert_eq!(node.send(A, &tcp((f.a, 1), (f.vm, 80), SYN)).end, End::Next);
    }
    assert_eq!(node.send(A, &tcp(("0.0.0.0", 1), (V4.vm, 80), SYN)).end, SPOOFED);
    assert_eq!(node.send(A, &tcp(("::", 1), (V6.vm, 80), SYN)).end, SPOOFED);
}

fn a_mac_that_is_not_the_pods_is_dropped() {
    let node = open();
    for f in FAMILIES {
        let packet = tcp((f.a, 1), (f.vm, 80), SYN);
        for byte in 0..6 {
            let mut mac = MAC_A;
            mac[byte] ^= 0x40;
            let end = node.send_raw(A, &packet.clone().with_mac(mac).frame(), 0).end;
            assert_eq!(end, SPOOFED, "byte {byte}");
        }
    }
}

fn a_pod_without_an_address_of_a_family_cannot_send_in_it() {
    let mut node = open();
    let mut endpoint = node.datapath.endpoints().expect("endpoints")[&ifindex("pod-a")];
    endpoint.ipv6 = Default::default();
    node.datapath.set_endpoint(ifindex("pod-a"), &endpoint).expect("endpoint");
    assert_eq!(node.send(A, &tcp((V6.a, 1), (V6.vm, 80), SYN)).end, SPOOFED);
    assert_eq!(node.send(A, &tcp(("::", 1), (V6.vm, 80), SYN)).end, SPOOFED);
    assert_eq!(node.send(A, &tcp((V4.a, 1), (V4.vm, 80), SYN)).end, End::Next);
}

fn arp_passes_for_the_pods_own_address_and_mac_only() {
    let node = open();
    let own = [10, 0, 1, 1];
    assert_eq!(node.send_raw(A, &arp(MAC_A, MAC_A, own), 0).end, End::Next);
    for (mac, sender_mac, sender) in
        [(MAC_A, MAC_A, [10, 0, 2, 1]), (MAC_A, MAC_A, [0; 4]), (MAC_A, MAC_B, own), (MAC_B, MAC_A, own)]
    {
        assert_eq!(node.send_raw(A, &arp(mac, sender_mac, sender), 0).end, SPOOFED);
    }
    let whole = arp(MAC_A, MAC_A, own);
    assert_eq!(node.send_raw(A, &whole[..40], 0).end, End::Drop(DROP_TRUNCATED, RULE_NONE));
    let mut other = whole;
    other[15] = 6;
    assert_eq!(node.send_raw(A, &other, 0).end, End::Drop(DROP_MALFORMED, RULE_NONE));
}

fn neighbour_discovery_on_the_link_passes_without_policy() {
    let node = open();
    for (source, target, kind) in [
        ("::", "ff02::1:ff00:1", 135),
        ("fe80::aa", "ff02::2", 133),
        ("fe80::aa", "fe80::1", 135),
        ("fe80::aa", "fe80::1", 136),
        (V6.a, "ff02::1:ff00:1", 135),
        (V6.a, "fe80::1", 136),
        ("fe80::aa", "ff02::16", 143),
        ("fe80::aa", "ff02::2", 132),
    ] {
        let outcome = node.send(A, &icmp(source, target, kind, 0, &[0; 16]));
        assert_eq!(outcome.end, End::Next, "{kind} from {source}");
        assert_eq!(outcome.origin, A);
    }
}

fn link_local_sources_pass_for_nothing_else() {
    let node = open();
    assert_eq!(node.send(A, &icmp("fe80::aa", "fe80::1", 128, 0, &[])).end, SPOOFED);
    assert_eq!(node.send(A, &icmp("fe80::aa", V6.vm, 135, 0, &[0; 16])).end, SPOOFED);
    assert_eq!(node.send(A, &udp(("fe80::aa", 5353), ("ff02::fb", 5353))).end, SPOOFED);
    assert_eq!(node.send(A, &icmp("fe80::aa", "ff05::2", 133, 0, &[0; 16])).end, SPOOFED);
    // Another pod's address in neighbour discovery is no better than elsewhere.
    assert_eq!(node.send(A, &icmp(V6.b, "fe80::1", 136, 0, &[0; 16])).end, SPOOFED);
}

fn multicast_and_broadcast_are_dropped() {
    let node = open();
    for (source, target) in [
        (V4.a, "224.0.0.1"),
        (V4.a, "239.255.255.250"),
        (V4.a, "255.255.255.255"),
        (V6.a, "ff02::fb"),
        (V6.a, "ff05::1"),
    ] {
        let end = node.send(A, &udp((source, 5353), (target, 5353))).end;
        assert_eq!(end, End::Drop(DROP_MULTICAST, RULE_NONE), "{target}");
    }
}

fn an_interface_without_an_endpoint_passes_nothing() {
    let node = Node::empty();
    for f in FAMILIES {
        let frame = tcp((f.a, 1), (f.vm, 80), SYN).with_mac(MAC_A).frame();
        for hook in [Hook::FromPod, Hook::ToPod] {
            let end = node.run(hook, "up0", &frame, 0).end;
            assert_eq!(end, End::Drop(DROP_NO_ENDPOINT, RULE_NONE));
        }
    }
    let end = node.run(Hook::FromPod, "up0", &arp(MAC_A, MAC_A, [10, 0, 1, 1]), 0).end;
    assert_eq!(end, End::Drop(DROP_NO_ENDPOINT, RULE_NONE));
}

fn a_removed_endpoint_passes_nothing() {
    let mut node = open();
    let packet = tcp((V4.a, 1), (V4.vm, 80), SYN);
    assert_eq!(node.send(A, &packet).end, End::Next);
    node.datapath.remove_endpoint(ifindex("pod-a")).expect("removed");
    node.datapath.remove_endpoint(ifindex("pod-a")).expect("removed again");
    assert_eq!(node.send(A, &packet).end, End::Drop(DROP_NO_ENDPOINT, RULE_NONE));
}

fn the_uplink_drops_addresses_of_this_node_and_its_pods() {
    let node = open();
    for f in FAMILIES {
        for source in [f.a, f.b, f.node] {
            let end = node.uplink(&tcp((source, 1), (f.b, 80), SYN).frame(), 0).end;
            assert_eq!(end, End::Drop(DROP_SPOOFED_UPLINK, RULE_NONE), "{source}");
        }
        // Policy is asked elsewhere: BGP and all else of the node are never in its way.
        for target in [f.node, f.a] {
            assert_eq!(node.uplink(&tcp((f.vm, 1), (target, 179), SYN).frame(), 0).end, End::Next);
        }
    }
    assert_eq!(node.uplink(&frame(MAC_B, 0x0806, &[0; 28]), 0).end, End::Next);
    assert_eq!(node.uplink(&frame(MAC_B, 0x88cc, &[0; 28]), 0).end, End::Next);
}

fn the_hosts_own_arp_and_neighbour_discovery_reach_the_pod() {
    let node = open();
    assert_eq!(node.run(Hook::ToPod, "pod-a", &arp(MAC_B, MAC_B, [169, 254, 1, 1]), 0).end, End::Next);
    let solicitation = icmp("fe80::1", V6.a, 135, 0, &[0; 16]);
    assert_eq!(node.deliver(A, &solicitation.clone().hop_limit(255), 0).end, End::Next);
    // What was routed, or came in by a pod or an uplink, is not the host's.
    let denied = End::Drop(DROP_POLICY, RULE_DEFAULT_DENY);
    assert_eq!(node.deliver(A, &solicitation.clone().hop_limit(254), 0).end, denied);
    assert_eq!(node.deliver(A, &solicitation.hop_limit(255), VM).end, denied);
    assert_eq!(node.deliver(A, &tcp((V6.vm, 1), (V6.a, 80), ACK), VM).end, denied);
}
