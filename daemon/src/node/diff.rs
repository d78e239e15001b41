//! What a change would do, before it is made: nothing here touches the kernel.

use super::Node;
use crate::source;
use bulkhead_api::messages::{DiffRequest, ErrorReply, ObjectError, PolicyDiff, code};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, FLOW_INITIATOR_LOW, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_OWN_NODE, Flow,
    FlowKey,
};
use bulkhead_policy::{
    Local, Objects, admit, compile,
    diff::{self, Side},
};
use std::net::IpAddr;

impl Node {
    /// The objects of these files in place of those in force, against what is in force.
    pub fn diff(&self, request: &DiffRequest) -> Result<PolicyDiff, ErrorReply> {
        let compiled = self.compiled.as_ref().ok_or_else(super::cni::starting)?;
        let before = Side { objects: &self.in_force.policy, compiled };
        let mut candidate = self.in_force.clone();
        for file in &request.files {
            let objects = source::parse(&file.name, &file.text).map_err(|e| refused(&[e]))?;
            objects.into_iter().for_each(|object| candidate.insert(object));
        }
        let (objects, errors) = admit(before.objects, self.with_own_node(candidate.policy));
        if !errors.is_empty() {
            return Err(refused(&errors));
        }
        if [before.objects, &objects].into_iter().any(judges_pods) {
            return Err(ErrorReply {
                code: code::UNSUPPORTED_FIELD,
                msg: "diff compares rules of partitions only".into(),
                details: "a NetworkPolicy or ClusterNetworkPolicy is in force or in the files, and the answer would leave it \
                          out; `bulkhead explain` knows them all"
                    .into(),
            });
        }
        let mut interner = self.interner.clone();
        let pods: Vec<_> = self.endpoints.iter().map(super::local_pod).collect();
        let local = Local { node: &self.config.node, pods: &pods, partitions: None, former: None };
        let compiled = compile(&objects, &mut interner, &local).map_err(|e| ErrorReply {
            code: code::INVALID_CONFIG,
            msg: "the change does not compile".into(),
            details: e.to_string(),
        })?;
        let after = Side { objects: &objects, compiled: &compiled };
        let mut diff = PolicyDiff {
            changed: crate::history::changes(before.objects, after.objects),
            changes: diff::diff(before, after),
            cut_connections: 0,
        };
        self.count_cuts(before, after, &mut diff)?;
        Ok(diff)
    }

    fn count_cuts(&self, before: Side<'_>, after: Side<'_>, diff: &mut PolicyDiff) -> Result<(), ErrorReply> {
        for entry in self.datapath.flows() {
            let (key, flow) = entry.map_err(super::views::kernel_error)?;
            let Some(cut) = Connection::of(&key, &flow).filter(|c| c.is_cut(&flow, after)) else { continue };
            diff.cut_connections += 1;
            let of_change = diff
                .changes
                .iter_mut()
                .find(|c| diff::speaks_of(c, before, after, cut.from, cut.to, cut.proto, cut.port));
            if let Some(change) = of_change {
                change.cut_connections += 1;
            }
        }
        Ok(())
    }
}

/// Rules that judge pods one by one: the comparison goes by ranges of partitions.
fn judges_pods(objects: &Objects) -> bool {
    !objects.network_policies.is_empty() || !objects.cluster_network_policies.is_empty()
}

/// A live connection in its initiator's direction.
struct Connection {
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    port: u16,
}

impl Connection {
    /// None: begun by the node itself, which no policy cuts.
    fn of(key: &FlowKey, flow: &Flow) -> Option<Self> {
        if flow.flags & FLOW_OWN_NODE != 0 {
            return None;
        }
        let low_first = flow.flags & FLOW_INITIATOR_LOW != 0;
        let (from, to) = if low_first { (key.low, key.high) } else { (key.high, key.low) };
        Some(Self { from: from.to_ip(), to: to.to_ip(), proto: key.proto, port: flow.service_port })
    }

    /// Each end of this node that has admitted it is asked again, as the kernel will; a kept one is not.
    fn is_cut(&self, flow: &Flow, after: Side<'_>) -> bool {
        [(DIR_EGRESS, FLOW_KEEP_EGRESS), (DIR_INGRESS, FLOW_KEEP_INGRESS)].into_iter().any(|(dir, keep)| {
            let asked = flow.admitted[dir as usize].generation != 0 && flow.flags & keep == 0;
            asked && !after.admits(dir, self.from, self.to, self.proto, self.port)
        })
    }
}

fn refused(errors: &[ObjectError]) -> ErrorReply {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    ErrorReply {
        code: code::INVALID_CONFIG,
        msg: "the change would be refused".into(),
        details: lines.join("\n"),
    }
}
