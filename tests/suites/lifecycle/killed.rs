//! `kill -9` of the daemon in the middle of ADD and DEL.

use crate::support::*;
use bulkhead_lab::{Lab, Result};
use std::{thread, time::Duration};

pub const CASES: &[Case] = &[
    ("killed at any instant of ADD or DEL, no half pod is left and ADD works again", at_any_instant),
    ("a pod that was wired before the kill stays wired, with its addresses", wired_stays),
];

/// Pods of node1, wired and unwired at once while the daemon is killed; then what a runtime does: DEL, and ADD again.
fn at_any_instant(lab: &mut Lab) -> Result<()> {
    const ROUNDS: u64 = 24;
    let pods = pods_of(lab, 0);
    for round in 0..ROUNDS {
        // Spread over the time that the calls take, and a prime apart.
        let instant = Duration::from_micros(round * 37_003 % 160_000);
        let deleting = round % 2 == 1;
        if deleting {
            pods.iter().try_for_each(|p| add(lab, *p))?;
        }
        let (first, rest) = lab.nodes.split_at_mut(1);
        let (node, _) = (&first[0], rest);
        let of_node: Vec<_> = lab.pods.iter_mut().filter(|p| p.node == 0).collect();
        let pid = node.daemon_pid().expect("it runs");
        thread::scope(|scope| {
            for pod in of_node {
                scope.spawn(move || if deleting { pod.del(node) } else { pod.add(node).map(drop) });
            }
            thread::sleep(instant);
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
        })?;
        lab.nodes[0].kill_daemon()?;
        lab.nodes[0].start_daemon()?;
        // Half a pod is none: whatever is listed is whole, as far as the daemon's own eyes see.
        maps_hold(&lab.nodes[0], endpoints(&lab.nodes[0])?.len())?;
        for pod in &pods {
            del(lab, *pod)?;
        }
        nothing_left(lab, 0)?;
        for pod in &pods {
            add(lab, *pod)?;
            check(lab, *pod)?;
        }
        for pod in &pods {
            del(lab, *pod)?;
        }
    }
    nothing_left(lab, 0)
}

fn wired_stays(lab: &mut Lab) -> Result<()> {
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    let before = endpoints(&lab.nodes[0])?;
    for _ in 0..3 {
        lab.nodes[0].kill_daemon()?;
        node_reaches(&lab.nodes[0], &lab.pods[pod])?;
        lab.nodes[0].start_daemon()?;
        require(endpoints(&lab.nodes[0])? == before, "the pod is listed as it was")?;
        check(lab, pod)?;
    }
    del(lab, pod)?;
    nothing_left(lab, 0)
}
