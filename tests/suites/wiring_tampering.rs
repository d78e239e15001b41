//! CHECK against every tampering with a wired pod.

use crate::{check_of, limited, wiring_support::*};
use bulkhead_api::messages::{Check, code};

/// Each line is one tampering, `|` before what CHECK must say. `HOST`, `IFB`, `V4` and `V6` stand for the pod's own.
const TAMPERINGS: &str = "
    ip link del HOST | host interface
    ip link set HOST down | HOST is down
    ip link set HOST address 02:00:00:00:00:99 | MAC of HOST
    ip link set HOST mtu 1300 | MTU of HOST
    ip route del V4 dev HOST | the route to V4
    ip -6 route del V6 dev HOST | the route to V6
    ip neigh del V4 dev HOST | neighbour V4 on HOST
    ip neigh replace V6 lladdr 02:00:00:00:00:99 dev HOST nud permanent | neighbour V6 on HOST
    tc qdisc del dev HOST root | rate into the pod
    tc qdisc change dev IFB root handle 1: tbf rate 2gbit burst 1m limit 4m | rate out of the pod
    ip link del IFB | rate out of the pod
    ip netns exec a ip link set eth0 down | eth0 in the pod is down
    ip netns exec a ip link set eth0 name eth7 | eth0 in the pod is missing
    ip netns exec a ip link set eth0 address 02:00:00:00:00:99 | MAC of eth0 in the pod
    ip netns exec a ip addr del V4/32 dev eth0 | no address V4
    ip netns exec a ip addr del V6/128 dev eth0 | no address V6
    ip netns exec a ip route del default | no default route by 169.254.1.1
    ip netns exec a ip -6 route replace default dev eth0 | no default route by fe80::1
    ip netns exec a ip route change 169.254.1.1 via 169.254.1.2 dev eth0 onlink | no route to its gateway
    ip netns exec a ip neigh del 169.254.1.1 dev eth0 | neighbour 169.254.1.1 of eth0
    ip netns exec a ip neigh replace fe80::1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent | neighbour fe80::1 of eth0
";

pub async fn check_finds_tampering() {
    for line in TAMPERINGS.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut node = Node::start().await;
        let pod = Pod::new("a");
        let addresses = node.add_with(&pod, &limited()).await;
        let host = node.host_name(&pod);
        let fill = |text: &str| {
            text.replace("HOST", &host)
                .replace("IFB", &host.replacen("bh", "bi", 1))
                .replace("V4", &addresses[0].to_string())
                .replace("V6", &addresses[1].to_string())
        };
        let (command, expected) = line.split_once(" | ").unwrap();
        let check = check_of(&node, &pod);
        run(&fill(command));
        let error = node.endpoints.check(&node.maps, &check).await.expect_err(line);
        assert_eq!(error.code, code::WIRING);
        assert!(error.details.contains(&fill(expected)), "{line}: {error}");
        node.del(&pod).await;
        node.assert_nothing_left();
    }
    for (tamper, expected) in MAP_TAMPERINGS {
        let mut node = Node::start().await;
        let pod = Pod::new("a");
        node.add(&pod).await;
        let check = check_of(&node, &pod);
        tamper(&mut node.maps);
        let error = node.endpoints.check(&node.maps, &check).await.expect_err(expected);
        assert!(error.details.contains(expected), "{expected}: {error}");
        let told = Check { addresses: vec!["10.99.0.1/32".parse().unwrap()], ..check };
        let error = node.endpoints.check(&node.maps, &told).await.unwrap_err();
        assert!(error.details.contains("the runtime holds 10.99.0.1/32"), "{error}");
        node.del(&pod).await;
    }
}

type Tampering = fn(&mut FakeMaps);

const MAP_TAMPERINGS: [(Tampering, &str); 4] = [
    (|maps| maps.endpoints.clear(), "endpoint entry is None"),
    (|maps| maps.endpoints.values_mut().for_each(|e| e.policies = [9; 2]), "endpoint entry is Some"),
    (|maps| maps.addresses.values_mut().for_each(|i| i.id = 9), "identity of"),
    (|maps| maps.attached.clear(), "no programs attached"),
];
