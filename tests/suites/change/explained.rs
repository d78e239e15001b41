//! `explain` of ends that are no pods of this node, and of rules of policies: the command line, as a reviewer asks.

use super::{
    DEADLINE, LOST, eventually, node,
    policies::{NETWORK_POLICY, POLICY},
};
use bulkhead_api::messages::Explanation;
use bulkhead_lab::{Error, Lab, Result, unmet, until};
use std::net::IpAddr;

/// Verdict, and the rule with its origin of the end that says no, else of the last.
fn told(lab: &Lab, from: &str, to: &str, protocol: &str, port: u16) -> Result<(bool, String)> {
    let port = port.to_string();
    let words = ["explain", from, to, "--protocol", protocol, "--port", &port, "-o", "json"];
    let text = node(lab).cli(&words)?;
    let explanation: Explanation =
        serde_json::from_str(&text).map_err(|source| Error::Json { what: "explain".into(), source })?;
    let decisions = &explanation.decisions;
    let decided = decisions.iter().find(|d| !d.allowed).or(decisions.last());
    let rule = decided.map(|d| &d.rule);
    let words = rule.map(|r| format!("{} {}", r.name, r.file.clone().unwrap_or_default()));
    Ok((explanation.allowed, words.unwrap_or_default().trim().to_string()))
}

fn require(lab: &Lab, ask: (&str, &str, &str, u16), expected: (bool, &str)) -> Result<()> {
    let (from, to, protocol, port) = ask;
    until("it is told", DEADLINE, || match told(lab, from, to, protocol, port)? {
        (allowed, rule) if (allowed, rule.as_str()) == expected => Ok(Some(())),
        found => unmet(format!("{ask:?}: {found:?}")),
    })
}

pub fn groups_at_either_end(lab: &mut Lab) -> Result<()> {
    let dubbo = "Partition/payments ingress \"dubbo-from-legacy\" payments.yaml:11";
    let syslog = "Partition/payments egress \"syslog-to-legacy\" payments.yaml:25";
    require(lab, ("NetworkGroup/legacy", "payments/db-0", "tcp", 20880), (true, dubbo))?;
    require(lab, ("payments/db-0", "NetworkGroup/legacy", "udp", 5140), (true, syslog))?;
    require(lab, ("payments/db-0", "NetworkGroup/legacy", "udp", 5141), (false, "no rule allows it"))
}

const TOLD: &str = "told.yaml";

/// A pod of the other node, as a cluster's source tells of it: asked here, each node reaches its own.
pub fn a_node_and_its_own_pods_elsewhere(lab: &mut Lab) -> Result<()> {
    let there = lab.pod("payments/db-1")?;
    let [here, its_node] = [&lab.nodes[0], lab.node_of(there)].map(|n| IpAddr::from(n.v4).to_string());
    lab.objects.write(
        TOLD,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: db-1, namespace: payments}}\nspec: {{nodeName: {}}}\nstatus: {{podIPs: \
             [{{ip: {}}}]}}\n",
            lab.node_of(there).name, there.v4
        ),
    )?;
    let own = (true, "a node reaches its own pods");
    require(lab, (&its_node, "payments/db-1", "tcp", 1), own)?;
    require(lab, (&here, "payments/db-1", "tcp", 1), (false, "no rule allows it"))?;
    require(lab, (&here, "payments/db-0", "tcp", 1), own)?;
    require(lab, (&its_node, "payments/db-0", "tcp", 1), (false, "no rule allows it"))?;
    lab.objects.remove(TOLD)?;
    Ok(())
}

pub fn a_policys_rule_with_its_line(lab: &mut Lab) -> Result<()> {
    lab.objects.write(POLICY, NETWORK_POLICY)?;
    eventually(lab, LOST, false)?;
    let isolates = "NetworkPolicy/payments/db (isolates) policy.yaml:2";
    require(lab, ("web/front-0", "payments/db-0", "tcp", LOST), (false, isolates))?;
    let labelled =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: front-0, namespace: web, labels: {app: front}}\n";
    lab.objects.write(TOLD, labelled)?;
    let rule = "NetworkPolicy/payments/db ingress[0] policy.yaml:8";
    require(lab, ("web/front-0", "payments/db-0", "tcp", LOST), (true, rule))?;
    lab.objects.remove(TOLD)?;
    lab.objects.remove(POLICY)?;
    eventually(lab, LOST, true)
}
