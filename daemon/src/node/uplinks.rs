//! The programs at the uplinks follow what the rules choose.
//!
//! An interface that loses its address or its default route for a moment keeps its program: without it, whatever comes in is of
//! unknown origin.

use super::{Node, node_net, sources};
use crate::{
    config::Config,
    datapath::{Datapath, DatapathError, Hook},
    net::{
        NetError, Uplink,
        node::prepare_node,
        uplinks::{Candidate, choose, could_choose},
        watch_changes,
    },
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// How often the kernel is asked though it has told of no change.
const LOOK: Duration = Duration::from_secs(60);

/// What is followed.
#[derive(Default)]
pub(super) struct Hooks {
    /// Interfaces with the uplinks' program: the uplinks, and those that may be uplinks again.
    on: BTreeSet<String>,
    /// Those of them that are to lose it, which has failed.
    leaving: BTreeSet<String>,
    /// None: at once, since something has failed.
    look_at: Option<Instant>,
}

/// Those that have their programs, of what was found at the start; and all interfaces that have one, also of a daemon before us
/// that was configured otherwise: what is none any more is let go of.
pub(super) fn attach_found(
    config: &Config,
    datapath: &mut Datapath,
    found: Vec<Uplink>,
    candidates: &[Candidate],
) -> Result<(Vec<Uplink>, Hooks), DatapathError> {
    let (mut attached, mut failed) = (Vec::new(), None);
    for uplink in found {
        match datapath.attach_uplink(&uplink.name, uplink.ifindex) {
            Ok(()) => attached.push(uplink),
            Err(e) => {
                error!(uplink = uplink.name, error = %e, "cannot attach to an uplink; tried again");
                failed = Some(e);
            }
        }
    }
    if let (true, Some(e)) = (attached.is_empty(), failed) {
        return Err(e);
    }
    let mut hooks = Hooks::default();
    for (name, hook) in datapath.links_pinned()? {
        // The rules may be others: what has addresses, none of which they choose, is none.
        let may_return =
            |c: &Candidate| c.name == name && c.addresses.is_empty() && could_choose(&config.uplinks, c);
        if hook != Hook::FromUplink {
            continue;
        }
        if !attached.iter().any(|u| u.name == name) && !candidates.iter().any(may_return) {
            hooks.leaving.insert(name.clone());
        }
        hooks.on.insert(name);
    }
    hooks.let_go(datapath);
    Ok((attached, hooks))
}

impl Hooks {
    fn let_go(&mut self, datapath: &mut Datapath) {
        for name in std::mem::take(&mut self.leaving) {
            match datapath.detach_uplink(&name) {
                Ok(()) => {
                    self.on.remove(&name);
                }
                Err(e) => {
                    warn!(uplink = name, error = %e, "cannot let go of what is no uplink any more; tried again");
                    self.leaving.insert(name);
                    self.look_at = None;
                }
            }
        }
    }
}

impl Node {
    /// Tells that [`Self::look_at_uplinks`] may find something else than before.
    pub fn watch_uplinks(&self) -> Result<watch::Receiver<()>, NetError> {
        watch_changes(self.config.uplinks.is_empty())
    }

    /// An uplink got an address late, was made anew, or is another by what the configuration says.
    pub async fn look_at_uplinks(&mut self) {
        if self.follow_uplinks().await {
            let observed = self.source.borrow().clone();
            self.apply(observed).await;
        }
    }

    /// Whether it is time for it without a word of the kernel.
    pub(super) fn is_look_due(&self) -> bool {
        self.hooks.look_at.is_none_or(|at| at <= Instant::now())
    }

    /// Whether anything changed.
    pub(super) async fn follow_uplinks(&mut self) -> bool {
        self.hooks.look_at = Some(Instant::now() + LOOK);
        let Ok((candidates, loopback)) = self.net.candidates().await else {
            self.hooks.look_at = None;
            return false;
        };
        // Without an uplink there is nothing to follow; what was known of it stays.
        let Ok(found) = choose(&self.config.uplinks, &candidates, &loopback) else { return false };
        let moved = found != self.uplinks && self.move_to(found);
        // What is gone, has another name, or became somebody's port.
        let rules = &self.config.uplinks;
        let stays = |name: &String| candidates.iter().any(|c| c.name == *name && could_choose(rules, c));
        self.hooks.leaving.retain(|name| !self.uplinks.iter().any(|uplink| uplink.name == *name));
        self.hooks.leaving.extend(self.hooks.on.iter().filter(|name| !stays(name)).cloned());
        self.hooks.let_go(&mut self.datapath);
        moved
    }

    fn move_to(&mut self, found: Vec<Uplink>) -> bool {
        let mut now = Vec::new();
        for uplink in found {
            match self.datapath.attach_uplink(&uplink.name, uplink.ifindex) {
                Ok(()) => {
                    self.hooks.on.insert(uplink.name.clone());
                    now.push(uplink);
                }
                Err(e) => {
                    self.hooks.look_at = None;
                    warn!(uplink = uplink.name, error = %e, "cannot attach to an uplink that changed; tried again");
                }
            }
        }
        if now.is_empty() || now == self.uplinks {
            return false;
        }
        if let Err(e) = prepare_node(&now) {
            warn!(error = %e, "cannot make a new uplink keep its router advertisements");
        }
        info!(uplinks = ?now, "the uplinks have changed");
        self.bgp.set_uplink(sources(&now));
        self.endpoints.set_node(node_net(&now));
        self.uplinks = now;
        true
    }
}
