//! `explain`: what happens to a flow and why, the connections that live of it, and what its ends may use.

use super::{Node, explain_service::Called, views::kernel_error};
use crate::datapath::{Datapath, DatapathError};
use bulkhead_api::{
    messages::{
        AdmissionInfo, ConnectionInfo, ErrorReply, ExplainRequest, ExplainedBandwidth, ExplainedRate,
        Explanation, OtherPart, RuleInfo, code,
    },
    objects::IpNetwork,
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, FLOW_ANSWERED, FLOW_CLOSED, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_KEEP_EGRESS,
    FLOW_KEEP_INGRESS, FlowKey, PATH_DIRECT, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP,
    RULE_NONE,
};
use bulkhead_policy::{Compiled, Flow, GroupPart, Local, compile, explain, group_parts, judged};
use std::{cmp::Reverse, net::IpAddr};

/// A page of connections.
const MOST_CONNECTIONS: usize = 16;
/// Pairs of parts of network groups that are looked at.
const MOST_PAIRS: usize = 256;
const GROUP: &str = "NetworkGroup/";

/// An end as it was asked for.
struct Asked {
    /// The addresses it stands for: a pod has some, of a network group there is one for each part.
    parts: Vec<GroupPart>,
    /// All that it holds.
    networks: Vec<IpNetwork>,
}

impl Asked {
    fn of_version(&self, v6: bool) -> Vec<GroupPart> {
        self.parts.iter().filter(|p| p.address.is_ipv6() == v6).copied().collect()
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|n| n.contains(address))
    }
}

impl Node {
    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ErrorReply> {
        let compiled: &Compiled =
            self.compiled.as_ref().ok_or_else(|| refused("no policy is in force yet".into()))?;
        let (from, to) = (self.asked(compiled, &request.from)?, self.asked(compiled, &request.to)?);
        let pairs = pairs(&from, &to).ok_or_else(|| {
            refused(format!("{} and {} have no address of one IP version", request.from, request.to))
        })?;
        let flow = |(from, to): &(GroupPart, GroupPart)| {
            let proto = protocol(&request.protocol, from.address)?;
            Ok(Flow { from: from.address, to: to.address, proto, port: request.port })
        };
        let flows = pairs.iter().map(flow).collect::<Result<Vec<_>, ErrorReply>>()?;
        if let Some(called) = self.called(&flows) {
            return self.explain_call(compiled, &called, request);
        }
        self.explain_untranslated(compiled, request, &pairs, &flows, (&from, &to))
    }

    /// By the addresses that were asked for.
    fn explain_untranslated(
        &self,
        compiled: &Compiled,
        request: &ExplainRequest,
        pairs: &[(GroupPart, GroupPart)],
        flows: &[Flow],
        (from, to): (&Asked, &Asked),
    ) -> Result<Explanation, ErrorReply> {
        let mut all = self.explain_flows(compiled, flows)?.into_iter();
        let mut shown = all.next().ok_or_else(|| refused("nothing was asked".into()))?;
        let others = pairs.iter().skip(1).zip(all).filter(|(_, e)| e.allowed != shown.allowed);
        shown.otherwise = others.map(|((from, to), e)| other(from, to, &e)).collect();
        self.complete(&mut shown, request, flows[0], from, to)?;
        Ok(shown)
    }

    /// What tables do not know.
    fn complete(
        &self,
        shown: &mut Explanation,
        request: &ExplainRequest,
        flow: Flow,
        from: &Asked,
        to: &Asked,
    ) -> Result<(), ErrorReply> {
        shown.generation = self.datapath.running_generation().map_err(kernel_error)?;
        shown.protocol.clone_from(&request.protocol);
        for end in [&mut shown.from, &mut shown.to] {
            end.bandwidth = self.explain_bandwidth(end.address);
        }
        self.add_connections(shown, flow, from, to).map_err(kernel_error)
    }

    /// The first backend's explanation, with what becomes of the others.
    fn explain_call(
        &self,
        compiled: &Compiled,
        called: &Called<'_>,
        request: &ExplainRequest,
    ) -> Result<Explanation, ErrorReply> {
        let flows = called.flows();
        let all = self.explain_flows(compiled, &flows)?;
        let service = called.explained(&all);
        let mut shown = all.into_iter().next().ok_or_else(|| refused("nothing was asked".into()))?;
        let (from, to) = (of_addresses(&[flows[0].from]), of_addresses(&[flows[0].to]));
        self.complete(&mut shown, request, flows[0], &from, &to)?;
        shown.allowed &= !service.backends.is_empty();
        shown.service = Some(service);
        Ok(shown)
    }

    /// By the tables in force; where they lack the policy of a pod elsewhere, by tables made for the question.
    fn explain_flows(&self, compiled: &Compiled, flows: &[Flow]) -> Result<Vec<Explanation>, ErrorReply> {
        let objects = &self.in_force.policy;
        let own = self.local_pods(objects);
        let by = |compiled: &Compiled| -> Option<Vec<Explanation>> {
            flows.iter().map(|flow| explain(compiled, objects, &own, *flow)).collect()
        };
        if let Some(explanations) = by(compiled) {
            return Ok(explanations);
        }
        let ends: Vec<IpAddr> = flows.iter().flat_map(|f| [f.from, f.to]).collect();
        let mut pods = judged(objects, &own, &ends);
        pods.extend(own.iter().cloned());
        let partitions = pods.iter().map(|p| p.partition.clone()).collect();
        let local =
            Local { node: &self.config.node, pods: &pods, partitions: Some(&partitions), former: None };
        let preview =
            compile(objects, &mut self.interner.clone(), &local).map_err(|e| refused(e.to_string()))?;
        by(&preview).ok_or_else(|| refused("no policy judges these ends".into()))
    }

    /// An address as written, the addresses of `namespace/name`, or the parts of `NetworkGroup/name`.
    fn asked(&self, compiled: &Compiled, text: &str) -> Result<Asked, ErrorReply> {
        let objects = &self.in_force.policy;
        if let Ok(address) = text.parse() {
            return Ok(of_addresses(&[address]));
        }
        if let Some(name) = text.strip_prefix(GROUP) {
            let parts = group_parts(compiled, objects, name).zip(objects.network_groups.get(name));
            let (parts, group) = parts.ok_or_else(|| refused(format!("there is no {text}")))?;
            return Ok(Asked { parts, networks: group.spec.cidrs.clone() });
        }
        let Some((namespace, name)) = text.split_once('/') else {
            return Err(refused(format!("`{text}` is no address, namespace/pod or {GROUP}name")));
        };
        let of_record = self.endpoints.iter().find(|r| r.pod.namespace == namespace && r.pod.name == name);
        let addresses = of_record.map(|r| r.addresses.as_slice());
        let addresses = addresses.or_else(|| objects.pod(text).map(|p| p.addresses.as_slice()));
        match addresses {
            Some([]) => Err(refused(format!("pod {text} has no address"))),
            Some(addresses) => Ok(of_addresses(addresses)),
            None => Err(refused(format!(
                "no pod {text} on this node, and no source tells of it: ask its own node, or give its address"
            ))),
        }
    }

    /// What holds in the kernel, and why if that can still be said.
    fn explain_bandwidth(&self, address: IpAddr) -> Option<ExplainedBandwidth> {
        let record = self.endpoints.iter().find(|r| r.addresses.contains(&address))?;
        let wanted = self.bandwidth(&record.pod, &record.partition, record.runtime_bandwidth).ok();
        let wanted = wanted.filter(|w| w.limits == record.limits);
        let origins = wanted.map(|w| w.origins).unwrap_or_default();
        let rate = |limit: Option<crate::net::Limit>, origin: Option<crate::bandwidth::Origin>| {
            let origin = origin.map_or("kept", crate::bandwidth::Origin::name).to_string();
            limit.map(|l| ExplainedRate { rate: l.rate_bits, origin })
        };
        Some(ExplainedBandwidth {
            class: record.bandwidth_class.clone(),
            ingress: rate(record.limits.ingress, origins.ingress),
            egress: rate(record.limits.egress, origins.egress),
        })
    }

    fn add_connections(
        &self,
        shown: &mut Explanation,
        asked: Flow,
        from: &Asked,
        to: &Asked,
    ) -> Result<(), DatapathError> {
        let mut found = Vec::new();
        for entry in self.datapath.live_flows()? {
            let (key, flow) = entry?;
            let [(initiator, _), (responder, _)] = key.ends(flow.flags);
            let service = (key.proto, flow.service_port) == (asked.proto, asked.port);
            if service && from.holds(initiator.to_ip()) && to.holds(responder.to_ip()) {
                shown.connections_found += 1;
                found.push((key, flow));
            }
            // Not all of a great many are held at once.
            if found.len() >= 4 * MOST_CONNECTIONS {
                newest(&mut found);
            }
        }
        newest(&mut found);
        let told = found.iter().map(|(key, flow)| self.connection(key, flow));
        shown.connections = told.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn connection(
        &self,
        key: &FlowKey,
        flow: &bulkhead_ebpf_abi::Flow,
    ) -> Result<ConnectionInfo, DatapathError> {
        let [(from, from_port), (to, _)] = key.ends(flow.flags);
        let ends = [("egress", DIR_EGRESS, FLOW_KEEP_EGRESS), ("ingress", DIR_INGRESS, FLOW_KEEP_INGRESS)];
        let admission = |(direction, dir, keep): (&str, u32, u8)| {
            let generation = flow.generations[dir as usize];
            (generation != 0).then(|| AdmissionInfo {
                direction: direction.into(),
                generation,
                rule: self.rule(flow.rules[dir as usize]),
                keep: flow.flags & keep != 0,
            })
        };
        Ok(ConnectionInfo {
            from: from.to_ip(),
            to: to.to_ip(),
            from_port,
            state: state(flow.flags).into(),
            idle_seconds: Datapath::idle(flow)?.as_secs(),
            packets: flow.packets,
            bytes: flow.bytes,
            path: if flow.path == PATH_DIRECT { "direct" } else { "stack" }.into(),
            admitted: ends.into_iter().filter_map(admission).collect(),
        })
    }
}

fn newest(found: &mut Vec<(FlowKey, bulkhead_ebpf_abi::Flow)>) {
    found.sort_unstable_by_key(|(key, flow)| (Reverse(flow.last_seen), *key));
    found.truncate(MOST_CONNECTIONS);
}

/// The furthest that it has come.
fn state(flags: u8) -> &'static str {
    let stages = [
        (FLOW_CLOSED, "closed"),
        (FLOW_CLOSING, "closing"),
        (FLOW_ESTABLISHED, "established"),
        (FLOW_ANSWERED, "answered"),
    ];
    stages.into_iter().find(|(bit, _)| flags & bit != 0).map_or("unanswered", |(_, name)| name)
}

fn of_addresses(addresses: &[IpAddr]) -> Asked {
    let networks: Vec<IpNetwork> = addresses.iter().map(|a| IpNetwork::from(*a)).collect();
    let part = |n: &IpNetwork| GroupPart { network: *n, address: n.ip() };
    Asked { parts: networks.iter().map(part).collect(), networks }
}

/// Of the first IP version that both have.
fn pairs(from: &Asked, to: &Asked) -> Option<Vec<(GroupPart, GroupPart)>> {
    let of = |v6| {
        let (from, to) = (from.of_version(v6), to.of_version(v6));
        let all = from.into_iter().flat_map(move |f| to.clone().into_iter().map(move |t| (f, t)));
        all.take(MOST_PAIRS).collect::<Vec<_>>()
    };
    [false, true].into_iter().map(of).find(|pairs| !pairs.is_empty())
}

/// The end that says no is the one to know.
fn other(from: &GroupPart, to: &GroupPart, e: &Explanation) -> OtherPart {
    let decided = e.decisions.iter().find(|d| !d.allowed).or(e.decisions.last());
    let nobody = || RuleInfo { number: RULE_NONE, name: "neither end is a pod".into(), file: None };
    OtherPart {
        from: from.network,
        to: to.network,
        allowed: e.allowed,
        rule: decided.map_or_else(nobody, |d| d.rule.clone()),
    }
}

fn protocol(text: &str, address: IpAddr) -> Result<u8, ErrorReply> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(PROTO_TCP),
        "udp" => Ok(PROTO_UDP),
        "sctp" => Ok(PROTO_SCTP),
        "icmp" | "icmpv6" => Ok(if address.is_ipv4() { PROTO_ICMP } else { PROTO_ICMPV6 }),
        number => number
            .parse()
            .map_err(|_| refused(format!("`{text}` is not tcp, udp, sctp, icmp, icmpv6 or a number"))),
    }
}

fn refused(msg: String) -> ErrorReply {
    ErrorReply { code: code::INVALID_CONFIG, msg, details: String::new() }
}
