//! Uplinks that are chosen by rules, and followed.

use crate::support::{Case, LATER, contains, reconfigure, status};
use bulkhead_lab::{Lab, Pod, Result, link::ip_output, wait::until_true};

pub const CASES: &[Case] =
    &[("uplinks come and go by the rules that choose them, and say why they are some", followed)];

fn followed(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    reconfigure(&lab.nodes[0], "uplinks: [eth0]", "uplinks: [{cidr: 172.30.0.0/16}, \"up*\"]")?;
    lab.nodes[0].start_daemon()?;
    let by_range = "eth0 (172.30.1.2 in 172.30.0.0/16, MTU 1500)";
    contains(&lab.nodes[0].cli(&["status"])?, &[by_range])?;
    contains(&of_new_pod(lab, "first")?, &["mtu 1500"])?;
    let node = &lab.nodes[0];
    node.netns.ip("link add up0 mtu 1400 type veth peer name far0")?;
    node.netns.ip("link set up0 up")?;
    until_true("the second uplink is there", LATER, || Ok(status(node)?.uplinks.len() == 2))?;
    contains(&node.cli(&["status"])?, &[by_range, "up0 (by `up*`, MTU 1400)"])?;
    contains(&of_new_pod(lab, "second")?, &["mtu 1400"])?;
    // It is there still, and no rule chooses it.
    node.netns.ip("link set up0 down")?;
    node.netns.ip("link set up0 name spare0")?;
    until_true("the second uplink is gone", LATER, || Ok(status(node)?.uplinks.len() == 1))?;
    contains(&of_new_pod(lab, "third")?, &["mtu 1500"])
}

/// Its interface.
fn of_new_pod(lab: &Lab, name: &str) -> Result<String> {
    let mut pod = Pod::create(0, "shop", name)?;
    pod.add(&lab.nodes[0])?;
    ip_output(Some(&pod.netns), "-o link show dev eth0")
}
