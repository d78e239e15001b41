//! What people ask: status, endpoints, partitions, drops, explain. Reads, never changes.

use super::{Node, local_pod, unix_seconds};
use bulkhead_api::{
    messages::{
        DropInfo, EndpointInfo, ErrorReply, ExplainRequest, Explanation, PartitionInfo, RuleCountInfo,
        RuleInfo, RulesRequest, Status, code,
    },
    objects::{DEFAULT_PARTITION, IpNetwork, Isolation, PartitionSpec},
};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, PROTO_ICMP, PROTO_ICMPV6, PROTO_SCTP, PROTO_TCP, PROTO_UDP, RULE_NONE, RuleCounter,
    drop_reason_text,
};
use bulkhead_policy::{Compiled, Flow, Local, compile, explain, judged};
use std::{collections::BTreeSet, net::IpAddr};

impl Node {
    pub fn status(&self) -> Result<Status, ErrorReply> {
        Ok(Status {
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: self.datapath.running_generation().map_err(kernel_error)?,
            generation_since: self.generation_since,
            last_change_millis: self.last_change_millis,
            endpoints: self.endpoints.iter().count(),
            connections: self.datapath.flow_count().map_err(kernel_error)?,
            held: self.history.held(),
            bandwidth: "tbf".into(),
            uplinks: self.uplinks.iter().map(|u| u.name.clone()).collect(),
            errors: self.errors(),
        })
    }

    pub fn endpoints(&self) -> Vec<EndpointInfo> {
        self.endpoints.iter().map(|record| record.into()).collect()
    }

    pub fn partitions(&self) -> Vec<PartitionInfo> {
        let objects = &self.in_force.policy;
        let mut partitions: Vec<_> = objects
            .partitions
            .iter()
            .map(|(name, p)| self.partition(name, Some(&p.spec), &p.spec.pod_cidrs))
            .collect();
        partitions.push(self.partition(DEFAULT_PARTITION, None, &objects.default_pod_cidrs));
        partitions
    }

    fn partition(&self, name: &str, spec: Option<&PartitionSpec>, ranges: &[IpNetwork]) -> PartitionInfo {
        let isolation = spec.map_or(Isolation::Open, |s| s.isolation);
        let in_range = |ip: &IpAddr| ranges.iter().any(|r| r.contains(*ip));
        // Pods of a partition that is gone are under the default partition's policy.
        let known = |name: &str| self.in_force.policy.partitions.contains_key(name);
        let is_of = |partition: &str| partition == name || (name == DEFAULT_PARTITION && !known(partition));
        let pods: Vec<_> = self.endpoints.iter().filter(|e| is_of(&e.partition)).collect();
        PartitionInfo {
            name: name.to_string(),
            policy_id: spec.map_or(0, |s| s.policy_id),
            isolation: format!("{isolation:?}"),
            namespaces: spec.map(|s| s.namespaces.clone()).unwrap_or_default(),
            pod_cidrs: ranges.to_vec(),
            blocks: self.endpoints.blocks().iter().filter(|(_, p)| *p == name).map(|(b, _)| *b).collect(),
            endpoints: pods.len(),
            strays: pods.iter().filter(|e| !e.addresses.iter().all(in_range)).count(),
        }
    }

    pub fn drops(&self) -> Result<Vec<DropInfo>, ErrorReply> {
        let drops = self.datapath.drops().map_err(kernel_error)?;
        let of_drop = |(key, counter): (bulkhead_ebpf_abi::DropKey, bulkhead_ebpf_abi::Counter)| DropInfo {
            reason: drop_reason_text(key.reason).into(),
            rule: (key.rule != RULE_NONE).then(|| self.rule(key.rule)),
            partition: self.partition_of_policy(key.policy).filter(|_| key.rule != RULE_NONE),
            direction: if u32::from(key.dir) == DIR_EGRESS { "egress" } else { "ingress" }.into(),
            packets: counter.packets,
            bytes: counter.bytes,
        };
        let mut drops: Vec<_> = drops.into_iter().map(of_drop).collect();
        drops.sort_by_key(|d| std::cmp::Reverse(d.packets));
        Ok(drops)
    }

    /// Every rule in force by its object, hit or not; of the built-in ones and those gone meanwhile what was hit.
    pub fn rules(&self, request: &RulesRequest) -> Result<Vec<RuleCountInfo>, ErrorReply> {
        let counters = self.datapath.rules().map_err(kernel_error)?;
        let Some(book) = self.compiled.as_ref().map(|c| &c.rules) else { return Ok(Vec::new()) };
        let named = counters.keys().copied().filter(|number| book.get(*number).is_some());
        let numbers: BTreeSet<u32> = book.in_force().map(|(number, _)| number).chain(named).collect();
        let mut rules = Vec::new();
        for number in numbers {
            let counter = counters.get(&number);
            let rule = self.rule(number);
            if request.never_hit && counter.is_some() || !is_of(&rule.name, request.partition.as_deref()) {
                continue;
            }
            let age = counter.map(|c| self.datapath.age(c)).transpose().map_err(kernel_error)?;
            let RuleCounter { packets, bytes, connections, .. } = counter.copied().unwrap_or_default();
            let last_hit = age.map(|age| unix_seconds().saturating_sub(age.as_secs()));
            rules.push(RuleCountInfo {
                rule,
                in_force: !book.is_gone(number),
                packets,
                bytes,
                connections,
                last_hit,
            });
        }
        rules.sort_by(|a, b| a.rule.name.cmp(&b.rule.name));
        Ok(rules)
    }

    fn rule(&self, number: u32) -> RuleInfo {
        match self.compiled.as_ref().and_then(|c| c.rules.get(number)) {
            Some(entry) => RuleInfo { number, name: entry.name.clone(), file: entry.file.clone() },
            None => RuleInfo { number, name: format!("a rule that is gone ({number})"), file: None },
        }
    }

    fn partition_of_policy(&self, policy: u32) -> Option<String> {
        self.compiled.as_ref()?.partition_of_policy(policy).map(str::to_string)
    }

    pub fn explain(&self, request: &ExplainRequest) -> Result<Explanation, ErrorReply> {
        let compiled: &Compiled =
            self.compiled.as_ref().ok_or_else(|| refused("no policy is in force yet".into()))?;
        // A pod by name has an address of each family: take the one the other end has.
        let from = self.address(&request.from, request.to.parse().ok())?;
        let to = self.address(&request.to, Some(from))?;
        if from.is_ipv4() != to.is_ipv4() {
            return Err(refused(format!("{from} and {to} are not of one IP version")));
        }
        let protocol = protocol(&request.protocol, from)?;
        let flow = Flow { from, to, proto: protocol, port: request.port };
        let mut explanation = self.explain_flow(compiled, flow)?;
        explanation.generation = self.datapath.running_generation().map_err(kernel_error)?;
        explanation.protocol.clone_from(&request.protocol);
        for end in [&mut explanation.from, &mut explanation.to] {
            let record = self.endpoints.iter().find(|r| r.addresses.contains(&end.address));
            end.pod = record.map(|r| format!("{}/{}", r.pod.namespace, r.pod.name));
        }
        Ok(explanation)
    }

    /// By the tables in force; where they lack the policy of a pod elsewhere, by tables made for the question.
    fn explain_flow(&self, compiled: &Compiled, flow: Flow) -> Result<Explanation, ErrorReply> {
        let objects = &self.in_force.policy;
        let mut pods: Vec<_> = self.endpoints.iter().map(local_pod).collect();
        if let Some(explanation) = explain(compiled, objects, &pods, flow) {
            return Ok(explanation);
        }
        pods.extend(judged(objects, &pods, &[flow.from, flow.to]));
        let partitions = pods.iter().map(|p| p.partition.clone()).collect();
        let local =
            Local { node: &self.config.node, pods: &pods, partitions: Some(&partitions), former: None };
        let preview =
            compile(objects, &mut self.interner.clone(), &local).map_err(|e| refused(e.to_string()))?;
        let explanation = explain(&preview, objects, &pods, flow);
        explanation.ok_or_else(|| refused("no policy judges these ends".into()))
    }

    /// An address as written, or the address of `namespace/name`, of the family of `like` where there is a choice.
    fn address(&self, text: &str, like: Option<IpAddr>) -> Result<IpAddr, ErrorReply> {
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let Some((namespace, name)) = text.split_once('/') else {
            return Err(refused(format!("`{text}` is neither an address nor namespace/pod")));
        };
        let record = self.endpoints.iter().find(|r| r.pod.namespace == namespace && r.pod.name == name);
        let record = record.ok_or_else(|| {
            refused(format!("no pod {text} on this node: ask its own node, or give the pod's address"))
        })?;
        let family = |a: &&IpAddr| like.is_none_or(|l| l.is_ipv4() == a.is_ipv4());
        let found = record.addresses.iter().find(family).or(record.addresses.first());
        found.copied().ok_or_else(|| refused(format!("pod {text} has no address")))
    }
}

/// Is it a rule that this partition's object writes?
fn is_of(name: &str, partition: Option<&str>) -> bool {
    partition.is_none_or(|partition| {
        name.strip_prefix("Partition/")
            .and_then(|name| name.strip_prefix(partition))
            .is_some_and(|rest| rest.starts_with(' '))
    })
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

pub(super) fn kernel_error(e: crate::datapath::DatapathError) -> ErrorReply {
    ErrorReply { code: code::IO_FAILURE, msg: "cannot read the kernel's maps".into(), details: e.to_string() }
}
