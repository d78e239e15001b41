//! What people ask: status, endpoints, partitions, drops. Reads, never changes.

use super::{Node, unix_seconds};
use crate::{
    announce,
    bgp::why::{Facts, Origin},
    metrics,
    net::Uplink,
};
use bulkhead_api::{
    messages::{
        DropInfo, EndpointInfo, ErrorReply, ObjectError, PartitionInfo, RuleCountInfo, RuleInfo,
        RulesRequest, Status, UplinkInfo, code,
    },
    objects::{DEFAULT_PARTITION, IpNetwork, Isolation, PartitionSpec},
};
use bulkhead_ebpf_abi::{
    Counter, DIR_EGRESS, DROP_NO_ENDPOINT, DROP_RANGE_CLOSED, DROP_SPOOFED_UPLINK, DropKey, RULE_NONE,
    RuleCounter, drop_reason_text,
};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

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
            draining: self.bgp.draining(),
            bandwidth: "tbf".into(),
            uplinks: self.uplinks.iter().map(uplink_info).collect(),
            errors: self.told(),
        })
    }

    /// For metrics.
    pub fn facts(&self) -> Result<metrics::Facts, ErrorReply> {
        // Not held over the walk of the connections: whoever has news waits for it.
        let (source_ready, noticed) = {
            let observed = self.source.borrow();
            (observed.snapshot.is_some(), observed.noticed)
        };
        Ok(metrics::Facts {
            status: self.status()?,
            partitions: self.partitions(),
            drops: self.drops()?,
            connections_limit: self.config.conntrack_entries,
            compile: self.compile_times.clone(),
            source_ready,
            source_change: unix_seconds() as f64 - noticed.elapsed().as_secs_f64().floor(),
        })
    }

    /// Also what the tasks beside the node could not do.
    fn told(&self) -> Vec<ObjectError> {
        let beside =
            self.bgp.bfd_error().into_iter().chain(self.bgp.learning_error()).chain(self.history.failure());
        let beside = beside.chain(self.bgp.monitoring_errors()).chain(self.fixed_errors());
        self.errors().into_iter().chain(beside).collect()
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

    /// Why this node has a route for this prefix, or none.
    pub fn origin(&self, prefix: &IpNetwork) -> Origin {
        let (announced, services_leaving, blocks_leaving) = self.bgp.announcing();
        let configuration = self.in_force.bgp.as_ref();
        let services =
            configuration.map(|c| self.bgp.of_services(&self.in_force, &c.spec)).unwrap_or_default();
        let (node, objects) = (&self.config.node, &self.in_force.policy);
        let aggregates =
            configuration.map(|c| announce::aggregates(node, objects, &c.spec)).unwrap_or_default();
        let facts = Facts {
            objects,
            peers: &self.in_force.bgp_peers,
            configuration,
            blocks: self.endpoints.blocks(),
            announced,
            services: &services,
            aggregates: &aggregates,
            leaving: (services_leaving, blocks_leaving),
            quarantine: self.bgp.quarantine(),
            interrupted: self.bgp.interrupted(),
            errors: self.bgp.errors(),
        };
        Origin::of(prefix, &facts)
    }

    pub fn drops(&self) -> Result<Vec<DropInfo>, ErrorReply> {
        let drops = self.datapath.drops().map_err(kernel_error)?;
        let of_drop = |(key, counter): (DropKey, Counter), age| DropInfo {
            reason: drop_reason_text(key.reason).into(),
            rule: (key.rule != RULE_NONE).then(|| self.rule(key.rule)),
            partition: self.partition_of_policy(key.policy).filter(|_| has_policy(key.reason)),
            advice: advice(key.reason, age).map(str::to_string),
            direction: if u32::from(key.dir) == DIR_EGRESS { "egress" } else { "ingress" }.into(),
            packets: counter.packets,
            bytes: counter.bytes,
        };
        let aged = |drop: (DropKey, Counter)| self.datapath.age(drop.1.last).map(|age| of_drop(drop, age));
        let mut drops = drops.into_iter().map(aged).collect::<Result<Vec<_>, _>>().map_err(kernel_error)?;
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
            let age = counter.map(|c| self.datapath.age(c.last)).transpose().map_err(kernel_error)?;
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

/// Is it a drop of a known end?
const fn has_policy(reason: u8) -> bool {
    !matches!(reason, DROP_SPOOFED_UPLINK | DROP_NO_ENDPOINT)
}

/// So long after the last drop it is told what to do: who has done it sees the counter on.
const ADVISED: Duration = Duration::from_secs(3600);

/// What to do about a drop that no rule explains, and nobody else can.
fn advice(reason: u8, age: Duration) -> Option<&'static str> {
    match reason {
        DROP_RANGE_CLOSED if age <= ADVISED => Some(
            "a service was called at this node whose backend is a pod of another one, and this node does not know its policy: that of \
             its partition (where there are more than 128 no node has those of all), or of the pods outside their partition's ranges \
             (where there are more than 8192 in the cluster, ranges that some of them lie in are shut). Set externalTrafficPolicy: Local, \
             and call nodes that run its pods",
        ),
        _ => None,
    }
}

fn uplink_info(uplink: &Uplink) -> UplinkInfo {
    UplinkInfo { name: uplink.name.clone(), mtu: uplink.mtu, chosen_by: uplink.chosen_by.clone() }
}

/// Is it a rule that this partition's object writes?
fn is_of(name: &str, partition: Option<&str>) -> bool {
    partition.is_none_or(|partition| {
        name.strip_prefix("Partition/")
            .and_then(|name| name.strip_prefix(partition))
            .is_some_and(|rest| rest.starts_with(' '))
    })
}

pub(super) fn kernel_error(e: crate::datapath::DatapathError) -> ErrorReply {
    ErrorReply { code: code::IO_FAILURE, msg: "cannot read the kernel's maps".into(), details: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_ebpf_abi::DROP_POLICY;

    #[test]
    fn who_is_refused_for_want_of_a_policy_here_is_told_another_way() {
        let told = advice(DROP_RANGE_CLOSED, ADVISED).unwrap();
        let partitions = bulkhead_policy::EAGER_PARTITIONS.to_string();
        let strays = crate::node::DIRECT_STRAYS.to_string();
        for part in [partitions.as_str(), strays.as_str(), "externalTrafficPolicy: Local"] {
            assert!(told.contains(part), "{part}");
        }
        assert_eq!(advice(DROP_POLICY, Duration::ZERO), None);
        // Somebody may have done it.
        assert_eq!(advice(DROP_RANGE_CLOSED, ADVISED * 2), None);
    }
}
