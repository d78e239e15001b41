//! What a change would do, before it is made: nothing here touches the kernel.

use super::Node;
use bulkhead_api::messages::{DiffRequest, ErrorReply, ObjectError, PolicyDiff, code};
use bulkhead_ebpf_abi::{
    DIR_EGRESS, DIR_INGRESS, FLOW_CLOSED, FLOW_KEEP_EGRESS, FLOW_KEEP_INGRESS, FLOW_UNASKED, Flow, FlowKey,
};
use bulkhead_policy::{
    CompileError, admit, changes,
    diff::{Diff, Side},
    files,
};
use std::net::IpAddr;

impl Node {
    /// The objects of these files in place of those in force, against what is in force.
    pub fn diff(&self, request: &DiffRequest) -> Result<PolicyDiff, ErrorReply> {
        self.compiled.as_ref().ok_or_else(super::cni::starting)?;
        let in_force = &self.in_force.policy;
        let candidate = files::edited(&self.in_force, request).map_err(|e| refused(&[e]))?;
        let (objects, errors) = admit(in_force, self.with_own_node(candidate.policy));
        if !errors.is_empty() {
            return Err(refused(&errors));
        }
        let mut interner = self.interner.clone();
        let pods: Vec<_> = self.endpoints.iter().map(super::local_pod).collect();
        let mut side =
            |objects| Side::of(objects, &mut interner, &self.config.node, &pods).map_err(too_large);
        let (before, after) = (side(in_force)?, side(&objects)?);
        let diff = Diff::of(&before, &after);
        let mut reply = PolicyDiff {
            changed: changes(in_force, &objects),
            changes: diff.changes.clone(),
            cut_connections: 0,
        };
        self.count_cuts(&diff, &after, &mut reply)?;
        Ok(reply)
    }

    fn count_cuts(&self, diff: &Diff<'_>, after: &Side, reply: &mut PolicyDiff) -> Result<(), ErrorReply> {
        for entry in self.datapath.live_flows().map_err(super::views::kernel_error)? {
            let (key, flow) = entry.map_err(super::views::kernel_error)?;
            let Some(cut) = Connection::of(&key, &flow).filter(|c| c.is_cut(&flow, after)) else { continue };
            reply.cut_connections += 1;
            let found = diff.find(cut.from, cut.to, cut.proto, cut.port);
            if let Some(change) = found.and_then(|n| reply.changes.get_mut(n)) {
                change.cut_connections += 1;
            }
        }
        Ok(())
    }
}

/// A live connection in its initiator's direction.
struct Connection {
    from: IpAddr,
    to: IpAddr,
    proto: u8,
    port: u16,
}

impl Connection {
    /// None: begun by the node itself, which no policy cuts, or closed by both sides, which nobody misses.
    fn of(key: &FlowKey, flow: &Flow) -> Option<Self> {
        if flow.flags & (FLOW_UNASKED | FLOW_CLOSED) != 0 {
            return None;
        }
        let [(from, _), (to, _)] = key.ends(flow.flags);
        Some(Self { from: from.to_ip(), to: to.to_ip(), proto: key.proto, port: flow.service_port })
    }

    /// Each end of this node that has admitted it is asked again, as the kernel will.
    fn is_cut(&self, flow: &Flow, after: &Side) -> bool {
        [(DIR_EGRESS, FLOW_KEEP_EGRESS), (DIR_INGRESS, FLOW_KEEP_INGRESS)].into_iter().any(|(dir, keep)| {
            let kept = flow.flags & keep != 0;
            flow.generations[dir as usize] != 0
                && after.cuts(dir, self.from, self.to, self.proto, self.port, kept)
        })
    }
}

fn too_large(e: CompileError) -> ErrorReply {
    ErrorReply {
        code: code::INVALID_CONFIG,
        msg: "the change does not compile".into(),
        details: e.to_string(),
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
