//! Uplinks that are chosen by rules, and followed.

use crate::support::{Case, LATER, SOON, contains, reconfigure, require, status};
use bulkhead_lab::{
    Lab, Pod, Result,
    link::{ip_output, run},
    wait::until_true,
};
use std::process::Command;

pub const CASES: &[Case] = &[
    ("uplinks come and go by the rules that choose them, and say why they are some", followed),
    ("what is an uplink no more, and cannot be let go of, is let go of later", let_go_later),
];

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
    // The kernel tells of it: nobody looks so soon by himself.
    until_true("the second uplink is there", SOON, || Ok(status(node)?.uplinks.len() == 2))?;
    contains(&node.cli(&["status"])?, &[by_range, "up0 (by `up*`, MTU 1400)"])?;
    contains(&of_new_pod(lab, "second")?, &["mtu 1400"])?;
    // It is there still, and no rule chooses it.
    node.netns.ip("link set up0 down")?;
    node.netns.ip("link set up0 name spare0")?;
    until_true("the second uplink is gone", SOON, || Ok(status(node)?.uplinks.len() == 1))?;
    contains(&of_new_pod(lab, "third")?, &["mtu 1500"])
}

/// Pins cannot be removed from a file system that is read-only.
fn let_go_later(lab: &mut Lab) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.netns.ip("link add up0 type veth peer name far0")?;
    node.netns.ip("link set up0 up")?;
    node.netns.ip("address add 172.30.77.1/24 dev up0")?;
    node.stop_daemon()?;
    reconfigure(node, "uplinks: [eth0]", "uplinks: [eth0, up0]")?;
    node.start_daemon()?;
    let links = node.pins().join("links");
    let pinned = links.join("up0-from_uplink");
    require(pinned.exists(), "up0 has its program")?;
    node.stop_daemon()?;
    reconfigure(node, "uplinks: [eth0, up0]", "uplinks: [eth0]")?;
    let folder = links.display().to_string();
    run(Command::new("mount").args(["--bind", &folder, &folder]))?;
    run(Command::new("mount").args(["-o", "remount,bind,ro", &folder]))?;
    let started = node.start_daemon();
    let kept = pinned.exists();
    run(Command::new("umount").arg(&folder))?;
    started?;
    require(kept, "the pin could not be removed")?;
    until_true("up0 is let go of", LATER, || Ok(!pinned.exists()))
}

/// Its interface.
fn of_new_pod(lab: &Lab, name: &str) -> Result<String> {
    let mut pod = Pod::create(0, "shop", name)?;
    pod.add(&lab.nodes[0])?;
    ip_output(Some(&pod.netns), "-o link show dev eth0")
}
