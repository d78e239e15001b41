//! Ranges that run out, and nodes that want the same blocks.

use crate::support::*;
use bulkhead_lab::{Lab, Result, until};
use std::thread;

pub const CASES: &[Case] = &[
    ("a range that is used up is told by its name, and leaks nothing", used_up),
    ("an ADD that fails for one family keeps no block of the other", one_family),
    ("nodes that race for the blocks of a small range never share one", race),
];

fn range(lab: &Lab, v4: &str, v6: &str) -> Result<()> {
    let text = lab.objects.read("payments.yaml")?;
    lab.objects.write("payments.yaml", &text.replace("10.65.0.0/16", v4).replace("fd00:65::/48", v6))?;
    until("the small range is in force", SOON, || {
        let is = |n: usize| -> Result<bool> {
            let found = partition(&lab.nodes[n], "payments")?;
            Ok(found.is_some_and(|p| p.pod_cidrs.iter().any(|c| c.to_string() == v4)))
        };
        Ok((is(0)? && is(1)?).then_some(()))
    })
}

/// A pod of node1 besides those of the lab.
fn extra(name: &str) -> Result<bulkhead_lab::Pod> {
    bulkhead_lab::Pod::create(0, "payments", name)
}

fn used_up(lab: &mut Lab) -> Result<()> {
    range(lab, "10.65.0.0/30", "fd00:65::/126")?;
    let mut pods = ["x0", "x1", "x2", "x3"].map(|n| extra(n).expect("a namespace"));
    for pod in &mut pods[..3] {
        pod.add(&lab.nodes[0])?;
    }
    for _ in 0..2 {
        refused(
            pods[3].add(&lab.nodes[0]).map(drop),
            &["\"code\": 100", "payments", "10.65.0.0/30", "podCIDRs"],
        )?;
        maps_hold(&lab.nodes[0], 3)?;
    }
    // The other node has no block left, and says so.
    let far = index(lab, "payments/db-1");
    refused(add(lab, far), &["\"code\": 100", "claimed by another node"])?;
    nothing_left(lab, 1)?;
    pods[1].del(&lab.nodes[0])?;
    pods[3].add(&lab.nodes[0])?;
    require(pods[3].v4 == pods[1].v4, "the address that was freed")?;
    for pod in &pods {
        pod.del(&lab.nodes[0])?;
    }
    nothing_left(lab, 0)?;
    add(lab, far)
}

fn one_family(lab: &mut Lab) -> Result<()> {
    range(lab, "10.65.0.0/25", "fd00:65::/128")?;
    let (near, far) = (index(lab, "payments/db-0"), index(lab, "payments/db-1"));
    add(lab, near)?;
    refused(add(lab, far), &["\"code\": 100", "IPv6"])?;
    nothing_left(lab, 1)?;
    del(lab, near)?;
    add(lab, far)?;
    del(lab, far)?;
    nothing_left(lab, 1)
}

fn race(lab: &mut Lab) -> Result<()> {
    // Two blocks of each family, and two nodes that claim and release them again and again.
    range(lab, "10.65.0.0/25", "fd00:65::/121")?;
    let (near, far) = (index(lab, "payments/db-0"), index(lab, "payments/db-1"));
    let Lab { pods, nodes, .. } = lab;
    let both: Vec<_> =
        pods.iter_mut().enumerate().filter(|(i, _)| *i == near || *i == far).map(|(_, p)| p).collect();
    thread::scope(|scope| {
        let runs: Vec<_> = both
            .into_iter()
            .map(|pod| {
                let node = &nodes[pod.node];
                scope.spawn(move || -> Result<()> {
                    for _ in 0..20 {
                        pod.add(node)?;
                        pod.del(node)?;
                    }
                    pod.add(node).map(drop)
                })
            })
            .collect();
        runs.into_iter().try_for_each(|run| run.join().expect("no panic"))
    })?;
    let blocks =
        |n: usize| Ok::<_, bulkhead_lab::Error>(partition(&lab.nodes[n], "payments")?.expect("there").blocks);
    let (one, two) = (blocks(0)?, blocks(1)?);
    require(one.len() == 2 && two.len() == 2, &format!("one block of each family each: {one:?}, {two:?}"))?;
    require(!one.iter().any(|b| two.contains(b)), "no block is shared")?;
    until("the router has each block by its own node only", SOON, || {
        let [first, second] = ["n1v4", "n2v4"].map(|s| lab.bird.routes(s));
        let (first, second) = (first?, second?);
        let own = first.len() == 1 && second.len() == 1 && first[0].prefix != second[0].prefix;
        Ok(own.then_some(()))
    })?;
    check(lab, near)?;
    check(lab, far)
}
