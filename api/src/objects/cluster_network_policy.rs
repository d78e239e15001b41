//! `ClusterNetworkPolicy` of policy.networking.k8s.io/v1alpha2: the administrator's policy, before and behind the tenants'.
//!
//! The fields are upstream's. One that is not here is refused by its name when the object is read, and one that is here and
//! not supported (`domainNames`) when it is checked: none is passed over.

use super::{
    FieldError, LabelSelector,
    network_policy::{network, number_of_port, port_name},
    validate::Errors,
};
use serde::{Deserialize, Serialize};

/// The subject is a set of pods; the first rule that matches in the order of `priority` (0 first) speaks for its tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterNetworkPolicySpec {
    pub tier: ClusterPolicyTier,
    /// 0 to 1000; the lower goes first, equals by name.
    pub priority: i32,
    pub subject: ClusterPolicySubject,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<ClusterIngressRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<ClusterEgressRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterPolicyTier {
    Admin,
    Baseline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterPolicyAction {
    Accept,
    Deny,
    /// To the next tier.
    Pass,
}

/// Exactly one field is set. Host-network pods are never meant.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPolicySubject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespacedPods {
    pub namespace_selector: LabelSelector,
    pub pod_selector: LabelSelector,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterIngressRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub action: ClusterPolicyAction,
    pub from: Vec<ClusterPolicyPeer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterPolicyProtocol>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterEgressRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub action: ClusterPolicyAction,
    pub to: Vec<ClusterPolicyPeer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protocols: Vec<ClusterPolicyProtocol>,
}

/// Exactly one field is set; `nodes` and `networks` for egress alone.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPolicyPeer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPods>,
    /// By the nodes' labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    /// CIDRs; pods in them are meant too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<String>>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain_names: Option<Vec<String>>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPolicyProtocol {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ClusterPolicyPorts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<ClusterPolicyPorts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ClusterPolicyPorts>,
    /// A container port by name, of whatever protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_named_port: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPolicyPorts {
    /// None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<ClusterPolicyPort>,
}

/// Exactly one field is set.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPolicyPort {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<ClusterPolicyPortRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterPolicyPortRange {
    pub start: i32,
    pub end: i32,
}

/// Upstream's limit for rules of a direction, peers of a rule, and so on.
const MOST: usize = 25;

/// Everything that is wrong with a ClusterNetworkPolicy, in the order of its fields.
pub fn check_cluster_network_policy(name: &str, spec: &ClusterNetworkPolicySpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.name(name);
    if !(0..=1000).contains(&spec.priority) {
        errors.add("spec.priority", format!("{} is no priority: use 0 to 1000", spec.priority));
    }
    let ClusterPolicySubject { namespaces, pods } = &spec.subject;
    one_of(&mut errors, "spec.subject", &[("namespaces", namespaces.is_some()), ("pods", pods.is_some())]);
    selectors(&mut errors, "spec.subject", namespaces.as_ref(), pods.as_ref());
    for (direction, rules) in [("ingress", spec.ingress.len()), ("egress", spec.egress.len())] {
        at_most(&mut errors, format!("spec.{direction}"), rules);
    }
    for (i, rule) in spec.ingress.iter().enumerate() {
        peers(&mut errors, &format!("spec.ingress[{i}].from"), &rule.from, true);
        protocols(&mut errors, &format!("spec.ingress[{i}].protocols"), &rule.protocols);
    }
    for (i, rule) in spec.egress.iter().enumerate() {
        peers(&mut errors, &format!("spec.egress[{i}].to"), &rule.to, false);
        protocols(&mut errors, &format!("spec.egress[{i}].protocols"), &rule.protocols);
    }
    errors.0
}

fn at_most(errors: &mut Errors, field: String, count: usize) {
    if count > MOST {
        errors.add(field, format!("{count} are too many: at most {MOST}, write a second object"));
    }
}

fn one_of(errors: &mut Errors, field: &str, fields: &[(&str, bool)]) {
    if fields.iter().filter(|(_, set)| *set).count() != 1 {
        let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        errors.add(field, format!("set exactly one of {}", names.join(", ")));
    }
}

fn selectors(
    errors: &mut Errors,
    field: &str,
    namespaces: Option<&LabelSelector>,
    pods: Option<&NamespacedPods>,
) {
    if let Some(selector) = namespaces {
        errors.selector(&format!("{field}.namespaces"), selector);
    }
    if let Some(NamespacedPods { namespace_selector, pod_selector }) = pods {
        errors.selector(&format!("{field}.pods.namespaceSelector"), namespace_selector);
        errors.selector(&format!("{field}.pods.podSelector"), pod_selector);
    }
}

fn peers(errors: &mut Errors, field: &str, peers: &[ClusterPolicyPeer], ingress: bool) {
    at_most(errors, field.into(), peers.len());
    if peers.is_empty() {
        errors.add(field, "names no peer: write one at least, `namespaces: {}` for all pods".into());
    }
    for (i, peer) in peers.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let ClusterPolicyPeer { namespaces, pods, nodes, networks, domain_names } = peer;
        if domain_names.is_some() {
            let message = "names in place of addresses are not supported: write `networks`";
            errors.add(format!("{field}.domainNames"), message.into());
            continue;
        }
        let mut fields = vec![("namespaces", namespaces.is_some()), ("pods", pods.is_some())];
        let outside = [("nodes", nodes.is_some()), ("networks", networks.is_some())];
        if ingress {
            for (name, _) in outside.iter().filter(|(_, set)| *set) {
                errors.add(format!("{field}.{name}"), "is a peer of egress rules alone".into());
            }
        }
        fields.extend(outside);
        one_of(errors, &field, &fields);
        selectors(errors, &field, namespaces.as_ref(), pods.as_ref());
        if let Some(nodes) = nodes {
            errors.selector(&format!("{field}.nodes"), nodes);
        }
        at_most(errors, format!("{field}.networks"), networks.as_ref().map_or(0, Vec::len));
        for (j, text) in networks.iter().flatten().enumerate() {
            network(errors, format!("{field}.networks[{j}]"), text);
        }
    }
}

fn protocols(errors: &mut Errors, field: &str, protocols: &[ClusterPolicyProtocol]) {
    at_most(errors, field.into(), protocols.len());
    for (i, protocol) in protocols.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let ClusterPolicyProtocol { tcp, udp, sctp, destination_named_port: name } = protocol;
        let fields = [
            ("tcp", tcp.is_some()),
            ("udp", udp.is_some()),
            ("sctp", sctp.is_some()),
            ("destinationNamedPort", name.is_some()),
        ];
        one_of(errors, &field, &fields);
        if let Some(name) = name {
            port_name(errors, format!("{field}.destinationNamedPort"), name);
        }
        for (protocol, ports) in [("tcp", tcp), ("udp", udp), ("sctp", sctp)] {
            let Some(port) = ports.as_ref().and_then(|p| p.destination_port.as_ref()) else { continue };
            let field = format!("{field}.{protocol}.destinationPort");
            let ClusterPolicyPort { number, range } = port;
            one_of(errors, &field, &[("number", number.is_some()), ("range", range.is_some())]);
            if let Some(number) = number {
                number_of_port(errors, format!("{field}.number"), *number);
            }
            let Some(ClusterPolicyPortRange { start, end }) = range else { continue };
            number_of_port(errors, format!("{field}.range.start"), *start);
            number_of_port(errors, format!("{field}.range.end"), *end);
            if end < start {
                let message = format!("the range is upside down: end {end} is below start {start}");
                errors.add(format!("{field}.range.end"), message);
            }
        }
    }
}
