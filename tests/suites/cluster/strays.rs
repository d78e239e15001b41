//! Partitions over pods that run already: laid over them, moved from under them, with ranges that leave them behind.

use crate::{
    calls::{Call, Party, wait_reached},
    reach::PODS,
    site::{PORT, Pod, Site},
};
use bulkhead_lab::{Result, cluster::SOON, unmet, until};

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
