//! What happens to a flow and why, in the messages' own types.

use crate::{Compiled, Objects};
use bulkhead_api::messages::{ExplainedDecision, ExplainedEnd, Explanation, RuleInfo};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RULE_NONE,
};
use std::net::IpAddr;

/// Both ends' decisions. An end decides only if its address lies in a partition's range (the default partition's
/// included). The generation (0 here) and the names of pods are the daemon's to fill in.
///
/// `objects` are those that `compiled` was made of.
pub fn explain(
    compiled: &Compiled,
    objects: &Objects,
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    port: u16,
) -> Explanation {
    let [from, to] = [from, to].map(|address| ExplainedEnd {
        address,
        pod: None,
        partition: objects.partition_of_address(address).map(str::to_string),
        known_as: compiled.known_as(address),
        identity: compiled.identity(address).id,
    });
    let ends = [(&from, &to, DIR_EGRESS), (&to, &from, DIR_INGRESS)];
    let decisions: Vec<_> = ends
        .into_iter()
        .filter_map(|(end, peer, dir)| decide(compiled, end, peer, dir, proto, port))
        .collect();
    Explanation {
        allowed: decisions.iter().all(|d| d.allowed || d.audit),
        generation: 0,
        from,
        to,
        protocol: protocol_name(proto),
        port,
        decisions,
    }
}

fn decide(
    compiled: &Compiled,
    end: &ExplainedEnd,
    peer: &ExplainedEnd,
    dir: u32,
    proto: u8,
    port: u16,
) -> Option<ExplainedDecision> {
    let partition = end.partition.clone()?;
    let policy = *compiled.policies.get(&partition)?;
    let decision = compiled.evaluate(policy, dir, peer.identity, proto, port);
    let entry = compiled.rules.get(decision.rule).or_else(|| compiled.rules.get(RULE_NONE));
    Some(ExplainedDecision {
        direction: if dir == DIR_EGRESS { "egress" } else { "ingress" }.into(),
        partition,
        allowed: decision.allowed,
        audit: decision.audit,
        rule: RuleInfo {
            number: decision.rule,
            name: entry.map(|e| e.name.clone()).unwrap_or_default(),
            file: entry.and_then(|e| e.file.clone()),
        },
    })
}

fn protocol_name(proto: u8) -> String {
    match proto {
        PROTO_TCP => "tcp".into(),
        PROTO_UDP => "udp".into(),
        PROTO_SCTP => "sctp".into(),
        PROTO_ICMP => "icmp".into(),
        PROTO_ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}
