//! From what the source says to what is in force: completed by what the node knows, admitted, and switched to if it is
//! another than before.

use super::{BGP_FILE, Node, switch::NoSwitch};
use crate::{
    announce,
    net::{GATEWAY_V4, GATEWAY_V6, Uplink},
    reservation,
    source::Observed,
    store,
};
use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPPeerSpec, PartitionSpec},
};
use bulkhead_policy::{Admitted, NodeInfo, Objects, Sourced, StrayPods, Witness, admit_change, strays};
use imbl::ordmap::DiffItem;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use tracing::{error, warn};

impl Node {
    /// Takes over a new snapshot as far as it is valid. Before there is one, what a daemon before us left stays.
    pub async fn apply(&mut self, observed: Observed) {
        let Some(mut snapshot) = observed.snapshot else {
            self.refused = observed.errors;
            self.announce_blocks().await;
            self.write_services();
            return;
        };
        let mut refused = observed.errors;
        let mut failed = Vec::new();
        let policy = std::mem::take(&mut snapshot.policy);
        if let Some(info) = policy.nodes.get(&self.config.node) {
            self.own.told(info);
        }
        let candidate = self.with_own_addresses(self.unless_held(policy));
        // Packets carry the addresses of the backends, and so must the policy on cluster DNS.
        self.services.follow(&self.config.node, &candidate.nodes, &snapshot);
        let candidate =
            candidate.with_dns_backends(&self.services.table).with_api_servers(&snapshot.endpoint_slices);
        let Admitted { objects, errors, clean } = admit_change(&self.in_force.policy, self.clean, candidate);
        refused.extend(errors);
        let blocks_stay = self.in_force.blocks.ptr_eq(&snapshot.blocks);
        self.in_force.blocks = snapshot.blocks;
        self.know_claims(blocks_stay);
        // What a switch that failed did not bring is made anew.
        let same = self.compiled.is_some()
            && (blocks_stay
                || self.witness() == Witness::Pod && self.stray_pods.take_claims(&self.in_force.blocks))
            && self.failed.is_empty()
            && same_ranges(&self.in_force.policy, &objects)
            && same_homes(&self.in_force.policy, &objects)
            && !self.stray_pods.change(&self.in_force.policy, &objects);
        let (objects, stray_pods) = if same {
            (Objects { strays: self.in_force.policy.strays.clone(), ..objects }, None)
        } else {
            let (objects, pods) = self.with_strays(objects);
            (objects, Some(pods))
        };
        let changed = self.compiled.is_none() || objects != self.in_force.policy;
        let mut taken = true;
        if changed {
            match self.switch(objects.clone(), None, None) {
                Ok(()) => {
                    self.clean = clean;
                    self.last_change_millis = observed.noticed.elapsed().as_millis() as u64;
                }
                Err(e) => {
                    error!(error = %e, "the change is not in force; the running generation stays");
                    taken = false;
                    if e.is_refusal() {
                        refused.push(not_done(&e));
                        match self.follow_facts(objects) {
                            Ok(faults) => refused.extend(faults),
                            // Nothing is to be had by trying the same again.
                            Err(e) if e.is_refusal() => refused.push(not_done(&e)),
                            Err(e) => failed.push(not_done(&e)),
                        }
                        refused.dedup();
                    } else {
                        failed.push(not_done(&e));
                    }
                }
            }
        }
        self.clean |= clean && !changed;
        if let Some(pods) = stray_pods.filter(|_| taken) {
            self.stray_pods = pods;
        }
        self.in_force.annotations = snapshot.annotations;
        self.in_force.services = snapshot.services;
        self.in_force.endpoint_slices = snapshot.endpoint_slices;
        self.bgp.know_services();
        refused.extend(reservation::faults(&self.in_force.policy, &snapshot.reservations));
        self.in_force.reservations = snapshot.reservations;
        refused.extend(self.admit_bgp(snapshot.bgp_peers, snapshot.bgp));
        let told = self.errors();
        (self.refused, self.failed) = (refused, failed);
        self.follow().await;
        // Behind all that pods wait for.
        self.write_services();
        self.report(&observed.versions, !taken);
        self.waiting.keep(|pod| self.in_force.policy.pods.contains_key(pod));
        self.report_waiting();
        for error in self.errors().iter().filter(|e| !told.contains(e)) {
            warn!("refused: {error}");
        }
    }

    /// Rules that do not fit are no reason to know nothing of the pods that come and go: by the rules in force. Told is what is
    /// wrong with those, as things are.
    fn follow_facts(&mut self, refused: Objects) -> Result<Vec<ObjectError>, NoSwitch> {
        // Where none have been, pods wait: without any, everybody would be free.
        if self.history.is_empty() {
            return Ok(Vec::new());
        }
        let candidate = refused.ruled_by(self.in_force.policy.clone());
        let Admitted { objects, errors, clean } = admit_change(&self.in_force.policy, self.clean, candidate);
        let (objects, pods) = self.with_strays(objects);
        if self.compiled.is_none() || objects != self.in_force.policy {
            self.switch(objects, None, None)?;
            self.clean = clean;
        }
        self.stray_pods = pods;
        Ok(errors)
    }

    /// Whose addresses are that do not lie in their range, by what nodes have claimed; and which pods change it.
    pub(super) fn with_strays(&self, objects: Objects) -> (Objects, StrayPods) {
        let (strays, pods) = strays(&objects, &self.in_force.blocks, self.witness());
        (Objects { strays, ..objects }, pods)
    }

    /// Files that everybody trusts, or claims of many accounts.
    pub(super) fn witness(&self) -> Witness {
        if self.config.kubernetes.is_some() { Witness::Pod } else { Witness::None }
    }

    /// Takes over what a speaker can run with, and remembers it.
    fn admit_bgp(
        &mut self,
        peers: BTreeMap<String, Sourced<BGPPeerSpec>>,
        configuration: Option<Sourced<BGPConfigurationSpec>>,
    ) -> Vec<ObjectError> {
        let before = (&self.in_force.bgp_peers, &self.in_force.bgp);
        let (peers, configuration, refused) = announce::admit(before, peers, configuration);
        if before != (&peers, &configuration) {
            let written = store::write_json(&self.config.state_dir.join(BGP_FILE), &(&peers, &configuration));
            if let Err(e) = written {
                error!(error = %e, "cannot remember the BGP objects; a restart would not keep refused ones' last versions");
            }
            (self.in_force.bgp_peers, self.in_force.bgp) = (peers, configuration);
        }
        refused
    }

    /// What the configuration and the kernel know of the cluster and the objects need not repeat.
    pub(super) fn with_own_node(&self, objects: Objects) -> Objects {
        let objects = self.with_own_addresses(objects).with_dns_backends(&self.services.table);
        objects.with_api_servers(&self.in_force.endpoint_slices)
    }

    pub(super) fn with_own_addresses(&self, mut objects: Objects) -> Objects {
        objects.default_pod_cidrs.clone_from(&self.config.pod_cidrs);
        objects.cluster_dns.clone_from(&self.config.cluster_dns);
        let told = objects.nodes.get(&self.config.node);
        let mut own = told.map(|n| NodeInfo::clone(n)).unwrap_or_default();
        let of_uplink = |u: &Uplink| u.v4.map(IpAddr::V4).into_iter().chain(u.v6.map(IpAddr::V6));
        let gateways = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];
        for address in self.uplinks.iter().flat_map(of_uplink).chain(gateways) {
            if !own.addresses.contains(&address) {
                own.addresses.push(address);
            }
        }
        objects.nodes.insert(self.config.node.clone(), Arc::new(own));
        objects
    }
}

fn not_done(e: &NoSwitch) -> ObjectError {
    ObjectError { file: None, object: None, field: None, message: e.to_string() }
}

/// Whether both have the same partitions with the same ranges, whatever their rules are.
fn same_ranges(a: &Objects, b: &Objects) -> bool {
    a.default_pod_cidrs == b.default_pod_cidrs
        && a.partitions.diff(&b.partitions).all(|item| match item {
            DiffItem::Update { old: (_, old), new: (_, new) } => old.spec.pod_cidrs == new.spec.pod_cidrs,
            DiffItem::Add(..) | DiffItem::Remove(..) => false,
        })
}

/// Whether namespaces with pods are known in both, and of the same partitions.
fn same_homes(a: &Objects, b: &Objects) -> bool {
    let same_words = |a: &PartitionSpec, b: &PartitionSpec| {
        a.namespaces == b.namespaces && a.namespace_selector == b.namespace_selector
    };
    let same = |name: &str| a.partition_of_namespace(name) == b.partition_of_namespace(name);
    a.partitions.diff(&b.partitions).all(|item| match item {
        DiffItem::Update { old: (_, old), new: (_, new) } => same_words(&old.spec, &new.spec),
        DiffItem::Add(..) | DiffItem::Remove(..) => false,
    }) && a.namespaces.diff(&b.namespaces).all(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => !b.has_pods(name),
        DiffItem::Update { new: (name, _), .. } => same(name) || !b.has_pods(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_others_with_a_partition_or_a_range_and_not_with_a_rule() {
        let partition = |fields: serde_json::Value| {
            let mut spec = serde_json::json!({"policyID": 1, "podCIDRs": ["10.1.0.0/16"]});
            spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            Arc::new(Sourced::new(serde_json::from_value(spec).unwrap(), None))
        };
        let objects = |all: &[(&str, serde_json::Value)]| Objects {
            partitions: all
                .iter()
                .map(|(name, fields)| ((*name).to_string(), partition(fields.clone())))
                .collect(),
            ..Objects::default()
        };
        let none = || serde_json::json!({});
        let before = objects(&[("web", none())]);
        let with_rule = objects(&[("web", serde_json::json!({"ingress": [{}]}))]);
        assert!(same_ranges(&before, &with_rule) && before != with_rule);
        for other in [
            objects(&[]),
            objects(&[("web", none()), ("db", none())]),
            objects(&[("db", none())]),
            objects(&[("web", serde_json::json!({"podCIDRs": ["10.2.0.0/16"]}))]),
            Objects { default_pod_cidrs: vec!["10.64.0.0/16".parse().unwrap()], ..before.clone() },
        ] {
            assert!(!same_ranges(&before, &other), "{other:?}");
        }
    }

    #[test]
    fn homes_are_others_where_a_namespace_with_pods_is_of_another_partition() {
        let partition = |fields: serde_json::Value| {
            let mut spec = serde_json::json!({"policyID": 1});
            spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            Arc::new(Sourced::new(serde_json::from_value(spec).unwrap(), None))
        };
        let by_label = serde_json::json!({"namespaceSelector": {"matchLabels": {"tier": "web"}}});
        let labels = |tier: &str| Arc::new([("tier".to_owned(), tier.to_owned())].into_iter().collect());
        let objects = |tier: &str, pods: &[&str]| Objects {
            partitions: [("web".to_string(), partition(by_label.clone()))].into_iter().collect(),
            namespaces: [("shop".to_string(), labels(tier))].into_iter().collect(),
            pods: pods.iter().map(|key| ((*key).to_string(), Arc::default())).collect(),
            ..Objects::default()
        };
        let before = objects("web", &["shop/a"]);
        assert!(same_homes(&before, &before) && same_homes(&before, &objects("web", &[])));
        assert!(!same_homes(&before, &objects("db", &["shop/a"])));
        assert!(same_homes(&objects("db", &["shop/a"]), &objects("app", &["shop/a"])));
        // Nobody's home.
        assert!(same_homes(&objects("web", &["other/a"]), &objects("db", &["other/a"])));
        // Told of only now.
        let unknown = Objects { namespaces: Default::default(), ..before.clone() };
        assert!(!same_homes(&unknown, &before) && !same_homes(&before, &unknown));
        for fields in [serde_json::json!({"namespaces": ["shop"]}), serde_json::json!({})] {
            let partitions = [("web".to_string(), partition(fields))].into_iter().collect();
            assert!(!same_homes(&before, &Objects { partitions, ..before.clone() }));
        }
    }
}
