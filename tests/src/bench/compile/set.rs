//! The set that is promised: a large cluster, as a source reads it.
//!
//! A partition has a namespace, twenty rules, ten NetworkPolicies and thirty pods; every pod is picked by some policy. The
//! node's own pods are spread over the partitions as a scheduler would.

use bulkhead_daemon::source::{self, Snapshot};
use std::{fmt::Write, net::Ipv4Addr};

pub const PARTITIONS: usize = 1000;
const PODS_EACH: usize = 30;
const POLICIES_EACH: usize = 10;
const GROUPS: usize = 50;
const TEAMS: usize = 40;
const NODES: usize = 300;
const LOCAL: usize = 110;

const API: &str = "bulkhead.dev/v1alpha1";

/// Name and text of every file.
pub fn files() -> Vec<(String, String)> {
    let mut files = vec![("groups.yaml".into(), groups()), ("nodes.yaml".into(), nodes())];
    files.push(("cluster-policies.yaml".into(), cluster_policies()));
    for n in 0..PARTITIONS {
        files.push((format!("partition-{n:04}.yaml"), partition(n, 0)));
        files.push((format!("namespace-{n:04}.yaml"), namespace(n)));
    }
    files
}

/// As a source would hand it over.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, text) in files() {
        let objects = source::parse(&name, &text).unwrap_or_else(|e| panic!("{e}"));
        objects.into_iter().for_each(|o| snapshot.insert(o));
    }
    snapshot
}

/// The pods of the node that is measured: partition, and number within it.
pub fn local_pods() -> impl Iterator<Item = (usize, usize)> {
    (0..LOCAL).map(|n| {
        let pod = n * 271 % (PARTITIONS * PODS_EACH);
        (pod * 7 % PARTITIONS, pod / PARTITIONS % PODS_EACH)
    })
}

pub fn pod_name(partition: usize, pod: usize) -> (String, String) {
    (format!("ns-{partition:04}"), format!("app-{pod}"))
}

/// The range of a partition is a /24: pods of other nodes have its upper half.
pub fn range(n: usize) -> Ipv4Addr {
    let [a, b] = [n / 256, n % 256];
    Ipv4Addr::new(10, 128 + a as u8, b as u8, 0)
}

fn address(n: usize, pod: usize) -> Ipv4Addr {
    let [a, b, c, _] = range(n).octets();
    let own = local_pods().any(|local| local == (n, pod));
    Ipv4Addr::new(a, b, c, if own { pod as u8 } else { 128 + pod as u8 })
}

/// `edit`: tells versions apart, in one port of one rule.
pub fn partition(n: usize, edit: usize) -> String {
    let mut rules = [String::new(), String::new()];
    for (dir, text) in rules.iter_mut().enumerate() {
        let peers = if dir == 0 { "from" } else { "to" };
        for rule in 0..10 {
            let other = (n * 31 + rule * 97 + dir * 13) % PARTITIONS;
            let peer = match rule {
                0..=3 => format!("{{partition: p-{other:04}}}"),
                4 | 5 => format!("{{networkGroup: group-{}}}", other % GROUPS),
                6 => format!(
                    "{{ipBlock: {{cidr: 172.{}.0.0/16, except: [172.{}.{}.0/24]}}}}",
                    other % 256,
                    other % 256,
                    n % 256
                ),
                7 => format!("{{ipBlock: {{cidr: 192.168.{}.0/24}}}}", other % 256),
                8 => "{nodes: {}}".into(),
                _ => format!("{{partition: p-{other:04}}}, {{networkGroup: group-{}}}", n % GROUPS),
            };
            let first = 1000 + (n * 7 + rule * 111) % 4000;
            let (last, action) = (first + rule * 10, if rule == 9 { "Deny" } else { "Allow" });
            let edited = if rule == 3 && edit > 0 {
                format!(", {{port: {}}}", 20000 + edit % 40000)
            } else {
                String::new()
            };
            let _ = write!(
                text,
                "\n  - {{name: rule-{rule}, action: {action}, {peers}: [{peer}], ports: [{{port: {first}, endPort: {last}}}, {{protocol: \
                 UDP, port: {first}}}{edited}]}}"
            );
        }
    }
    let [ingress, egress] = rules;
    format!(
        "apiVersion: {API}\nkind: Partition\nmetadata: {{name: p-{n:04}}}\nspec:\n  policyID: {}\n  namespaces: [ns-{n:04}]\n  \
         podCIDRs: [{}/24]\n  ingress:{ingress}\n  egress:{egress}\n",
        n + 1,
        range(n)
    )
}

fn namespace(n: usize) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{n:04}, labels: {{team: team-{}, tier: t{}}}}}\n",
        n % TEAMS,
        n % 3
    );
    for policy in 0..POLICIES_EACH {
        text.push_str("---\n");
        text.push_str(&network_policy(n, policy));
    }
    for k in 0..PODS_EACH {
        text.push_str("---\n");
        text.push_str(&pod(n, k));
    }
    text
}

fn network_policy(n: usize, policy: usize) -> String {
    let other = (n * 17 + policy * 29) % PARTITIONS;
    let first = 3000 + policy * 10;
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: policy-{policy}, namespace: ns-{n:04}}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: app-{policy}}}}}\n  policyTypes: [Ingress, Egress]\n  ingress:\n  \
         - {{from: [{{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [app-{}, app-{}]}}]}}}}], \
         ports: [{{port: {first}, endPort: {}}}, {{port: http}}]}}\n  \
         - {{from: [{{namespaceSelector: {{matchLabels: {{team: team-{}}}}}, podSelector: {{matchLabels: {{role: front}}}}}}], \
         ports: [{{port: 443}}]}}\n  egress:\n  \
         - {{to: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.{}.0.0/16]}}}}], ports: [{{port: {first}}}]}}\n  \
         - {{to: [{{ipBlock: {{cidr: 203.0.{}.0/24}}}}]}}\n",
        (policy + 1) % 10,
        (policy + 3) % 10,
        first + 5,
        other % TEAMS,
        other % 64,
        other % 256
    )
}

/// Its label `app` decides which policies know it.
fn pod(n: usize, k: usize) -> String {
    let ((namespace, name), app) = (pod_name(n, k), k % 10);
    let role = if k.is_multiple_of(5) { "front" } else { "back" };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: app-{app}, role: {role}, \
         pod-template-hash: h{}}}}}\nspec: {{nodeName: node-{}, containers: [{{name: main, image: i, ports: [{{name: http, containerPort: \
         8080}}]}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: {}}}]}}\n",
        n * 10 + app,
        2 + (n * PODS_EACH + k) % (NODES - 2),
        address(n, k)
    )
}

/// The `k`-th pod that comes to a namespace of the set: labelled now like those that are there, now like none of them.
pub fn newcomer(n: usize, k: usize) -> String {
    let (namespace, role) = (format!("ns-{n:04}"), if k.is_multiple_of(2) { "front" } else { "back" });
    let [a, b, c, _] = range(n).octets();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: new-{k}, namespace: {namespace}, labels: {{app: app-{}, role: {role}}}}}\nspec: \
         {{nodeName: node-2, containers: [{{name: main, image: i}}]}}\nstatus: {{phase: Running, podIPs: [{{ip: {a}.{b}.{c}.{}}}]}}\n",
        k % 10,
        200 + k % 50
    )
}

fn groups() -> String {
    let group = |g: usize| {
        format!(
            "apiVersion: {API}\nkind: NetworkGroup\nmetadata: {{name: group-{g}}}\nspec: {{cidrs: [100.{g}.0.0/16, 198.18.{g}.0/24]}}\n"
        )
    };
    (0..GROUPS).map(group).collect::<Vec<_>>().join("---\n")
}

fn nodes() -> String {
    let node = |n: usize| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}}}\nstatus: {{addresses: [{{type: InternalIP, address: 172.31.{}.{}}}]}}\n",
            n / 250,
            1 + n % 250
        )
    };
    (2..NODES).map(node).collect::<Vec<_>>().join("---\n")
}

fn cluster_policies() -> String {
    let policy = |n: usize| {
        let tier = if n.is_multiple_of(2) { "Admin" } else { "Baseline" };
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: cnp-{n}}}\nspec: {{tier: {tier}, \
             priority: {n}, subject: {{namespaces: {{matchLabels: {{tier: t{}}}}}}}, ingress: [{{name: monitoring, action: Accept, from: \
             [{{pods: {{namespaceSelector: {{matchLabels: {{team: team-{n}}}}}, podSelector: {{matchLabels: {{role: front}}}}}}}}], protocols: \
             [{{tcp: {{destinationPort: {{number: {}}}}}}}]}}], egress: [{{name: meta, action: Deny, to: [{{networks: \
             [169.254.{n}.0/24]}}]}}]}}\n",
            n % 3,
            9100 + n
        )
    };
    (0..10).map(policy).collect::<Vec<_>>().join("---\n")
}
