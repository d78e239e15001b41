//! What a change would do, before it is made: nothing here touches the kernel.

use super::Node;
use bulkhead_api::messages::{DiffRequest, ErrorReply, ObjectError, PolicyDiff, code};
use bulkhead_policy::{
    admit, changes,
    diff::{Cuts, Diff, Side, Tables},
    files,
};
use std::fmt::Display;

impl Node {
    /// The objects of these files in place of those in force, against what is in force.
    pub fn diff(&self, request: &DiffRequest) -> Result<PolicyDiff, ErrorReply> {
        let compiled = self.compiled.as_ref().ok_or_else(super::cni::starting)?;
        let in_force = &self.in_force.policy;
        let candidate = files::edited(&self.in_force, request).map_err(|e| refused(&[e]))?;
        let (objects, errors) = admit(in_force, self.with_own_node(candidate.policy));
        if !errors.is_empty() {
            return Err(refused(&errors));
        }
        let (objects, _) = self.with_strays(objects);
        // A change may move pods from one partition to another.
        let (pods, moved) = (self.local_pods(in_force), self.local_pods(&objects));
        let (to_come, _) = self.compile_to_fit(&objects, &moved).map_err(too_large)?;
        let mut interner = self.interner.clone();
        let mut side =
            |objects, pods| Side::of(objects, &mut interner, &self.config.node, pods).map_err(too_large);
        let (before, after) = (side(in_force, &pods)?, side(&objects, &moved)?);
        let diff = Diff::of(&before, &after);
        let mut reply = PolicyDiff {
            changed: changes(in_force, &objects),
            changes: diff.changes.clone(),
            cut_connections: 0,
        };
        let before = Tables { compiled, objects: in_force, local: &pods };
        let after = Tables { compiled: &to_come, objects: &objects, local: &moved };
        let cuts = Cuts::of(before, after, diff.addresses());
        self.count_cuts(&diff, &cuts, &mut reply)?;
        Ok(reply)
    }

    fn count_cuts(&self, diff: &Diff<'_>, cuts: &Cuts, reply: &mut PolicyDiff) -> Result<(), ErrorReply> {
        for entry in self.datapath.live_flows().map_err(super::views::kernel_error)? {
            let (key, flow) = entry.map_err(super::views::kernel_error)?;
            let Some(cut) = cuts.cut(&key, &flow) else { continue };
            reply.cut_connections += 1;
            let found = diff.find(cut.from, cut.to, cut.proto, cut.port);
            if let Some(change) = found.and_then(|n| reply.changes.get_mut(n)) {
                change.cut_connections += 1;
            }
        }
        Ok(())
    }
}

/// In the words in which the change itself would be refused.
fn too_large(e: impl Display) -> ErrorReply {
    ErrorReply {
        code: code::INVALID_CONFIG,
        msg: "the change would not come into force".into(),
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
