//! The programs at the uplinks follow what the rules choose.
//!
//! An interface that loses its address or its default route for a moment keeps its program: without it, whatever comes in is of
//! unknown origin.

use super::{Node, node_net, sources};
use crate::{
    config::Config,
    datapath::{Datapath, DatapathError, Hook},
    net::{
        Kernel, NetError, Uplink,
        node::{Seen, prepare_node},
        uplinks::{Candidate, UplinkRule, choose, could_choose},
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
        let may_return = |c: &Candidate| c.name == name && may_return(&config.uplinks, c);
        if !matches!(hook, Hook::FromUplink | Hook::ToUplink) {
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

/// Whether it may be an uplink again, whatever the rules were that chose it: what has addresses, none of which they choose, is none.
fn may_return(rules: &[UplinkRule], candidate: &Candidate) -> bool {
    candidate.addresses.is_empty() && could_choose(rules, candidate)
}

impl Hooks {
    /// Who is to lose its program, by what there is now.
    fn follow(&mut self, rules: &[UplinkRule], uplinks: &[Uplink], candidates: &[Candidate]) {
        let is_uplink = |name: &String| uplinks.iter().any(|uplink| uplink.name == *name);
        let is_one_that = |name: &String, may: fn(&[UplinkRule], &Candidate) -> bool| {
            candidates.iter().any(|c| c.name == *name && may(rules, c))
        };
        self.leaving.retain(|name| !is_uplink(name) && !is_one_that(name, may_return));
        // What is gone, has another name, or became somebody's port.
        self.leaving.extend(self.on.iter().filter(|name| !is_one_that(name, could_choose)).cloned());
    }

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

    /// For whoever asks it without holding the node: lists may be long.
    pub fn kernel(&self) -> Kernel {
        self.net.clone()
    }

    /// An uplink got an address late, was made anew, or is another by what the configuration says. `seen`: just now.
    pub async fn look_at_uplinks(&mut self, seen: Result<Seen, NetError>) {
        if self.follow_uplinks(seen) {
            let observed = self.source.borrow().clone();
            self.apply(observed).await;
        }
    }

    /// Whether it is time for it without a word of the kernel.
    pub(super) fn is_look_due(&self) -> bool {
        self.hooks.look_at.is_none_or(|at| at <= Instant::now())
    }

    /// Whether anything changed.
    pub(super) fn follow_uplinks(&mut self, seen: Result<Seen, NetError>) -> bool {
        self.hooks.look_at = Some(Instant::now() + LOOK);
        let Ok((candidates, loopback)) = seen else {
            self.hooks.look_at = None;
            return false;
        };
        // Without an uplink there is nothing to follow; what was known of it stays.
        let Ok(found) = choose(&self.config.uplinks, &candidates, &loopback) else { return false };
        let moved = found != self.uplinks && self.move_to(found);
        self.hooks.follow(&self.config.uplinks, &self.uplinks, &candidates);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::uplinks::Port;

    #[test]
    fn what_could_not_be_let_go_of_keeps_its_program_where_it_may_be_an_uplink_again() {
        let names = || BTreeSet::from(["eth1".to_owned()]);
        let mut hooks = Hooks { on: names(), ..Hooks::default() };
        let mut leaving = |port, addresses: &[&str]| {
            let eth1 = Candidate {
                name: "eth1".into(),
                ifindex: 2,
                mtu: 1500,
                port,
                is_inner: false,
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                is_default_route: false,
            };
            hooks.follow(&[], &[], &[eth1]);
            hooks.leaving.clone()
        };
        assert_eq!(leaving(Port::No, &[]), BTreeSet::new());
        assert_eq!(leaving(Port::OfBond(7), &[]), names());
        assert_eq!(leaving(Port::No, &["10.0.0.1"]), names());
        assert_eq!(leaving(Port::No, &[]), BTreeSet::new());
    }
}
