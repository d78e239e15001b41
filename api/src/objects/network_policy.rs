//! Kubernetes' NetworkPolicy: what can be wrong with one. The types are upstream's.

use super::{
    FieldError, IPBlock, IntOrString, IpNetwork, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    validate::{Errors, holds},
};

/// Everything that is wrong with a NetworkPolicy, in the order of its fields.
pub fn check_network_policy(spec: &NetworkPolicySpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if let Some(selector) = &spec.pod_selector {
        errors.selector("spec.podSelector", selector);
    }
    for (i, kind) in spec.policy_types.iter().flatten().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            let message = format!("`{kind}` is no policy type: use Ingress, Egress or both");
            errors.add(format!("spec.policyTypes[{i}]"), message);
        }
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        peers(&mut errors, &format!("spec.ingress[{i}].from"), rule.from.as_deref().unwrap_or_default());
        ports(&mut errors, &format!("spec.ingress[{i}].ports"), rule.ports.as_deref().unwrap_or_default());
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        peers(&mut errors, &format!("spec.egress[{i}].to"), rule.to.as_deref().unwrap_or_default());
        ports(&mut errors, &format!("spec.egress[{i}].ports"), rule.ports.as_deref().unwrap_or_default());
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

fn ip_block_errors(errors: &mut Errors, field: &str, block: &IPBlock) {
    let Some(cidr) = network(errors, format!("{field}.cidr"), &block.cidr) else { return };
    for (i, text) in block.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{i}]");
        if let Some(except) = network(errors, field.clone(), text)
            && (cidr.is_ipv4() != except.is_ipv4() || !holds(cidr, except) || cidr == except)
        {
            errors.add(field, format!("{except} is not a part of {cidr}: only a part can be excepted"));
        }
    }
}

pub(super) fn network(errors: &mut Errors, field: String, text: &str) -> Option<IpNetwork> {
    // A bare address is no CIDR to Kubernetes.
    match text.parse::<IpNetwork>().ok().filter(|_| text.contains('/')) {
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
        if let Some(protocol) = protocol.as_ref().filter(|p| !["TCP", "UDP", "SCTP"].contains(&p.as_str())) {
            let message = format!("`{protocol}` is no protocol here: use TCP, UDP or SCTP");
            errors.add(format!("{field}.protocol"), message);
        }
        match port {
            Some(IntOrString::Int(number)) => number_of_port(errors, format!("{field}.port"), *number),
            Some(IntOrString::String(name)) => port_name(errors, format!("{field}.port"), name),
            None => {}
        }
        let Some(end) = *end_port else { continue };
        let field = format!("{field}.endPort");
        match port {
            Some(IntOrString::Int(first)) if end < *first => {
                errors.add(field, format!("the range is upside down: endPort {end} is below port {first}"));
            }
            Some(IntOrString::Int(_)) => number_of_port(errors, field, end),
            Some(IntOrString::String(name)) => {
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
