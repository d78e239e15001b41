//! Going back: the objects of a former generation, under a new number, held against the source until released.

use super::{Node, refused_rules::RefusedRules};
use bulkhead_api::messages::{ErrorReply, GenerationInfo, GenerationsRequest, Rollback, code};
use bulkhead_policy::{Objects, admit};
use tracing::info;

fn not_kept(generation: u32) -> ErrorReply {
    ErrorReply {
        code: code::INVALID_CONFIG,
        msg: format!("the objects of generation {generation} are not kept"),
        details: "`bulkhead policy generations` lists those that are".into(),
    }
}

impl Node {
    pub fn generations(&self, which: GenerationsRequest) -> Result<Vec<GenerationInfo>, ErrorReply> {
        let Some(number) = which.generation else { return Ok(self.history.list()) };
        match self.history.told(number) {
            Some(info) => Ok(vec![info]),
            None => Err(not_kept(number)),
        }
    }

    /// Brings former objects back. Of the source only facts go on to count (nodes, pods), not rules, until [`Self::release`].
    pub async fn rollback(&mut self, request: Rollback) -> Result<GenerationInfo, ErrorReply> {
        let to = request.to.or_else(|| self.history.previous()).ok_or_else(|| ErrorReply {
            code: code::INVALID_CONFIG,
            msg: "there is no generation to go back to".into(),
            details: "this node has had one set of objects".into(),
        })?;
        let former =
            self.history.objects(to).map_err(|e| failed(e.to_string()))?.ok_or_else(|| not_kept(to))?;
        let facts = self.in_force.policy.clone();
        let candidate = self.with_own_node(facts.ruled_by(former));
        let (objects, refused) = admit(&Objects::default(), candidate);
        if !refused.is_empty() {
            let reasons: Vec<_> = refused.iter().map(ToString::to_string).collect();
            return Err(failed(reasons.join("; ")));
        }
        let (objects, grounds) = self.with_strays(objects);
        self.switch(objects, Some(to), None).map_err(|e| failed(e.to_string()))?;
        self.grounds = grounds;
        self.refused_rules = RefusedRules::default();
        self.clean = true;
        let held = self.history.hold(Some(to));
        // Whatever the disk says: it is in force.
        self.follow().await;
        let versions = self.source.borrow().versions.clone();
        self.report(&versions, false);
        held.map_err(|e| failed(format!("in force, but the hold is not on disk: {e}")))?;
        info!(to, "rolled back; the source is held");
        self.in_force_now()
    }

    /// Ends the hold: what the source says now comes into force.
    pub async fn release(&mut self) -> Result<GenerationInfo, ErrorReply> {
        if self.history.held().is_none() {
            return Err(ErrorReply {
                code: code::INVALID_CONFIG,
                msg: "the source is not held".into(),
                details: String::new(),
            });
        }
        self.history.hold(None).map_err(|e| failed(e.to_string()))?;
        self.refused_rules = RefusedRules::default();
        info!("released; the source counts again");
        let observed = self.source.borrow().clone();
        self.apply(observed).await;
        self.in_force_now()
    }

    /// What the source says; while it is held, its facts only.
    pub(super) fn unless_held(&self, from_source: Objects) -> Objects {
        match self.history.held() {
            Some(_) => from_source.ruled_by(self.in_force.policy.clone()),
            None => from_source,
        }
    }

    fn in_force_now(&self) -> Result<GenerationInfo, ErrorReply> {
        self.history.list().into_iter().next().ok_or_else(|| failed("nothing is in force".into()))
    }
}

fn failed(details: String) -> ErrorReply {
    ErrorReply { code: code::IO_FAILURE, msg: "what is in force stays".into(), details }
}
