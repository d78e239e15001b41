//! What people ask: status, endpoints, partitions, drops. Reads, never changes.

use super::Node;
use bulkhead_api::{
    messages::{DropInfo, EndpointInfo, ErrorReply, PartitionInfo, RuleInfo, Status, code},
    objects::{DEFAULT_PARTITION, IpNetwork, Isolation, PartitionSpec},
};
use bulkhead_ebpf_abi::{DIR_EGRESS, RULE_NONE, drop_reason_text};
use std::net::IpAddr;

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

    pub(super) fn rule(&self, number: u32) -> RuleInfo {
        match self.compiled.as_ref().and_then(|c| c.rules.get(number)) {
            Some(entry) => RuleInfo { number, name: entry.name.clone(), file: entry.file.clone() },
            None => RuleInfo { number, name: format!("a rule that is gone ({number})"), file: None },
        }
    }

    fn partition_of_policy(&self, policy: u32) -> Option<String> {
        self.compiled.as_ref()?.partition_of_policy(policy).map(str::to_string)
    }
}

pub(super) fn kernel_error(e: crate::datapath::DatapathError) -> ErrorReply {
    ErrorReply { code: code::IO_FAILURE, msg: "cannot read the kernel's maps".into(), details: e.to_string() }
}
