//! The programs at the uplinks follow what the rules choose.
//!
//! An interface that loses its address or its default route for a moment keeps its program: without it, whatever comes in is of
//! unknown origin.

use super::{Node, node_net, sources};
use crate::{
    config::Config,
    datapath::{Datapath, DatapathError, Hook},
    net::{
        Uplink,
        node::prepare_node,
        uplinks::{Candidate, choose, could_choose},
    },
};
use std::{collections::BTreeSet, net::IpAddr};
use tracing::{error, info, warn};

/// Those that have their programs, of what was found at the start; and all interfaces that have one, also of a daemon before us
/// that was configured otherwise: what is none any more is let go of.
pub(super) fn attach_found(
    config: &Config,
    datapath: &mut Datapath,
    found: Vec<Uplink>,
    candidates: &[Candidate],
) -> Result<(Vec<Uplink>, BTreeSet<String>), DatapathError> {
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
    let mut hooked = BTreeSet::new();
    for (name, hook) in datapath.links_pinned()? {
        // The rules may be others: what has addresses, none of which they choose, is none.
        let may_return =
            |c: &Candidate| c.name == name && c.addresses.is_empty() && could_choose(&config.uplinks, c);
        if hook != Hook::FromUplink {
            continue;
        }
        if attached.iter().any(|u| u.name == name) || candidates.iter().any(may_return) {
            hooked.insert(name);
        } else {
            datapath.detach_uplink(&name)?;
        }
    }
    Ok((attached, hooked))
}

impl Node {
    /// An uplink got an address late, was made anew, or is another by what the configuration says. Whether anything changed.
    pub(super) fn follow_uplinks(&mut self, candidates: &[Candidate], loopback: &[IpAddr]) -> bool {
        // Without an uplink there is nothing to follow; what was known of it stays.
        let Ok(found) = choose(&self.config.uplinks, candidates, loopback) else { return false };
        let moved = found != self.uplinks && self.move_to(found);
        self.let_go(candidates);
        moved
    }

    fn move_to(&mut self, found: Vec<Uplink>) -> bool {
        let mut now = Vec::new();
        for uplink in found {
            match self.datapath.attach_uplink(&uplink.name, uplink.ifindex) {
                Ok(()) => {
                    self.hooked.insert(uplink.name.clone());
                    now.push(uplink);
                }
                Err(e) => {
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

    /// Of what is gone, has another name, or became somebody's port.
    fn let_go(&mut self, candidates: &[Candidate]) {
        let rules = &self.config.uplinks;
        let stays = |name: &String| candidates.iter().any(|c| c.name == *name && could_choose(rules, c));
        let gone: Vec<_> = self.hooked.iter().filter(|name| !stays(name)).cloned().collect();
        for name in gone {
            match self.datapath.detach_uplink(&name) {
                Ok(()) => {
                    self.hooked.remove(&name);
                }
                Err(e) => {
                    warn!(uplink = name, error = %e, "cannot let go of what is no uplink any more; tried again")
                }
            }
        }
    }
}
