//! From what the source says to what is in force: completed by what the node knows, admitted, and switched to if it is
//! another than before.

use super::{BGP_FILE, Node, refused_rules::RefusedRules, switch::NoSwitch};
use crate::{
    announce,
    net::{GATEWAY_V4, GATEWAY_V6, Uplink},
    reservation,
    source::Observed,
    store,
};
use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPPeerSpec},
};
use bulkhead_policy::{Admitted, Grounds, NodeInfo, Objects, Sourced, Witness, admit_change, strays};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Instant};
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
        let now = Instant::now();
        let ruled_otherwise = !objects.same_rules(&self.in_force.policy);
        // Of what is not tried strays need not be found.
        let (objects, grounds) = if ruled_otherwise && self.refused_rules.stand(&objects, now) {
            (objects, None)
        } else {
            let (objects, grounds) = self.with_strays(objects);
            (objects, Some(grounds))
        };
        let changed = self.compiled.is_none() || objects != self.in_force.policy;
        let mut taken = true;
        if changed {
            match self.try_switch(&objects, now) {
                Ok(()) => {
                    self.clean = clean;
                    self.last_change_millis = observed.noticed.elapsed().as_millis() as u64;
                }
                Err(e) => {
                    taken = false;
                    if e.is_refusal() {
                        refused.push(not_done(&e));
                        let followed =
                            if ruled_otherwise { self.follow_facts(objects) } else { Ok(Vec::new()) };
                        match followed {
                            Ok(faults) => refused.extend(faults),
                            // Nothing is to be had by trying the same again.
                            Err(e) if e.is_refusal() => refused.push(not_done(&e)),
                            Err(e) => failed.push(not_done(&e)),
                        }
                        refused.dedup();
                    } else {
                        error!(error = %e, "the change is not in force; the running generation stays");
                        failed.push(not_done(&e));
                    }
                }
            }
        } else {
            self.refused_rules = RefusedRules::default();
            self.clean |= clean;
        }
        if let Some(grounds) = grounds.filter(|_| taken) {
            self.grounds = grounds;
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

    /// As [`Self::switch`]; but while rules are known not to fit, no pod that comes is a reason to try them again.
    fn try_switch(&mut self, objects: &Objects, now: Instant) -> Result<(), NoSwitch> {
        let mut refused = std::mem::take(&mut self.refused_rules);
        if objects.same_rules(&self.in_force.policy) {
            return self.switch(objects.clone(), None, None);
        }
        let done = refused.attempt(objects, now, || self.switch(objects.clone(), None, None));
        self.refused_rules = refused;
        done
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
        let (objects, grounds) = self.with_strays(objects);
        if self.compiled.is_none() || objects != self.in_force.policy {
            self.switch(objects, None, None)?;
            self.clean = clean;
        }
        self.grounds = grounds;
        Ok(errors)
    }

    /// Whose addresses are that do not lie in their range, by what nodes have claimed; and the grounds of it, to be kept once it is in
    /// force.
    pub(super) fn with_strays(&self, objects: Objects) -> (Objects, Grounds) {
        let blocks = &self.in_force.blocks;
        let (strays, grounds) = match &self.compiled {
            Some(former) => self.grounds.follow(former, &objects, blocks),
            None => strays(&objects, blocks, self.witness()),
        };
        (Objects { strays, ..objects }, grounds)
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
