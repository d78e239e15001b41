//! One node with its daemon, whose uplink leads to nobody: enough where neither a router nor another node matters.

use crate::{
    Netns, Node, Objects, Result,
    enter::WORK,
    link::{End, veth},
    node::UPLINK,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// Its daemon is killed when dropped.
#[derive(Debug)]
pub struct Single {
    pub node: Node,
    pub objects: Objects,
    _far: Netns,
}

impl Single {
    /// The daemon is ready; the objects are those of the lab.
    pub fn start(mtu: u32) -> Result<Self> {
        let dir = Path::new(WORK);
        let objects = Objects::create(&dir.join("objects"))?;
        let (netns, far) = (Netns::create("node1")?, Netns::create("far")?);
        veth(
            End { netns: &netns, name: UPLINK, addresses: &["172.30.1.2/24", "fd00:30:1::2/64"] },
            End { netns: &far, name: "n1", addresses: &["172.30.1.1/24"] },
        )?;
        netns.ip(&format!("link set {UPLINK} mtu {mtu}"))?;
        let v6 = Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 0, 2);
        let mut node = Node::create(netns, Ipv4Addr::new(172, 30, 1, 2), v6, dir)?;
        node.start_daemon()?;
        Ok(Self { node, objects, _far: far })
    }
}
