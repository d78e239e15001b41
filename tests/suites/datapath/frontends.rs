//! Services in the kernel's maps, where the kernel refuses.

use crate::{
    node::{Node, addr},
    rules::Rules,
};
use aya::maps::MapData;
use bulkhead_ebpf_abi::{FrontendKey, PROTO_TCP};
use bulkhead_lab::bpf;
use bulkhead_policy::service::{Frontend, Stands};
use std::{os::fd::AsFd, sync::Arc};

crate::trials! {
    frontends:
    sets_that_cannot_be_removed_are_not_forgotten,
}

fn sets_that_cannot_be_removed_are_not_forgotten() {
    let mut node = Node::new(Rules::none());
    let key = |port| FrontendKey { address: addr("10.96.0.1"), port, proto: PROTO_TCP, reserved: 0 };
    for port in [80, 81] {
        let frontend = Frontend {
            service: "shop/web".into(),
            port: String::new(),
            stands: Stands::ClusterIp,
            backends: Arc::new(vec![([10, 0, 1, 1], port).into()]),
            affinity_seconds: None,
        };
        assert!(node.datapath.set_frontends([(key(port), Some(&frontend))].into_iter()).is_none());
    }
    assert!(node.datapath.set_frontends([(key(80), None), (key(81), None)].into_iter()).is_none());
    let map = MapData::from_pin(node.pins.join("maps/BACKEND")).expect("a pinned map");
    bpf::freeze(map.fd().as_fd()).expect("frozen");
    // Each time it is tried again, and said.
    for _ in 0..3 {
        node.datapath.settle_services().expect_err("the kernel refuses");
    }
}
