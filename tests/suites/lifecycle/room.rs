//! Rules for which the node's tables have no room, and a daemon that starts.

use crate::{refused::still_closed, support::*};
use bulkhead_lab::{Lab, Result, objects::more_prefixes_than_fit, until};
use std::{fs, time::Duration};

pub const CASES: &[Case] = &[
    ("a daemon that starts with rules that do not fit goes on by those before", those_before),
    ("a node that has had no rules wires no pod while none fit", none_before),
];

const MANY: &str = "many.yaml";
const REFUSED: &str = "IDENTITY_PREFIX needs 33";
/// A daemon that is not optimised reads and compiles so many for seconds.
const LONG: Duration = Duration::from_secs(90);

fn is_told(lab: &Lab) -> Result<()> {
    until("the refusal is told", LONG, || {
        let told = status(&lab.nodes[0]).is_ok_and(|s| s.errors.iter().any(|e| e.message.contains(REFUSED)));
        Ok(told.then_some(()))
    })
}

fn is_ready(lab: &Lab) -> Result<()> {
    until("pods can be wired", LONG, || {
        Ok(lab.nodes[0].get::<serde_json::Value>("/v1/cni/status").is_ok().then_some(()))
    })
}

fn those_before(lab: &mut Lab) -> Result<()> {
    lab.objects.write(MANY, &more_prefixes_than_fit())?;
    is_told(lab)?;
    lab.nodes[0].stop_daemon()?;
    lab.nodes[0].start_daemon_unready()?;
    is_told(lab)?;
    is_ready(lab)?;
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    still_closed(lab, pod)
}

fn none_before(lab: &mut Lab) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.stop_daemon()?;
    fs::remove_dir_all(node.state_dir())?;
    remove_pins(&node.pins())?;
    lab.objects.write(MANY, &more_prefixes_than_fit())?;
    lab.nodes[0].start_daemon_unready()?;
    is_told(lab)?;
    let pod = index(lab, "payments/db-0");
    require(add(lab, pod).is_err(), "a pod is wired under no rules")?;
    lab.objects.remove(MANY)?;
    is_ready(lab)?;
    add(lab, pod)?;
    still_closed(lab, pod)
}
