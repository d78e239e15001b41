//! What can be wrong with one object on its own. What depends on other objects is `bulkhead_policy::admit`'s.
//!
//! Every message says what is wrong and what to write instead; every field is named as a user would find it.

use super::{
    BandwidthClassSpec, DEFAULT_PARTITION, LabelSelector, NetworkGroupSpec, PartitionSpec, Protocol,
    RulePeer, RulePort,
};
use ipnetwork::IpNetwork;

/// A field that cannot be put into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.ingress[0].ports[1].endPort`.
    pub field: String,
    pub message: String,
}

/// Everything that is wrong with a partition, in the order of its fields.
pub fn check_partition(name: &str, spec: &PartitionSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.name(name);
    if name == DEFAULT_PARTITION {
        errors.add(
            "metadata.name",
            "`default` is the partition of all namespaces that no Partition names; it is open, and its ranges come \
             from the node's configuration: choose another name"
                .into(),
        );
    }
    if spec.policy_id == 0 {
        errors.add(
            "spec.policyID",
            "0 is not a policyID: choose a number from 1 to 65535 that is not taken".into(),
        );
    }
    if let Some(selector) = &spec.namespace_selector {
        errors.selector("spec.namespaceSelector", selector);
    }
    if spec.pod_cidrs.is_empty() {
        errors.add("spec.podCIDRs", "is empty: a partition needs at least one range for its pods".into());
    }
    errors.cidrs("spec.podCIDRs", &spec.pod_cidrs);
    errors.cidrs("spec.fixedCIDRs", &spec.fixed_cidrs);
    for (i, fixed) in spec.fixed_cidrs.iter().enumerate() {
        let within = |range: &IpNetwork| {
            range.is_ipv4() == fixed.is_ipv4()
                && range.contains(fixed.network())
                && range.contains(fixed.broadcast())
        };
        if !spec.pod_cidrs.iter().any(within) {
            errors.add(
                format!("spec.fixedCIDRs[{i}]"),
                format!("{fixed} lies in none of spec.podCIDRs: it is a part of them that is kept for reservations"),
            );
        }
    }
    errors.cidrs("spec.serviceCIDRs", &spec.service_cidrs);
    for (i, _) in spec.service_cidrs.iter().enumerate().filter(|(_, range)| range.prefix() == 0) {
        let message =
            "is a default route, which `bgp.advertiseServices` would announce: name the services' own ranges";
        errors.add(format!("spec.serviceCIDRs[{i}]"), message.into());
    }
    for (i, rule) in spec.ingress.iter().enumerate() {
        errors.peers(&format!("spec.ingress[{i}].from"), &rule.from);
        errors.ports(&format!("spec.ingress[{i}].ports"), &rule.ports);
    }
    for (i, rule) in spec.egress.iter().enumerate() {
        errors.peers(&format!("spec.egress[{i}].to"), &rule.to);
        errors.ports(&format!("spec.egress[{i}].ports"), &rule.ports);
    }
    if spec.bandwidth.as_ref().and_then(|b| b.maximum).is_some_and(|m| m.0 == 0) {
        errors.add(
            "spec.bandwidth.maximum",
            "0 lets nothing pass: write a rate, or leave it out for no limit".into(),
        );
    }
    if let Some(masquerade) = &spec.masquerade {
        errors.cidrs("spec.masquerade.nonMasqueradeCIDRs", &masquerade.non_masquerade_cidrs);
    }
    for (i, text) in spec.bgp.iter().flat_map(|b| &b.communities).enumerate() {
        if parse_community(text).is_none() && parse_large_community(text).is_none() {
            let message =
                format!("`{text}` is not a community: write 65000:100, or a large one as 65000:1:2");
            errors.add(format!("spec.bgp.communities[{i}]"), message);
        }
    }
    errors.0
}

/// Everything that is wrong with a network group.
pub fn check_network_group(name: &str, spec: &NetworkGroupSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.name(name);
    errors.cidrs("spec.cidrs", &spec.cidrs);
    errors.0
}

/// Everything that is wrong with a bandwidth class.
pub fn check_bandwidth_class(name: &str, spec: &BandwidthClassSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.name(name);
    if spec.rate.0 == 0 {
        errors.add("spec.rate", "0 lets nothing pass: write bits a second, as `500M`".into());
    }
    if spec.burst.is_some_and(|b| b.0 == 0) {
        errors.add("spec.burst", "0 lets nothing pass: write bytes, as `128Ki`, or leave it out".into());
    }
    errors.0
}

/// An RFC 1997 community as people write it: `65000:100`.
pub fn parse_community(text: &str) -> Option<(u16, u16)> {
    let number = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse().ok()).flatten();
    let (high, low) = text.split_once(':')?;
    Some((number(high)?, number(low)?))
}

/// An RFC 8092 community: `65000:1:2`.
pub fn parse_large_community(text: &str) -> Option<[u32; 3]> {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten();
    text.split(':').map(number).collect::<Option<Vec<u32>>>()?.try_into().ok()
}

#[derive(Default)]
pub(super) struct Errors(pub Vec<FieldError>);

impl Errors {
    pub fn add(&mut self, field: impl Into<String>, message: String) {
        self.0.push(FieldError { field: field.into(), message });
    }

    /// RFC 1123 subdomain, as Kubernetes wants it.
    pub fn name(&mut self, name: &str) {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let label = |l: &str| {
            l.bytes().all(|b| inner(b) || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
                && !l.is_empty()
        };
        if name.len() > 253 || !name.split('.').all(label) {
            let message =
                format!("`{name}` is not a name: use lower-case letters, digits, `-` and `.`, at most 253");
            self.add("metadata.name", message);
        }
    }

    pub fn cidr(&mut self, field: impl Into<String>, cidr: IpNetwork) {
        if let IpNetwork::V6(v6) = cidr
            && let Some(v4) = v6.ip().to_ipv4_mapped()
        {
            let message = match v6.prefix().checked_sub(96) {
                Some(prefix) => format!("{cidr} is an IPv4 network in IPv6 clothes: write {v4}/{prefix}"),
                None => {
                    format!("{cidr} is no IPv6 network: its address is IPv4's {v4}; write one or the other")
                }
            };
            self.add(field, message);
        } else if cidr.ip() != cidr.network() {
            let message = format!(
                "{cidr} has bits set beyond its prefix: the network is {}/{}",
                cidr.network(),
                cidr.prefix()
            );
            self.add(field, message);
        }
    }

    pub fn cidrs(&mut self, field: &str, cidrs: &[IpNetwork]) {
        for (i, cidr) in cidrs.iter().enumerate() {
            self.cidr(format!("{field}[{i}]"), *cidr);
        }
    }

    fn peers(&mut self, field: &str, peers: &[RulePeer]) {
        for (i, peer) in peers.iter().enumerate() {
            let field = format!("{field}[{i}]");
            let set = fields_set(peer);
            match set.len() {
                0 => self.add(&field, format!("names no peer: set one of {}", PEER_FIELDS.join(", "))),
                1 => {}
                _ => self.add(
                    &field,
                    format!("sets {}: a peer has one; write one peer for each", set.join(" and ")),
                ),
            }
            let Some(block) = &peer.ip_block else { continue };
            self.cidr(format!("{field}.ipBlock.cidr"), block.cidr);
            for (j, except) in block.except.iter().enumerate() {
                let field = format!("{field}.ipBlock.except[{j}]");
                self.cidr(&field, *except);
                if !holds(block.cidr, *except) || except.prefix() == block.cidr.prefix() {
                    self.add(
                        field,
                        format!("{except} is not a part of {}: name a smaller range inside it", block.cidr),
                    );
                }
            }
        }
    }

    fn ports(&mut self, field: &str, ports: &[RulePort]) {
        for (i, port) in ports.iter().enumerate() {
            let field = format!("{field}[{i}]");
            match (port.port, port.end_port) {
                (None, Some(end)) => {
                    let message =
                        format!("endPort {end} has no port: write the range's first port in `port`");
                    self.add(format!("{field}.endPort"), message);
                }
                (Some(first), Some(end)) if end < first => {
                    let message = format!("the range is upside down: endPort {end} is below port {first}");
                    self.add(format!("{field}.endPort"), message);
                }
                _ => {}
            }
            for (name, value) in [("port", port.port), ("endPort", port.end_port)] {
                if let Some(value) = value.filter(|v| port.protocol == Protocol::ICMP && *v > 255) {
                    let message = format!("{value} is not an ICMP type: types go from 0 to 255");
                    self.add(format!("{field}.{name}"), message);
                }
            }
        }
    }

    pub fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (i, requirement) in selector.match_expressions.iter().enumerate() {
            let field = format!("{field}.matchExpressions[{i}]");
            if requirement.key.is_empty() {
                self.add(format!("{field}.key"), "is empty: name a label".into());
            }
            let values = !requirement.values.is_empty();
            let operator = &*requirement.operator;
            match operator {
                "In" | "NotIn" if !values => {
                    self.add(format!("{field}.values"), format!("{operator} needs at least one value"));
                }
                "Exists" | "DoesNotExist" if values => {
                    self.add(format!("{field}.values"), format!("{operator} takes no values: remove them"));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => {
                    let message =
                        format!("`{operator}` is no operator: use In, NotIn, Exists or DoesNotExist");
                    self.add(format!("{field}.operator"), message);
                }
            }
        }
    }
}

pub(super) const PEER_FIELDS: [&str; 6] =
    ["partition", "allPartitions", "networkGroup", "ipBlock", "nodes", "controlPlane"];

fn fields_set(peer: &RulePeer) -> Vec<&'static str> {
    let RulePeer { partition, all_partitions, network_group, ip_block, nodes, control_plane } = peer;
    let set = [
        partition.is_some(),
        all_partitions.is_some(),
        network_group.is_some(),
        ip_block.is_some(),
        nodes.is_some(),
        control_plane.is_some(),
    ];
    PEER_FIELDS.into_iter().zip(set).filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

pub(super) fn holds(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_community_is_two_sixteen_bit_numbers() {
        assert_eq!(parse_community("65000:100"), Some((65000, 100)));
        for text in ["", "65000", "65000:", "65536:1", "1:2:3", "+1:2", "a:b", " 1:2"] {
            assert_eq!(parse_community(text), None, "{text}");
        }
        assert_eq!(parse_large_community("4200000000:1:2"), Some([4_200_000_000, 1, 2]));
        for text in ["", "65000:1", "65000:1:", "4294967296:1:2", "1:2:3:4", "+1:2:3", "1:a:2"] {
            assert_eq!(parse_large_community(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_dns_names() {
        let bad = |name: &str| !check_network_group(name, &NetworkGroupSpec::default()).is_empty();
        for name in ["", "Web", "web_1", "-web", "web-", "a..b", "web payments"] {
            assert!(bad(name), "{name}");
        }
        for name in ["web", "web-1", "a.b", "0"] {
            assert!(!bad(name), "{name}");
        }
    }

    #[test]
    fn a_default_route_is_no_service_range() {
        let fields = |range: &str| -> Vec<String> {
            let spec = PartitionSpec {
                policy_id: 1,
                pod_cidrs: vec!["10.64.0.0/16".parse().unwrap()],
                service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), range.parse().unwrap()],
                ..PartitionSpec::default()
            };
            check_partition("web", &spec).into_iter().map(|e| e.field).collect()
        };
        assert_eq!(fields("0.0.0.0/0"), ["spec.serviceCIDRs[1]"]);
        assert_eq!(fields("::/0"), ["spec.serviceCIDRs[1]"]);
        assert_eq!(fields("fd00:96::/112"), [""; 0]);
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        let spec =
            BandwidthClassSpec { rate: super::super::Quantity(0), burst: Some(super::super::Quantity(0)) };
        let fields: Vec<_> = check_bandwidth_class("low", &spec).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["spec.rate", "spec.burst"]);
    }
}
