//! The definitions of our kinds in a real API server: what it accepts, what it refuses and how it says so, what it shows.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Context, Error, Result, unmet, until};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

pub const CASES: &[(&str, Case)] = &[
    ("what the user guide shows is accepted by the API server", user_guide),
    ("the API server refuses what one object has wrong, and names it", refused),
    ("a policyID is never changed, nor is a claim", unchangeable),
    ("kubectl shows what people look for, by short names", shown),
    (
        "every kind has a status but a claim, which is never written again, and a report, which is one",
        statuses,
    ),
];

/// Kind, name, spec, and what the API server must say: field and words, `|` between.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    ("Partition", "bad", "{policyID: 0, podCIDRs: [10.1.0.0/16]}", "spec.policyID"),
    ("Partition", "bad", "{policyID: 1}", "spec.podCIDRs|is empty"),
    ("Partition", "bad", "{policyID: 1, podCIDRs: [10.1.0.0/33]}", "spec.podCIDRs[0]|is not a CIDR"),
    ("Partition", "bad", "{policyID: 1, podCIDRs: [10.1.2.0/16]}", "has bits set beyond its prefix"),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], serviceCIDRs: [10.96.0.0/16, \"::/0\"]}",
        "spec.serviceCIDRs|holds a default route",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16, \"fd00:1::/64\"], fixedCIDRs: [10.1.0.0/28, \"fd00:2::/120\"]}",
        "spec.fixedCIDRs|lies in none of spec.podCIDRs",
    ),
    ("Partition", "default", "{policyID: 1, podCIDRs: [10.1.0.0/16]}", "`default` is the partition of all"),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{ports: [{port: 8090, endPort: 8000}]}]}",
        "spec.ingress[0].ports[0].endPort|the range is upside down",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{ports: [{endPort: 8000}]}]}",
        "endPort has no port",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], egress: [{to: [{nodes: {}, partition: web}]}]}",
        "spec.egress[0].to[0]|a peer is exactly one of partition",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], egress: [{ports: [{protocol: ICMP, port: 256}]}]}",
        "ICMP types go from 0 to 255",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}]}",
        "except[0]",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bgp: {communities: [\"65536:1\"]}}",
        "is not a community",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bgp: {communities: [\"65010:1:2\", \"4294967296:1:2\"]}}",
        "communities[1]",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], ingres: []}",
        "unknown field \"spec.ingres\"",
    ),
    (
        "Partition",
        "bad",
        "{policyID: 1, podCIDRs: [10.1.0.0/16], bandwidth: {maximum: 0}}",
        "0 lets nothing pass",
    ),
    ("NetworkGroup", "bad", "{cidrs: [10.0.0.1/8]}", "has bits set beyond its prefix"),
    ("NetworkGroup", "bad", "{cidrs: [10.0.0.0/8, vms]}", "spec.cidrs[1]|is not a CIDR"),
    ("BandwidthClass", "bad", "{rate: 0G}", "0 lets nothing pass"),
    ("BandwidthClass", "bad", "{rate: 1.5G}", "spec.rate"),
    ("BGPPeer", "bad", "{peerAddress: router, peerASN: 65000}", "is not an IP address"),
    (
        "BGPPeer",
        "bad",
        "{peerAddress: 10.0.0.1, peerASN: 65000, holdTimeSeconds: 2}",
        "must be 0, or at least 3",
    ),
    ("BGPPeer", "bad", "{peerAddress: 10.0.0.1, peerASN: 0}", "spec.peerASN"),
    ("BGPPeer", "bad", "{peerASN: 65000}", "set one of peerAddress, peerRange and interface"),
    (
        "BGPPeer",
        "bad",
        "{peerAddress: 10.0.0.1, interface: eth0, peerASN: 65000}",
        "set one of peerAddress, peerRange and interface",
    ),
    ("BGPPeer", "bad", "{interface: a/b, peerASN: 65000}", "spec.interface"),
    ("BGPConfiguration", "other", "{asn: 65010}", "there is one BGPConfiguration, and its name is `default`"),
    ("BGPConfiguration", "default", "{asn: 65010, restartTimeSeconds: 5000}", "spec.restartTimeSeconds"),
    (
        "BGPConfiguration",
        "default",
        "{asn: 65010, advertiseServiceCIDRs: [services, 10.96.0.1/16]}",
        "spec.advertiseServiceCIDRs[0]|is not a CIDR|spec.advertiseServiceCIDRs[1]|has bits set beyond its prefix",
    ),
    (
        "BGPConfiguration",
        "default",
        "{asn: 65010, advertiseExternalIPs: [0.0.0.0/0]}",
        "spec.advertiseExternalIPs|holds a default route",
    ),
    (
        "BGPConfiguration",
        "default",
        "{asn: 65010, communities: [\"65010\"]}",
        "spec.communities[0]|is not a community",
    ),
    (
        "BGPConfiguration",
        "default",
        "{asn: 65010, monitoring: [{address: station, port: 11019}]}",
        "spec.monitoring[0].address|is not an IP address",
    ),
    (
        "IPBlock",
        "mine",
        "{cidr: 10.1.0.0/26, partition: web, node: node1}",
        "the name of an IPBlock is its CIDR",
    ),
    (
        "IPBlock",
        "fd00-0---122",
        "{cidr: \"fd00:0::/122\", partition: web, node: node1}",
        "is not written in the shortest form",
    ),
    (
        "IPBlock",
        "203-0-113-0-24",
        "{cidr: 203.0.113.0/24, partition: web, node: node1}",
        "spec.cidr|is no block: one has 64 addresses at most",
    ),
    ("IPBlock", "0-0-0-0-0", "{cidr: 0.0.0.0/0, partition: web, node: node1}", "is no block"),
    ("IPBlock", "fd00-64---121", "{cidr: \"fd00:64::/121\", partition: web, node: node1}", "is no block"),
    ("IPBlock", "fd00-64---48", "{cidr: \"fd00:64::/48\", partition: web, node: node1}", "is no block"),
    (
        "IPBlock",
        "10-1-0-1-26",
        "{cidr: 10.1.0.1/26, partition: web, node: node1}",
        "has bits set beyond its prefix",
    ),
    ("IPReservation", "bad", "{pod: db-0, addresses: [db]}", "spec.addresses[0]|is not an IP address"),
    (
        "IPReservation",
        "both",
        "{pod: db-0, addresses: [10.1.0.1, 10.1.0.2]}",
        "both addresses are of one family",
    ),
];

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: bulkhead.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn refused(site: &mut Site) -> Result<()> {
    let mut answers = Answers::default();
    for (kind, name, spec, expected) in REFUSED {
        let said = site.refusal(&document(kind, name, spec))?;
        if !expected.split('|').all(|words| said.contains(words)) {
            return unmet(format!("{kind} {spec}\nexpected: {expected}\nsaid:     {said}"));
        }
        answers.add(kind, &said);
    }
    answers.hold_all(|rule| !rule.contains("oldSelf"))
}

/// All that the API server has said of objects, by kind.
#[derive(Default)]
struct Answers(BTreeMap<String, String>);

impl Answers {
    fn add(&mut self, kind: &str, said: &str) {
        self.0.entry(kind.into()).or_default().push_str(said);
    }

    /// Of each of these rules of our definitions somebody was told, in its words.
    fn hold_all(&self, of: impl Fn(&str) -> bool) -> Result<()> {
        let mut untold = Vec::new();
        for (kind, definition) in definitions()? {
            let said = self.0.get(&kind).map_or("", String::as_str);
            let mut rules = Vec::new();
            find_rules(&definition, &mut rules);
            let rules = rules.into_iter().filter(|(rule, message)| of(rule) && !said.contains(message));
            untold.extend(rules.map(|(rule, message)| format!("{kind}: {message} ({rule})")));
        }
        if untold.is_empty() { Ok(()) } else { unmet(format!("no object breaks\n{}", untold.join("\n"))) }
    }
}

/// What `deploy/crds` holds, by kind.
fn definitions() -> Result<BTreeMap<String, Value>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(&dir).during(|| dir.display().to_string())? {
        let text = fs::read_to_string(entry?.path())?;
        let definition: Value = serde_saphyr::from_str(&text).map_err(|e| Error::Unmet(e.to_string()))?;
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap_or_default().to_string();
        all.insert(kind, definition);
    }
    Ok(all)
}

/// Rules in CEL with their messages, wherever they stand.
fn find_rules<'a>(value: &'a Value, found: &mut Vec<(&'a str, &'a str)>) {
    match value {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            let text = |rule: &'a Value, field: &str| rule[field].as_str().unwrap_or_default();
            found.extend(rules.into_iter().flatten().map(|r| (text(r, "rule"), text(r, "message"))));
            fields.values().for_each(|field| find_rules(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| find_rules(item, found)),
        _ => {}
    }
}

fn statuses(_: &mut Site) -> Result<()> {
    let has_status =
        |definition: &Value| !definition["spec"]["versions"][0]["subresources"]["status"].is_null();
    let without = definitions()?.into_iter().filter(|(_, d)| !has_status(d)).map(|(kind, _)| kind);
    let without: Vec<_> = without.collect();
    if without == ["IPBlock", "NodeReport"] {
        Ok(())
    } else {
        unmet(format!("without a status: {without:?}"))
    }
}

fn unchangeable(site: &mut Site) -> Result<()> {
    let mut answers = Answers::default();
    for (kind, name, first, second, expected) in [
        (
            "Partition",
            "fixed",
            "{policyID: 7, podCIDRs: [10.7.0.0/16]}",
            "{policyID: 8, podCIDRs: [10.7.0.0/16]}",
            "policyID is never changed",
        ),
        (
            "IPBlock",
            "10-7-0-0-26",
            "{cidr: 10.7.0.0/26, partition: web, node: node1}",
            "{cidr: 10.7.0.0/26, partition: web, node: node2}",
            "is never changed",
        ),
    ] {
        site.control.apply(&document(kind, name, first))?;
        let said = site.refusal(&document(kind, name, second))?;
        site.control.kubectl(&["delete", kind, name])?;
        if !said.contains(expected) {
            return unmet(format!("{kind}: {said}"));
        }
        answers.add(kind, &said);
    }
    answers.hold_all(|rule| rule.contains("oldSelf"))
}

/// One object of each kind by its short name: name, spec, and what `kubectl get` shows of it, but for its age.
const SHOWN: &[(&str, &str, &str, &str, [&str; 2])] = &[
    (
        "Partition",
        "part",
        "shown",
        "{policyID: 9, podCIDRs: [10.9.0.0/16, \"fd00:9::/48\"]}",
        [
            "ID ISOLATION RANGES IN FORCE NODES ACCEPTED",
            "9 Enforced [\"10.9.0.0/16\",\"fd00:9::/48\"] 1 2 True",
        ],
    ),
    (
        "NetworkGroup",
        "netgroup",
        "shown",
        "{cidrs: [172.30.9.0/24]}",
        ["CIDRS ACCEPTED", "[\"172.30.9.0/24\"] True"],
    ),
    ("BandwidthClass", "bwc", "shown", "{rate: 1G, burst: 128Ki}", ["RATE BURST ACCEPTED", "1G 128Ki True"]),
    ("BGPConfiguration", "bgpc", "default", "{asn: 65010}", ["ASN ACCEPTED", "65010 True"]),
    (
        "BGPPeer",
        "bgpp",
        "shown",
        "{node: elsewhere, peerAddress: 172.30.7.1, peerASN: 65000}",
        ["ADDRESS ASN NODE ACCEPTED", "172.30.7.1 65000 elsewhere True"],
    ),
    (
        "IPReservation",
        "ipr",
        "shown",
        "{pod: db-0, addresses: [10.9.0.7]}",
        ["POD ADDRESSES ACCEPTED", "db-0 [\"10.9.0.7\"] False"],
    ),
    (
        "IPBlock",
        "ipb",
        "10-9-0-64-26",
        "{cidr: 10.9.0.64/26, partition: shown, node: elsewhere}",
        ["CIDR PARTITION NODE", "10.9.0.64/26 shown elsewhere"],
    ),
    (
        "NodeReport",
        "nrep",
        "elsewhere",
        "{version: \"0.9\", generation: 3, held: 2, refused: [{object: NetworkGroup/x, generation: 1, message: overlaps}], \
         exhausted: [{partition: shown, pods: 1, message: full}]}",
        ["VERSION GENERATION HELD REFUSED EXHAUSTED", "0.9 3 2 NetworkGroup/x shown"],
    ),
];

fn shown(site: &mut Site) -> Result<()> {
    let objects: Vec<_> = SHOWN.iter().map(|(kind, _, name, spec, _)| document(kind, name, spec)).collect();
    site.control.apply(&objects.join("---\n"))?;
    for (kind, short, name, _, [head, row]) in SHOWN {
        let expected = [format!("NAME {head} AGE"), format!("{name} {row}")];
        until(&format!("`kubectl get {short}` shows {expected:?}"), SOON, || {
            let table = site.control.kubectl(&["get", short, name])?;
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let mut lines = table.lines().map(words);
            let (head, row) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            let row = row.rsplit_once(' ').map_or("", |(row, _age)| row);
            if [head.as_str(), row] == expected { Ok(Some(())) } else { unmet(table) }
        })?;
        let all = site.control.kubectl(&["get", "bulkhead", "-o", "name"])?;
        let named = format!("{}.bulkhead.dev/{name}", kind.to_lowercase());
        if !all.contains(&named) {
            return unmet(format!("`kubectl get bulkhead` names no {named}:\n{all}"));
        }
    }
    let file = site.control.write("shown.yaml", &objects.join("---\n"))?;
    site.control.kubectl(&["delete", "-f", &file]).map(drop)
}

/// Every object of our group in the guide.
fn user_guide(site: &mut Site) -> Result<()> {
    let guide = include_str!("../../../docs/user-guide.md");
    let blocks = guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let objects: Vec<_> = blocks.filter(|b| b.contains("apiVersion: bulkhead.dev/v1alpha1")).collect();
    if objects.len() < 3 {
        return unmet(format!("only {} blocks of objects in the guide", objects.len()));
    }
    for object in objects {
        site.control.apply(object)?;
        site.control.kubectl(&["delete", "-f", &site.control.applied()])?;
    }
    Ok(())
}
