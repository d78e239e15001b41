//! SCTP through a host port.

use crate::{
    Case,
    ports::{node, wired},
    support::{alternative, require},
};
use bulkhead_lab::{
    Lab, Result,
    sctp::{Heard, Raw},
};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};

pub const CASES: &[(&str, Case)] =
    &[("a host port of SCTP leads to the pod, and its answer back", associations)];

const CLIENT: u16 = 40_132;

fn associations(lab: &mut Lab) -> Result<()> {
    let mappings = json!([{"hostPort": 3868, "containerPort": 3869, "protocol": "sctp"}]);
    let pod = wired(lab, "shop", "ported-9", mappings)?;
    for v6 in [false, true] {
        let client: IpAddr = if v6 { lab.vm.v6.into() } else { lab.vm.v4.into() };
        let own = node(lab, v6);
        let (here, there) = (Raw::open(&lab.vm.netns, v6, None)?, Raw::open(&pod.netns, v6, None)?);
        here.call(CLIENT, SocketAddr::new(own, 3868))?;
        let heard = there.receive()?;
        let expected =
            Heard { from: client, source: CLIENT, destination: 3869, is_answer: false, caller: CLIENT };
        require(heard == expected, &format!("the pod heard {heard:?}"))?;
        // The verification tag is the other side's, as it has said.
        there.answer(&heard)?;
        let heard = here.receive()?;
        let expected =
            Heard { from: own, source: 3868, destination: CLIENT, is_answer: true, caller: CLIENT };
        require(heard == expected, &format!("the machine heard {heard:?}"))?;
        require(alternative(&pod, v6) != own, "a pod has the node's address")?;
    }
    pod.del(&lab.nodes[0])
}
