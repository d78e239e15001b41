//! Partitions over pods that run already: laid over them, moved from under them, with ranges that leave them behind.

use crate::{
    calls::{Call, Party, wait_reached},
    reach::PODS,
    site::{PORT, Pod, Site},
};
use bulkhead_lab::{Result, cluster::SOON, traffic::Sequence, unmet, until};
use std::{net::SocketAddr, time::Duration};

/// Of datagrams from one pod to another.
const EVERY: Duration = Duration::from_millis(5);

const fn pod(namespace: &'static str, name: &'static str, node: &'static str) -> Pod {
    Pod { namespace, name, node, host: false, role: "stray" }
}

const RUNNING: [Pod; 4] = [
    pod("harbor", "harbor1", "node1"),
    pod("harbor", "harbor2", "node2"),
    pod("quay", "quay1", "node1"),
    pod("quay", "quay2", "node2"),
];
const LATER: Pod = pod("harbor", "later", "node1");
const LAST: Pod = pod("harbor", "last", "node2");

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n")
}

fn harbor(namespaces: &str, ranges: &str, rules: &str) -> String {
    partition("harbor", 41, &format!("namespaces: [{namespaces}], podCIDRs: [{ranges}]{rules}"))
}

/// Its namespaces are those with a label.
fn quay(rules: &str) -> String {
    let members =
        "namespaceSelector: {matchLabels: {at: quay}}, podCIDRs: [10.67.32.0/20, \"fd00:66:0:8::/64\"]";
    partition("quay", 42, &format!("{members}{rules}"))
}

fn partition(name: &str, id: u16, spec: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: {name}}}\nspec: {{policyID: {id}, {spec}}}\n---\n"
    )
}

/// What a node says: pods of the partition, and strays among them.
fn wait_counted(site: &Site, node: &str, name: &str, expected: (u64, u64)) -> Result<()> {
    until(&format!("{node} counts {expected:?} pods and strays in {name}"), SOON, || {
        let told = site.on_node(node, &["partitions", "-o", "json"])?;
        let all: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap_or_default();
        let one = all.iter().find(|p| p["name"] == name);
        let number = |field: &str| one.and_then(|p| p[field].as_u64()).unwrap_or_default();
        let now = (number("endpoints"), number("strays"));
        if now == expected { Ok(Some(())) } else { unmet(told) }
    })
}

fn expect_range(party: &Party, v4: &str, v6: &str) -> Result<()> {
    let [a, b] = party.addresses.map(|a| a.to_string());
    if a.starts_with(v4) && b.starts_with(v6) {
        Ok(())
    } else {
        unmet(format!("{}: {a} and {b}", party.name))
    }
}

fn within(call: &Call<'_>) -> bool {
    call.from.namespace == call.to.namespace
}

const WIDE: &str = "10.67.0.0/20, \"fd00:66:0:7::/64\"";
/// A part of it without the addresses that are given first.
const NARROW: &str = "10.67.8.0/21, \"fd00:66:0:7:8000::/65\"";

pub fn laid_over(site: &mut Site) -> Result<()> {
    site.cluster.control.apply(&[namespace("harbor", ""), namespace("quay", "at: quay")].concat())?;
    site.create(&RUNNING)?;
    let pods = RUNNING.iter().chain(&PODS[..2]);
    let mut all = pods.map(|pod| Party::of_pod(site, pod)).collect::<Result<Vec<_>>>()?;
    all.extend(Party::nodes(site)?);
    wait_reached("before there is a partition", &all, |_| true)?;

    site.cluster.control.apply(&harbor("harbor", WIDE, ""))?;
    let apart =
        |call: &Call<'_>| within(call) || (call.from.namespace != "harbor" && call.to.namespace != "harbor");
    wait_reached("a partition over running pods", &all, apart)?;
    for node in ["node1", "node2"] {
        wait_counted(site, node, "harbor", (1, 1))?;
    }
    // The API server goes on to call its pods, as it calls webhooks.
    let by_proxy = format!("/api/v1/namespaces/harbor/pods/harbor2:{PORT}/proxy/cgi-bin/who");
    let answer = site.cluster.kubectl(&["get", "--raw", &by_proxy])?;
    if !answer.contains("harbor2") {
        return unmet(format!("the API server is told: {answer}"));
    }

    let from_quay = ", ingress: [{name: quay, from: [{partition: quay}]}]";
    let to_harbor = ", egress: [{name: harbor, to: [{partition: harbor}]}]";
    site.cluster.control.apply(&[quay(to_harbor), harbor("harbor", WIDE, from_quay)].concat())?;
    let by_rule = |call: &Call<'_>| {
        let [from, to] = [call.from, call.to].map(|party| party.namespace);
        let outside = |namespace| namespace != "harbor" && namespace != "quay";
        from == to || (from, to) == ("quay", "harbor") || (outside(from) && outside(to))
    };
    wait_reached("rules between partitions over running pods", &all, by_rule)?;

    // The next pod has an address of the partition's own, and the range is taken from under it.
    site.create(&[LATER])?;
    let later = Party::of_pod(site, &LATER)?;
    expect_range(&later, "10.67.0.", "fd00:66:0:7::")?;
    all.push(later);
    wait_reached("a pod in the range beside strays", &all, by_rule)?;
    wait_counted(site, "node1", "harbor", (2, 1))?;
    site.cluster.control.apply(&harbor("harbor", NARROW, from_quay))?;
    wait_counted(site, "node1", "harbor", (2, 2))?;
    site.create(&[LAST])?;
    let last = Party::of_pod(site, &LAST)?;
    expect_range(&last, "10.67.8.", "fd00:66:0:7:8000:")?;
    all.push(last);
    wait_reached("a range shrunk", &all, by_rule)?;
    wait_counted(site, "node2", "harbor", (2, 1))?;

    moved(site, &all)
}

/// Goes on with these pods: namespaces are moved from one partition to another, by name and by label, and out of all.
fn moved(site: &Site, all: &[Party]) -> Result<()> {
    let outside = |namespace: &str| namespace != "harbor" && namespace != "quay";
    site.cluster.control.apply(&harbor("", NARROW, ""))?;
    let left = |call: &Call<'_>| {
        let [from, to] = [call.from, call.to].map(|party| party.namespace);
        within(call) || (from != "quay" && to != "quay")
    };
    wait_reached("a namespace taken out of its partition", all, left)?;
    site.cluster.kubectl(&["label", "namespace", "harbor", "at=quay"])?;
    let joined = |call: &Call<'_>| outside(call.from.namespace) == outside(call.to.namespace);
    wait_reached("a namespace moved into another partition", all, joined)?;
    wait_counted(site, "node1", "quay", (3, 3))?;
    // A daemon that begins anew judges them as the one before.
    site.cluster.kubectl(&["delete", "pod", "-n", "bulkhead", "-l", "app=bulkheadd", "--wait=false"])?;
    site.cluster.kubectl(&["rollout", "status", "-n", "bulkhead", "ds/bulkheadd", "--timeout=120s"])?;
    wait_counted(site, "node1", "quay", (3, 3))?;
    wait_reached("after a restart", all, joined)?;
    site.cluster.kubectl(&["label", "namespace", "harbor", "quay", "at-"])?;
    wait_reached("namespaces in no partition any more", all, |_| true)?;
    site.cluster.kubectl(&["delete", "namespace", "harbor", "quay", "--timeout=60s"])?;
    site.cluster.kubectl(&["delete", "partition", "harbor", "quay"]).map(drop)
}

/// The namespace that is moved, and one of the partition that it comes to.
const BARGE: [Pod; 2] = [pod("barge", "barge1", "node1"), pod("barge", "barge2", "node2")];
const DOCK: Pod = pod("dock", "dock1", "node2");

fn upper(namespaces: &str) -> String {
    let ranges = "10.67.144.0/20, \"fd00:66:0:b::/64\"";
    partition("upper", 147, &format!("namespaces: [{namespaces}], podCIDRs: [{ranges}]"))
}

fn lower(namespaces: &str) -> String {
    let ranges = "10.67.160.0/20, \"fd00:66:0:c::/64\"";
    partition("lower", 148, &format!("namespaces: [{namespaces}], podCIDRs: [{ranges}]"))
}

/// Datagrams from each of these to the other all the time, in both families.
fn flows(pairs: &[(&Party, &Party)], port: u16) -> Result<Vec<(String, Sequence)>> {
    let mut flows = Vec::new();
    for (port, (from, to)) in (port..).zip(pairs) {
        for address in to.addresses {
            let at = SocketAddr::new(address, port);
            let datagrams = Sequence::start(from.netns(), to.netns(), at, EVERY)?;
            flows.push((format!("{} to {at}", from.name), datagrams));
        }
    }
    Ok(flows)
}

/// A namespace goes by its name from one isolated partition to another and back, as the user guide says: into the new one first, which is
/// refused, then out of the old one. At no moment is it open, and its pods go on to reach each other.
pub fn moved_by_name(site: &mut Site) -> Result<()> {
    let apply = |objects: &[String]| site.cluster.control.apply(&objects.concat()).map(drop);
    apply(&[namespace("barge", ""), namespace("dock", ""), upper("barge"), lower("dock")])?;
    site.create(&[BARGE[0], BARGE[1], DOCK])?;
    let pods = BARGE.iter().chain([&DOCK]).chain(&PODS[..2]);
    let all = pods.map(|pod| Party::of_pod(site, pod)).collect::<Result<Vec<_>>>()?;
    let is_shop = |party: &Party| party.namespace == "shop";
    let apart = |call: &Call<'_>| within(call) || (is_shop(call.from) && is_shop(call.to));
    wait_reached("two isolated partitions", &all, apart)?;

    let [barge1, barge2, _, app1, app2] = &all[..] else { return unmet("not five pods") };
    let inside = flows(&[(barge1, barge2), (barge2, barge1)], 7300)?;
    let met = [(app1, barge1), (app1, barge2), (app2, barge1), (app2, barge2)];
    let outside = [&met[..], &met.map(|(app, barge)| (barge, app))].concat();
    let outside = flows(&outside, 7400)?;
    let heard = |flows: &[(String, Sequence)]| -> Vec<String> {
        flows.iter().filter(|(_, flow)| flow.heard() > 0).map(|(name, _)| name.clone()).collect()
    };

    apply(&[lower("barge, dock")])?;
    let condition = "jsonpath={.status.conditions[?(@.type=='Accepted')]}";
    until("the new partition is refused, as the old one has the namespace", SOON, || {
        let told = site.cluster.kubectl(&["get", "partition", "lower", "-o", condition])?;
        let refused = told.contains("Refused") && told.contains("belongs to Partition/upper");
        if refused { Ok(Some(())) } else { unmet(told) }
    })?;
    apply(&[upper("")])?;
    let joined = |call: &Call<'_>| is_shop(call.from) == is_shop(call.to);
    wait_reached("a namespace moved by name", &all, joined)?;
    // Whoever waits for nothing in between is served as well.
    apply(&[upper("barge")])?;
    apply(&[lower("dock")])?;
    wait_reached("a namespace moved back", &all, apart)?;
    if !heard(&outside).is_empty() {
        return unmet(format!("it was open in between: {:?}", heard(&outside)));
    }
    for (name, flow) in inside {
        let report = flow.finish()?;
        if report.lost > 0 {
            return unmet(format!("{name} was interrupted: {report:?}"));
        }
    }
    // Out of one partition and into no other: open, and all that was refused would be seen.
    apply(&[upper("")])?;
    until("everybody is heard", SOON, || {
        let heard = heard(&outside);
        if heard.len() == outside.len() { Ok(Some(())) } else { unmet(format!("only {heard:?}")) }
    })?;
    for (_, flow) in outside {
        flow.finish()?;
    }
    site.cluster.kubectl(&["delete", "namespace", "barge", "dock", "--timeout=60s"])?;
    site.cluster.kubectl(&["delete", "partition", "upper", "lower"]).map(drop)
}
