//! Classes and annotations that change while a pod runs.

use crate::support::*;
use bulkhead_lab::{Lab, Result, link::run, unmet, until};

pub const CASES: &[Case] =
    &[("rates follow class, default and annotation live; what is refused keeps the rate and is told", live)];

/// Rates of the pod's two queues as `tc` shows them.
fn until_rate(lab: &Lab, pod: usize, rate: Option<&str>) -> Result<()> {
    let node = &lab.nodes[lab.pods[pod].node];
    until(&format!("both queues run at {rate:?}"), SOON, || {
        let name = lab.pods[pod].name.clone();
        let found = endpoints(node)?.into_iter().find(|e| e.pod.name == name);
        let Some(found) = found else { return unmet("the pod is listed") };
        let tc = |dev: &str| run(node.netns.command("tc").args(["qdisc", "show", "dev", dev, "root"]));
        let host = tc(&found.host_interface)?;
        let ifb = found.host_interface.replacen("bh", "bi", 1);
        let holds = match rate {
            Some(rate) => {
                let rate = format!("rate {rate} ");
                host.contains(&rate) && tc(&ifb)?.contains(&rate)
            }
            None => !host.contains("tbf") && !node.interfaces()?.contains(&ifb),
        };
        if holds { Ok(Some(())) } else { unmet(host) }
    })
}

fn live(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "shop/low-0");
    add(lab, pod)?;
    until_rate(lab, pod, Some("1Gbit"))?;
    let class = |rate: &str| {
        format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: BandwidthClass\nmetadata: {{name: gold}}\nspec: {{rate: {rate}}}\n"
        )
    };
    let pods = lab.objects.read("pods.yaml")?;
    // A class that is not there yet: the rate stays, and the refusal says which there are.
    lab.objects.write("pods.yaml", &pods.replacen("bandwidth-class: low", "bandwidth-class: gold", 1))?;
    until_refused(&lab.nodes[0], "no bandwidth class `gold`")?;
    contains(&refusals(&lab.nodes[0])?, &["Pod/shop/low-0", "bulkhead.dev/bandwidth-class", "management"])?;
    until_rate(lab, pod, Some("1Gbit"))?;
    lab.objects.write("gold.yaml", &class("300M"))?;
    until_rate(lab, pod, Some("300Mbit"))?;
    until_content(&lab.nodes[0])?;
    lab.objects.write("gold.yaml", &class("200M"))?;
    until_rate(lab, pod, Some("200Mbit"))?;
    check(lab, pod)?;
    // Removed while in use, also over a restart; another pod of the class is refused.
    lab.objects.remove("gold.yaml")?;
    until_refused(&lab.nodes[0], "no bandwidth class `gold`")?;
    until_rate(lab, pod, Some("200Mbit"))?;
    lab.nodes[0].kill_daemon()?;
    lab.nodes[0].start_daemon()?;
    until_rate(lab, pod, Some("200Mbit"))?;
    check(lab, pod)?;
    del(lab, pod)?;
    refused(add(lab, pod), &["no bandwidth class `gold`", "\"code\":7"])?;
    nothing_left(lab, 0)?;
    lab.objects.write("pods.yaml", &pods)?;
    // Of a pod that is not here no refusal tells whether the file is read.
    until("the pod is wired again", SOON, || add(lab, pod).map(Some))?;
    // No annotation: no limit, and no queue left.
    lab.objects.write("pods.yaml", &pods.replacen("bulkhead.dev/bandwidth-class: low", "other: low", 1))?;
    until_rate(lab, pod, None)?;
    check(lab, pod)?;
    // Kubernetes' own annotations, which a runtime reads once.
    let write = |ingress| {
        let both =
            format!("kubernetes.io/ingress-bandwidth: {ingress}\n    kubernetes.io/egress-bandwidth: 100M");
        lab.objects.write("pods.yaml", &pods.replacen("bulkhead.dev/bandwidth-class: low", &both, 1))
    };
    write("100M")?;
    until_rate(lab, pod, Some("100Mbit"))?;
    write("fast")?;
    until_refused(&lab.nodes[0], "`fast` is no bandwidth")?;
    until_rate(lab, pod, Some("100Mbit"))?;
    check(lab, pod)?;
    lab.objects.write("pods.yaml", &pods)?;
    until_rate(lab, pod, Some("1Gbit"))?;
    check(lab, pod)?;
    node_reaches(&lab.nodes[0], &lab.pods[pod])?;
    del(lab, pod)?;
    nothing_left(lab, 0)
}
