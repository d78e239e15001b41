//! Masquerade: for whom a partition's pods are the node, for whom they are themselves, and which path that takes.

use crate::{
    Case,
    support::{Watch, alternative, configure, exchange, require, says},
};
use bulkhead_lab::{Lab, Pod, Result, unmet, wait::until_true};
use std::{net::IpAddr, time::Duration};

pub const CASES: &[(&str, Case)] = &[
    (
        "a partition's pods leave as their node, if it says so, and are themselves for pods and nodes",
        partition,
    ),
    ("so do those of the default partition, by the node's configuration", default_partition),
];

const SOON: Duration = Duration::from_secs(15);
const FILE: &str = "outbound.yaml";

/// A partition of its own, which forbids nothing.
fn outbound(masquerade: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: outbound}}\nspec:\n  policyID: 300\n  \
         namespaces: [outbound]\n  podCIDRs: [10.67.0.0/16, \"fd00:67::/48\"]\n  isolation: Open\n{masquerade}---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: outbound}}\n"
    )
}

fn vm(lab: &Lab, v6: bool) -> IpAddr {
    if v6 { lab.vm.v6.into() } else { lab.vm.v4.into() }
}

fn own(lab: &Lab, v6: bool) -> IpAddr {
    if v6 { lab.nodes[0].v6.into() } else { lab.nodes[0].v4.into() }
}

/// As whom the machine outside sees the pod.
fn seen_outside(lab: &Lab, pod: &Pod, v6: bool) -> Result<IpAddr> {
    exchange(&pod.netns, &lab.vm.netns, vm(lab, v6), 8080, None)
}

fn partition(lab: &mut Lab) -> Result<()> {
    lab.objects.write(FILE, &outbound(""))?;
    let mut pod = Pod::create(0, "outbound", "caller-0")?;
    until_true("the partition is there", SOON, || {
        Ok(lab.nodes[0].cli(&["partitions"])?.contains("outbound"))
    })?;
    pod.add(&lab.nodes[0])?;
    // The router takes no such range from the nodes.
    lab.router.ip("route add fd00:67::/48 via fd00:30:1::2")?;
    for v6 in [false, true] {
        let seen = seen_outside(lab, &pod, v6)?;
        require(seen == alternative(&pod, v6), &format!("nobody asked for it, and the machine saw {seen}"))?;
    }
    lab.objects.write(FILE, &outbound("  masquerade: {}\n"))?;
    until_true(
        "the pod leaves as its node",
        SOON,
        || Ok(seen_outside(lab, &pod, false)? == own(lab, false)),
    )?;
    inside(lab, &pod)?;
    // Where the configuration says that nothing is translated, it is all the same.
    configure(&mut lab.nodes[0], "directTo: [172.30.9.0/24, \"fd00:30:9::/64\"]\n")?;
    for v6 in [false, true] {
        let seen = seen_outside(lab, &pod, v6)?;
        require(seen == own(lab, v6), &format!("direct, the machine saw {seen}"))?;
        // Who is called from outside answers as who was called.
        let seen = exchange(&lab.vm.netns, &pod.netns, alternative(&pod, v6), 8080, None)?;
        require(seen == vm(lab, v6), &format!("the pod saw {seen}"))?;
    }
    let except = "  masquerade: {nonMasqueradeCIDRs: [172.16.0.0/12, 172.30.0.0/16, \"fd00:30:9::/64\"]}\n";
    lab.objects.write(FILE, &outbound(except))?;
    until_true("the exceptions hold", SOON, || {
        Ok(seen_outside(lab, &pod, false)? == alternative(&pod, false))
    })?;
    for v6 in [false, true] {
        let watch = Watch::start(&lab.nodes[0])?;
        let seen = seen_outside(lab, &pod, v6)?;
        require(seen == alternative(&pod, v6), &format!("the machine is excepted, and saw {seen}"))?;
        require(watch.packets()? == 0, "what nobody masquerades is direct again")?;
    }
    pod.del(&lab.nodes[0])?;
    lab.router.ip("route del fd00:67::/48")?;
    lab.objects.remove(FILE)?;
    let no_table = || Ok(!says(&lab.nodes[0].netns, &["nft", "list", "tables"])?.contains("bulkhead"));
    until_true("no table is left", SOON, no_table)
}

fn inside(lab: &Lab, pod: &Pod) -> Result<()> {
    let (near, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?);
    let other = &lab.nodes[1];
    for v6 in [false, true] {
        let node: IpAddr = if v6 { other.v6.into() } else { other.v4.into() };
        for (who, server, address) in [
            ("a pod of this node", &near.netns, alternative(near, v6)),
            ("a pod of another node", &far.netns, alternative(far, v6)),
            ("another node", &other.netns, node),
            ("its node", &lab.nodes[0].netns, own(lab, v6)),
        ] {
            match exchange(&pod.netns, server, address, 8081, None) {
                Ok(seen) => require(seen == alternative(pod, v6), &format!("{who} saw {seen}"))?,
                Err(e) => return unmet(format!("{who}: {e}")),
            }
        }
        // And nobody else is masqueraded for it.
        let seen = seen_outside(lab, near, v6)?;
        require(seen == alternative(near, v6), &format!("of another partition the machine saw {seen}"))?;
    }
    Ok(())
}

fn default_partition(lab: &mut Lab) -> Result<()> {
    configure(&mut lab.nodes[0], "masquerade: {nonMasqueradeCIDRs: [\"fd00:30:9::/64\"]}\n")?;
    let cart = lab.pod("shop/cart-0")?;
    for (v6, expected) in [(false, own(lab, false)), (true, alternative(cart, true))] {
        let seen = seen_outside(lab, cart, v6)?;
        require(seen == expected, &format!("the machine saw {seen}"))?;
    }
    Ok(())
}
