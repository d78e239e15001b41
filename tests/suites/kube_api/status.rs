//! What nodes make of the objects, on the objects' own status; and who may say so.

use crate::{
    rights::refusal,
    site::{Case, SOON, Site},
};
use bulkhead_lab::{Error, Pod, Result, unmet, until};
use serde_json::{Value, json};

pub const CASES: &[(&str, Case)] = &[
    ("a partition says which version of it how many nodes have in force", in_force),
    ("every kind says whether it was accepted, and why not", accepted),
    ("a partition without a free address says how many pods wait for one, until there is room", exhausted),
    ("what of a ClusterNetworkPolicy is not supported is refused on its status", unsupported),
    ("a NetworkPolicy that is refused has an event that says why", network_policy),
    ("one node of three that lies turns no object's status", liar),
    ("a node that holds former objects claims none, and counts again when it is released", held),
    ("a daemon's token reports for its own node alone, and writes no status", own_report),
    ("why a pod could not be connected stands in its events", event),
];

const REPORTS: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node3}\n---\n\
    apiVersion: bulkhead.dev/v1alpha1\nkind: NodeReport\nmetadata: {name: node3}\nspec: {version: \"0\", generation: 1}\n";

fn get(site: &Site, what: &[&str]) -> Result<Value> {
    let text = site.control.kubectl(&[&["get", "-o", "json"], what].concat())?;
    serde_json::from_str(&text).map_err(|e| Error::Unmet(e.to_string()))
}

/// The object comes to have this in its status, as far as it is given here.
fn wait_status(
    site: &Site,
    what: &[&str],
    condition: &[(&str, &str)],
    numbers: &[(&str, i64)],
) -> Result<()> {
    until(&format!("the status of {what:?}"), SOON, || {
        let object = get(site, what)?;
        let status = &object["status"];
        let empty = Vec::new();
        let conditions = status["conditions"].as_array().unwrap_or(&empty);
        let accepted = conditions.iter().find(|c| c["type"] == "Accepted").unwrap_or(&Value::Null);
        let of_this_version = accepted["observedGeneration"] == object["metadata"]["generation"];
        let says =
            |(field, words): &(&str, &str)| accepted[*field].as_str().is_some_and(|s| s.contains(words));
        let counts = |(field, number): &(&str, i64)| status[*field] == json!(number);
        if of_this_version && condition.iter().all(says) && numbers.iter().all(counts) {
            Ok(Some(()))
        } else {
            unmet(object.to_string())
        }
    })
}

fn partition(name: &str, id: u16, cidr: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: {name}}}\n\
         spec: {{policyID: {id}, podCIDRs: [{cidr}]}}\n---\n"
    )
}

fn in_force(site: &mut Site) -> Result<()> {
    let red: &[&str] = &["partition", "red"];
    site.control.apply(&partition("red", 11, "10.71.0.0/16"))?;
    wait_status(
        site,
        red,
        &[("status", "True"), ("reason", "Accepted")],
        &[("observedGeneration", 1), ("nodesInForce", 1), ("nodes", 1)],
    )?;
    // A second node, whose daemon has seen nothing.
    site.control.apply(REPORTS)?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 1), ("nodes", 2)])?;
    // An edit overlaps with another, and is refused: what was in force stays, and does not count for it.
    site.control.apply(&partition("blue", 12, "10.72.0.0/16"))?;
    wait_status(site, &["partition", "blue"], &[("status", "True")], &[("nodesInForce", 1)])?;
    site.control.apply(&partition("red", 11, "10.72.0.0/17"))?;
    let overlap = "spec.podCIDRs[0]: 10.72.0.0/17 overlaps 10.72.0.0/16 of Partition/blue";
    wait_status(
        site,
        red,
        &[
            ("status", "False"),
            ("reason", "Refused"),
            ("message", overlap),
            ("message", "(on 1 of 2 nodes: node1)"),
        ],
        &[("observedGeneration", 2), ("nodesInForce", 0), ("nodes", 2)],
    )?;
    site.control.apply(&partition("red", 11, "10.73.0.0/16"))?;
    wait_status(site, red, &[("status", "True")], &[("observedGeneration", 3), ("nodesInForce", 1)])?;
    site.control.kubectl(&["delete", "nodereport,node", "node3"])?;
    wait_status(site, red, &[("status", "True")], &[("nodes", 1)])?;
    let table = site.control.kubectl(&["get", "partition", "red"])?;
    site.control.kubectl(&["delete", "partition", "--all"])?;
    if !table.contains("True") {
        return unmet(table);
    }
    Ok(())
}

fn accepted(site: &mut Site) -> Result<()> {
    site.control.apply(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [172.30.9.0/24]}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BandwidthClass\nmetadata: {name: low}\nspec: {rate: 1G}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {asn: 65010}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: leaf}\n\
         spec: {node: elsewhere, peerAddress: 172.30.7.1, peerASN: 65000}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: nobody}\n\
         spec: {node: elsewhere, peerAddress: 172.30.7.2, peerASN: 65000, group: missing}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {name: tower}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: tower}\n\
         spec: {policyID: 43, namespaces: [tower], podCIDRs: [10.79.0.0/16], fixedCIDRs: [10.79.1.0/28]}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {name: bell, namespace: tower}\n\
         spec: {pod: bell-0, addresses: [10.79.1.7]}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {name: outside, namespace: tower}\n\
         spec: {pod: bell-1, addresses: [10.79.2.7]}\n---\n\
         apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: lock}\n\
         spec: {tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]}\n",
    )?;
    for what in [
        &["networkgroup", "vms"][..],
        &["bandwidthclass", "low"],
        &["bgpconfiguration", "default"],
        &["bgppeer", "leaf"],
        &["clusternetworkpolicy", "lock"],
        &["partition", "tower"],
        &["ipreservation", "-n", "tower", "bell"],
    ] {
        wait_status(site, what, &[("status", "True"), ("reason", "Accepted")], &[])?;
    }
    let refused = [("status", "False"), ("reason", "Refused"), ("message", "missing")];
    wait_status(site, &["bgppeer", "nobody"], &refused, &[])?;
    let outside = "spec.addresses[0]: 10.79.2.7 lies outside spec.fixedCIDRs of partition tower";
    let refused = [("status", "False"), ("reason", "Refused"), ("message", outside)];
    wait_status(site, &["ipreservation", "-n", "tower", "outside"], &refused, &[])?;
    site.control.kubectl(&["delete", "--wait=false", "-f", &site.control.applied()]).map(drop)
}

/// Room for one pod, and after a while for two.
fn exhausted(site: &mut Site) -> Result<()> {
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: narrow}}\n\
             spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n---\n"
        )
    };
    let partition = |ranges: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: narrow}}\n---\n\
             apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: narrow}}\n\
             spec: {{policyID: 42, namespaces: [narrow], podCIDRs: [{ranges}]}}\n---\n"
        )
    };
    let wait = |status: &str, words: &str| {
        let path = "jsonpath={.status.conditions[?(@.type=='AddressesAvailable')]}";
        until(&format!("addresses are available: {status}, {words}"), SOON, || {
            let text = site.control.kubectl(&["get", "partition", "narrow", "-o", path])?;
            let found: Value = serde_json::from_str(&text).map_err(|e| Error::Unmet(e.to_string()))?;
            let says = found["message"].as_str().is_some_and(|m| m.contains(words));
            if found["status"] == status && says { Ok(Some(())) } else { unmet(text) }
        })
    };
    site.control.apply(&(partition("10.74.0.0/31") + &["a", "b", "c"].map(pod).concat()))?;
    wait("True", "")?;
    let create = |name: &str| Pod::create(0, "narrow", name);
    let (mut a, mut b, mut c) = (create("a")?, create("b")?, create("c")?);
    until("the first pod is wired", SOON, || a.add(&site.node).map(|_| Some(())))?;
    for pod in [&mut b, &mut c] {
        match pod.add(&site.node) {
            Err(e) if e.to_string().contains("no free IPv4 address") => {}
            other => return unmet(format!("a pod without room: {other:?}")),
        }
    }
    let words = "partition narrow has no free IPv4 address";
    wait("False", &format!("2 pods on 1 node (node1) without an address: {words}"))?;
    until("both pods' events say it", SOON, || {
        let path = "jsonpath={range .items[*]}{.regarding.name} {.reason}: {.note}{\"\\n\"}{end}";
        let events = site.control.kubectl(&["get", "events.events.k8s.io", "-n", "narrow", "-o", path])?;
        let told = |pod: &str| {
            let begins = format!("{pod} NoAddress: ");
            events.lines().any(|line| line.starts_with(&begins) && line.contains(words))
        };
        if told("b") && told("c") { Ok(Some(())) } else { unmet(events) }
    })?;
    site.control.apply(&partition("10.74.0.0/31, 10.74.1.0/31"))?;
    until("the second pod is wired", SOON, || b.add(&site.node).map(|_| Some(())))?;
    wait("True", "")?;
    c.add(&site.node).err().ok_or_else(|| Error::Unmet("there is no room for three".into()))?;
    wait("False", "1 pod on 1 node")?;
    site.control.kubectl(&["delete", "pod", "-n", "narrow", "c", "--force", "--grace-period=0"])?;
    wait("True", "")?;
    a.del(&site.node)?;
    b.del(&site.node)?;
    site.control.kubectl(&["delete", "partition", "narrow"])?;
    site.control.kubectl(&["delete", "namespace", "narrow", "--wait=false"]).map(drop)
}

/// Where the egress peers' fields stand in upstream's definition.
const EGRESS_PEER: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/egress/items/properties/to/items/properties";

fn unsupported(site: &mut Site) -> Result<()> {
    // As upstream's experimental channel defines it.
    let definition = "clusternetworkpolicies.policy.networking.k8s.io";
    let domains = json!({"type": "array", "items": {"type": "string"}});
    let patch = json!([{"op": "add", "path": format!("{EGRESS_PEER}/domainNames"), "value": domains}]);
    site.control.kubectl(&["patch", "crd", definition, "--type=json", "-p", &patch.to_string()])?;
    let policy = |peer: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: world}}\n\
             spec: {{tier: Admin, priority: 7, subject: {{namespaces: {{}}}}, egress: [{{action: Deny, to: [{peer}]}}]}}\n"
        )
    };
    let world: &[&str] = &["clusternetworkpolicy", "world"];
    site.control.apply(&policy("{networks: [198.51.100.0/24]}"))?;
    wait_status(site, world, &[("status", "True"), ("reason", "Accepted")], &[])?;
    // A server that has not taken over the definition yet prunes the field, and then a peer without one is refused.
    until("the API server knows domainNames", SOON, || {
        match site.control.apply(&policy("{domainNames: [example.com]}")) {
            Ok(_) => Ok(Some(())),
            Err(e) => unmet(e.to_string()),
        }
    })?;
    let why =
        "spec.egress[0].to[0].domainNames: names in place of addresses are not supported: write `networks`";
    wait_status(site, world, &[("status", "False"), ("reason", "Refused"), ("message", why)], &[])?;
    site.wait_told(why)?;
    // What was in force stays.
    site.wait_allowed("10.64.0.9", "198.51.100.1", 80, false)?;
    site.control.kubectl(&["delete", "clusternetworkpolicy", "world"])?;
    site.wait_allowed("10.64.0.9", "198.51.100.1", 80, true)?;
    site.wait_sound()
}

fn network_policy(site: &mut Site) -> Result<()> {
    site.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: octal, namespace: default}\n\
         spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}\n",
    )?;
    let why = "Refused: spec.egress[0].to[0].ipBlock.cidr: `010.0.0.0/8` is not a CIDR";
    until("the NetworkPolicy is described with why it is refused", SOON, || {
        let path = "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
        let of = "involvedObject.kind=NetworkPolicy,involvedObject.name=octal";
        let events = site.control.kubectl(&["get", "events", "--field-selector", of, "-o", path])?;
        if events.contains(why) { Ok(Some(())) } else { unmet(events) }
    })?;
    site.control.kubectl(&["delete", "networkpolicy", "octal"])?;
    site.wait_sound()
}

/// What a stolen token could have a node say of all others' objects: the honest ones are node1 and, by its digests, node5.
fn liar(site: &mut Site) -> Result<()> {
    let red: &[&str] = &["partition", "red"];
    site.control.apply(&partition("red", 11, "10.71.0.0/16"))?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 1), ("nodes", 1)])?;
    let report = |name: &str, spec: &Value| -> Result<()> {
        let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n");
        let object = json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "NodeReport", "metadata": {"name": name}, "spec": spec});
        site.control.apply(&format!("{node}{object}\n")).map(drop)
    };
    let own = get(site, &["nodereport", "node1"])?;
    report("node5", &own["spec"])?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 2), ("nodes", 2)])?;
    let lie = json!({"object": "Partition/red", "generation": 1, "message": "give all of it to me"});
    let room = |pods: i64, message: &str| json!([{"partition": "red", "pods": pods, "message": message}]);
    let report4 = |exhausted: Value| {
        report("node4", &json!({"version": "0", "generation": 1, "refused": [lie], "exhausted": exhausted}))
    };
    for (exhausted, why) in [(room(-1, "full"), "pods"), (room(1, &"x".repeat(1001)), "message")] {
        match report4(exhausted) {
            Err(e) if e.to_string().contains(&format!("spec.exhausted[0].{why}")) => {}
            other => return unmet(format!("a report with impossible {why}: {other:?}")),
        }
    }
    report4(room(7, "nothing left"))?;
    let named = "refused: give all of it to me (on 1 of 3 nodes: node4)";
    let said = [("status", "True"), ("reason", "Accepted"), ("message", named)];
    wait_status(site, red, &said, &[("nodesInForce", 2), ("nodes", 3)])?;
    let path = "jsonpath={.status.conditions[?(@.type=='AddressesAvailable')].message}";
    until("the report of one node is told with its name", SOON, || {
        let text = site.control.kubectl(&["get", "partition", "red", "-o", path])?;
        let wanted = "7 pods on 1 node (node4) without an address: nothing left";
        if text == wanted { Ok(Some(())) } else { unmet(text) }
    })?;
    site.control.kubectl(&["delete", "nodereport,node", "node4", "node5"])?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 1), ("nodes", 1)])?;
    site.control.kubectl(&["delete", "partition", "red"]).map(drop)
}

fn held(site: &mut Site) -> Result<()> {
    let red: &[&str] = &["partition", "red"];
    site.control.apply(&partition("red", 11, "10.71.0.0/16"))?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 1)])?;
    site.node.cli(&["policy", "rollback"])?;
    wait_status(site, red, &[("status", "Unknown"), ("reason", "Pending")], &[("nodesInForce", 0)])?;
    let report = get(site, &["nodereport", "node1"])?;
    if !report["spec"]["held"].is_number() {
        return unmet(report.to_string());
    }
    site.node.cli(&["policy", "release"])?;
    wait_status(site, red, &[("status", "True")], &[("nodesInForce", 1)])?;
    site.control.kubectl(&["delete", "partition", "red"]).map(drop)
}

fn own_report(site: &mut Site) -> Result<()> {
    let token = site.daemon_kubeconfig();
    let own = get(site, &["nodereport", "node1"])?;
    if own["metadata"]["ownerReferences"][0]["kind"] != "Node" {
        return unmet(format!("the report does not go with its node: {own}"));
    }
    let file =
        site.control.write("foreign-report.yaml", REPORTS.split("---\n").nth(1).unwrap_or_default())?;
    let apply = ["apply", "--server-side", "--dry-run=server", "-f", &file];
    let said = refusal(site, &token, &apply)?;
    if !said.contains("the daemon of node `node1` may not report for node `node3`") {
        return unmet(said);
    }
    for what in ["partitions.bulkhead.dev", "bgppeers.bulkhead.dev"] {
        let status = ["auth", "can-i", "patch", what, "--subresource=status"];
        if site.control.kubectl_as(&token, &status).is_ok() {
            return unmet(format!("a daemon may write the status of {what}"));
        }
    }
    Ok(())
}

fn event(site: &mut Site) -> Result<()> {
    site.control.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: greedy}\n---\n\
         apiVersion: v1\nkind: Pod\n\
         metadata: {name: eater, namespace: greedy, annotations: {bulkhead.dev/bandwidth-class: huge}}\n\
         spec: {nodeName: node1, containers: [{name: c, image: none}]}\n",
    )?;
    let mut pod = Pod::create(0, "greedy", "eater")?;
    let path = "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
    until("the event says which class there is not", SOON, || {
        // Again and again, as a kubelet does it.
        if pod.add(&site.node).is_ok() {
            return unmet("the pod was connected");
        }
        let events = site.control.kubectl(&["get", "events", "-n", "greedy", "-o", path])?;
        let told = events.lines().any(|l| l.starts_with("InvalidConfiguration: ") && l.contains("huge"));
        if told { Ok(Some(())) } else { unmet(events) }
    })?;
    site.control.kubectl(&["delete", "namespace", "greedy", "--wait=false"]).map(drop)
}
