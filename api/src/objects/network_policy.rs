//! Kubernetes' NetworkPolicy, and what can be wrong with one.
//!
//! The fields are upstream's, and it is read and written by upstream's types. These here hold the same in little room: a
//! cluster has tens of thousands.

use super::{
    FieldError, IntOrString, IpNetwork, LabelSelector, upstream,
    validate::{Errors, holds},
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "upstream::NetworkPolicySpec", into = "upstream::NetworkPolicySpec")]
pub struct NetworkPolicySpec {
    /// An empty one, or none, picks all pods of the namespace.
    pub pod_selector: LabelSelector,
    /// Empty: what upstream takes for it.
    pub policy_types: Box<[Box<str>]>,
    pub ingress: Box<[NetworkPolicyRule]>,
    pub egress: Box<[NetworkPolicyRule]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NetworkPolicyRule {
    /// `from`, or `to`. Empty: any.
    pub peers: Box<[NetworkPolicyPeer]>,
    /// Empty: all.
    pub ports: Box<[NetworkPolicyPort]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NetworkPolicyPeer {
    pub ip_block: Option<Box<PolicyIpBlock>>,
    pub namespace_selector: Option<Box<LabelSelector>>,
    pub pod_selector: Option<Box<LabelSelector>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PolicyIpBlock {
    pub cidr: Box<str>,
    pub except: Box<[Box<str>]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NetworkPolicyPort {
    pub protocol: Option<Box<str>>,
    pub port: Option<NumberOrName>,
    pub end_port: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NumberOrName {
    Number(i32),
    Name(Box<str>),
}

impl From<upstream::NetworkPolicySpec> for NetworkPolicySpec {
    fn from(written: upstream::NetworkPolicySpec) -> Self {
        let upstream::NetworkPolicySpec { pod_selector, policy_types, ingress, egress } = written;
        let ingress = ingress.unwrap_or_default().into_iter().map(|r| rule(r.from, r.ports));
        let egress = egress.unwrap_or_default().into_iter().map(|r| rule(r.to, r.ports));
        Self {
            pod_selector: pod_selector.unwrap_or_default().into(),
            policy_types: boxed(policy_types),
            ingress: ingress.collect(),
            egress: egress.collect(),
        }
    }
}

fn boxed<A, B: From<A>>(list: Option<Vec<A>>) -> Box<[B]> {
    list.unwrap_or_default().into_iter().map(B::from).collect()
}

/// None where there is nothing to write.
fn listed<A, B: From<A>>(list: Box<[A]>) -> Option<Vec<B>> {
    (!list.is_empty()).then(|| list.into_iter().map(B::from).collect())
}

fn rule(
    peers: Option<Vec<upstream::NetworkPolicyPeer>>,
    ports: Option<Vec<upstream::NetworkPolicyPort>>,
) -> NetworkPolicyRule {
    NetworkPolicyRule { peers: boxed(peers), ports: boxed(ports) }
}

impl From<upstream::NetworkPolicyPeer> for NetworkPolicyPeer {
    fn from(written: upstream::NetworkPolicyPeer) -> Self {
        let upstream::NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = written;
        Self {
            ip_block: ip_block
                .map(|b| Box::new(PolicyIpBlock { cidr: b.cidr.into(), except: boxed(b.except) })),
            namespace_selector: namespace_selector.map(|s| Box::new(s.into())),
            pod_selector: pod_selector.map(|s| Box::new(s.into())),
        }
    }
}

impl From<upstream::NetworkPolicyPort> for NetworkPolicyPort {
    fn from(written: upstream::NetworkPolicyPort) -> Self {
        let upstream::NetworkPolicyPort { protocol, port, end_port } = written;
        let port = port.map(|port| match port {
            IntOrString::Int(number) => NumberOrName::Number(number),
            IntOrString::String(name) => NumberOrName::Name(name.into()),
        });
        Self { protocol: protocol.map(Into::into), port, end_port }
    }
}

impl From<NetworkPolicySpec> for upstream::NetworkPolicySpec {
    fn from(spec: NetworkPolicySpec) -> Self {
        let NetworkPolicySpec { pod_selector, policy_types, ingress, egress } = spec;
        Self {
            pod_selector: Some(pod_selector.into()),
            policy_types: listed(policy_types),
            ingress: listed(ingress),
            egress: listed(egress),
        }
    }
}

impl From<NetworkPolicyRule> for upstream::NetworkPolicyIngressRule {
    fn from(NetworkPolicyRule { peers, ports }: NetworkPolicyRule) -> Self {
        Self { from: listed(peers), ports: listed(ports) }
    }
}

impl From<NetworkPolicyRule> for upstream::NetworkPolicyEgressRule {
    fn from(NetworkPolicyRule { peers, ports }: NetworkPolicyRule) -> Self {
        Self { to: listed(peers), ports: listed(ports) }
    }
}

impl From<NetworkPolicyPeer> for upstream::NetworkPolicyPeer {
    fn from(peer: NetworkPolicyPeer) -> Self {
        let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
        Self {
            ip_block: ip_block.map(|b| upstream::IPBlock { cidr: b.cidr.into(), except: listed(b.except) }),
            namespace_selector: namespace_selector.map(|s| (*s).into()),
            pod_selector: pod_selector.map(|s| (*s).into()),
        }
    }
}

impl From<NetworkPolicyPort> for upstream::NetworkPolicyPort {
    fn from(NetworkPolicyPort { protocol, port, end_port }: NetworkPolicyPort) -> Self {
        let port = port.map(|port| match port {
            NumberOrName::Number(number) => IntOrString::Int(number),
            NumberOrName::Name(name) => IntOrString::String(name.into()),
        });
        Self { protocol: protocol.map(Into::into), port, end_port }
    }
}

/// Everything that is wrong with a NetworkPolicy, in the order of its fields.
pub fn check_network_policy(spec: &NetworkPolicySpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.selector("spec.podSelector", &spec.pod_selector);
    for (i, kind) in spec.policy_types.iter().enumerate() {
        if !["Ingress", "Egress"].contains(&&**kind) {
            let message = format!("`{kind}` is no policy type: use Ingress, Egress or both");
            errors.add(format!("spec.policyTypes[{i}]"), message);
        }
    }
    for (i, rule) in spec.ingress.iter().enumerate() {
        peers(&mut errors, &format!("spec.ingress[{i}].from"), &rule.peers);
        ports(&mut errors, &format!("spec.ingress[{i}].ports"), &rule.ports);
    }
    for (i, rule) in spec.egress.iter().enumerate() {
        peers(&mut errors, &format!("spec.egress[{i}].to"), &rule.peers);
        ports(&mut errors, &format!("spec.egress[{i}].ports"), &rule.ports);
    }
    errors.0
}

fn peers(errors: &mut Errors, field: &str, peers: &[NetworkPolicyPeer]) {
    for (i, peer) in peers.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
        match (ip_block, namespace_selector.is_some() || pod_selector.is_some()) {
            (None, false) => {
                errors.add(&field, "names no peer: set ipBlock, podSelector or namespaceSelector".into());
            }
            (Some(_), true) => {
                errors.add(&field, "sets ipBlock and a selector: write one peer for each".into());
            }
            _ => {}
        }
        if let Some(block) = ip_block {
            ip_block_errors(errors, &format!("{field}.ipBlock"), block);
        }
        for (name, selector) in [("namespaceSelector", namespace_selector), ("podSelector", pod_selector)] {
            if let Some(selector) = selector {
                errors.selector(&format!("{field}.{name}"), selector);
            }
        }
    }
}

fn ip_block_errors(errors: &mut Errors, field: &str, block: &PolicyIpBlock) {
    let Some(cidr) = network(errors, format!("{field}.cidr"), &block.cidr) else { return };
    for (i, text) in block.except.iter().enumerate() {
        let field = format!("{field}.except[{i}]");
        if let Some(except) = network(errors, field.clone(), text)
            && (cidr.is_ipv4() != except.is_ipv4() || !holds(cidr, except) || cidr == except)
        {
            errors.add(field, format!("{except} is not a part of {cidr}: only a part can be excepted"));
        }
    }
}

pub(super) fn network(errors: &mut Errors, field: String, text: &str) -> Option<IpNetwork> {
    // A bare address is no CIDR to Kubernetes. `10.1.2.3/8` is one, of 10.0.0.0/8: refused, it would leave open what its author
    // has closed.
    let written = text.parse::<IpNetwork>().ok().filter(|_| text.contains('/'));
    match written.and_then(|n| IpNetwork::new(n.network(), n.prefix()).ok()) {
        Some(network) => {
            errors.cidr(field, network);
            Some(network)
        }
        None => {
            errors.add(field, format!("`{text}` is not a CIDR: write an address and a prefix length"));
            None
        }
    }
}

fn ports(errors: &mut Errors, field: &str, ports: &[NetworkPolicyPort]) {
    for (i, NetworkPolicyPort { port, end_port, protocol }) in ports.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if let Some(protocol) = protocol.as_ref().filter(|p| !["TCP", "UDP", "SCTP"].contains(&&***p)) {
            let message = format!("`{protocol}` is no protocol here: use TCP, UDP or SCTP");
            errors.add(format!("{field}.protocol"), message);
        }
        match port {
            Some(NumberOrName::Number(number)) => number_of_port(errors, format!("{field}.port"), *number),
            Some(NumberOrName::Name(name)) => port_name(errors, format!("{field}.port"), name),
            None => {}
        }
        let Some(end) = *end_port else { continue };
        let field = format!("{field}.endPort");
        match port {
            Some(NumberOrName::Number(first)) if end < *first => {
                errors.add(field, format!("the range is upside down: endPort {end} is below port {first}"));
            }
            Some(NumberOrName::Number(_)) => number_of_port(errors, field, end),
            Some(NumberOrName::Name(name)) => {
                errors.add(
                    field,
                    format!("a range has no name: write numbers, or leave out endPort with `{name}`"),
                );
            }
            None => {
                errors
                    .add(field, format!("endPort {end} has no port: write the range's first port in `port`"));
            }
        }
    }
}

pub(super) fn number_of_port(errors: &mut Errors, field: String, number: i32) {
    if !(1..=65535).contains(&number) {
        errors.add(field, format!("{number} is not a port: ports go from 1 to 65535"));
    }
}

/// RFC 6335 section 5.1, in lower case, as Kubernetes wants it.
pub(super) fn port_name(errors: &mut Errors, field: String, name: &str) {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let dashes = name.starts_with('-') || name.ends_with('-') || name.contains("--");
    let letter = name.bytes().any(|b| b.is_ascii_lowercase());
    if name.len() > 15 || !name.bytes().all(allowed) || dashes || !letter {
        let message = format!(
            "`{name}` is not a port name: use lower-case letters, digits and single `-`, at most 15, one letter at least"
        );
        errors.add(field, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a daemon has remembered is read by the next one, of whatever version.
    #[test]
    fn a_policy_is_written_as_upstream_writes_it() {
        let text = r#"{"egress":[{"ports":[{"endPort":9,"port":1,"protocol":"UDP"}],"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}]}],"ingress":[{"from":[{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"db"}}}],"ports":[{"port":"http"}]},{}],"podSelector":{"matchExpressions":[{"key":"a","operator":"Exists"}]},"policyTypes":["Ingress","Egress"]}"#;
        let ours: NetworkPolicySpec = serde_json::from_str(text).unwrap();
        let theirs: upstream::NetworkPolicySpec = serde_json::from_str(text).unwrap();
        assert_eq!(upstream::NetworkPolicySpec::from(ours.clone()), theirs);
        assert_eq!(serde_json::to_value(&ours).unwrap(), serde_json::to_value(&theirs).unwrap());
        assert!(check_network_policy(&ours).is_empty());
    }

    #[test]
    fn a_block_with_bits_beyond_its_prefix_is_a_block() {
        let faults = |cidr: &str| {
            let peer = serde_json::json!({"ipBlock": {"cidr": cidr}});
            let text = serde_json::json!({"podSelector": {}, "ingress": [{"from": [peer]}]}).to_string();
            check_network_policy(&serde_json::from_str(&text).unwrap()).len()
        };
        assert_eq!(["10.1.2.3/8", "fd00::7/64", "10.1.2.3", "010.0.0.0/8"].map(faults), [0, 0, 1, 1]);
    }
}
