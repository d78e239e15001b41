//! What is to go another way: commands, and what comes of them now.

use super::{Bgp, reader, unix_seconds};
use crate::drain::{self, Drains};
use bulkhead_api::messages::{DrainInfo, DrainRequest, DrainScope, ErrorReply, code};
use bulkhead_bgp::{Family, PeerStatus, fsm::StateName, neighbour::Leaving};
use std::collections::BTreeMap;

impl Bgp {
    /// What is asked for, from the next [`Self::apply`] on; until it is undone.
    pub fn drain(&mut self, request: &DrainRequest) -> Result<(), ErrorReply> {
        let invalid = |msg: String, details: String| ErrorReply { code: code::INVALID_CONFIG, msg, details };
        if self.speaker.is_none() && !request.undo {
            let details = "there is no BGPConfiguration in force, or no BGPPeer for this node";
            return Err(invalid("this node announces nothing".into(), details.into()));
        }
        if let DrainScope::Peers(names) = &request.what {
            let known = self.peers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            if let Some(unknown) = names.iter().find(|name| !self.peers.contains_key(*name)) {
                return Err(invalid(
                    format!("no BGP peer `{unknown}` on this node"),
                    format!("there are: {known}"),
                ));
            }
            let lost = self.only_way_among(names);
            if names.is_empty() || (lost.is_some() && !request.undo) {
                let carry = lost
                    .map(|family| format!("no other carries {}: ", reader::family_name(&family)))
                    .unwrap_or_default();
                return Err(invalid(
                    "a node keeps one way out".into(),
                    format!("{carry}of its peers ({known}) name some, and not all: or ask for everything"),
                ));
            }
        }
        self.drains.command(request, unix_seconds()).map_err(|e| ErrorReply {
            code: code::IO_FAILURE,
            msg: "nothing has changed: this could not be remembered, and would be forgotten with the daemon's end".into(),
            details: e.to_string(),
        })
    }

    /// A family of these peers that no peer carries that stays.
    fn only_way_among(&self, names: &[String]) -> Option<Family> {
        let now = unix_seconds();
        let stays = |name: &String| !names.contains(name) && self.drains.annotated(name, now) == Leaving::No;
        let others = self.peers.values().filter(|peer| stays(&peer.name)).flat_map(|peer| &peer.families);
        let gone =
            self.peers.values().filter(|peer| names.contains(&peer.name)).flat_map(|peer| &peer.families);
        drain::uncarried(gone.copied(), others.copied())
    }

    pub(super) async fn leaving_now(&self, now: u64) -> (Leaving, Leaving, BTreeMap<String, Leaving>) {
        let statuses = match &self.speaker {
            Some((speaker, _)) if *self.drains != Drains::default() => speaker.peers().await,
            _ => Vec::new(),
        };
        let stays = |name: &str| self.drains.peer(name, now, true) == Leaving::No;
        let established = || statuses.iter().filter(|peer| peer.state == StateName::Established);
        let others = established().filter(|peer| stays(configured(peer))).flat_map(|peer| &peer.carried);
        let others: Vec<Family> = others.copied().collect();
        let announced = |family: &Family| self.routes.keys().any(|prefix| Family::of(prefix) == *family);
        let of_peers = self.peers.iter().map(|(name, config)| {
            let own: Vec<&[Family]> =
                established().filter(|peer| configured(peer) == name).map(|p| &*p.families).collect();
            let own = if own.is_empty() { config.families.clone() } else { own.concat() };
            let own = own.into_iter().filter(&announced);
            let other = drain::uncarried(own, others.iter().copied()).is_none();
            (name.clone(), self.drains.peer(name, now, other))
        });
        (self.drains.services(now), self.drains.blocks(now), of_peers.collect())
    }

    /// Whether [`Self::apply`] has something to withdraw, or to bring back, since it was called.
    pub async fn drain_is_due(&self) -> bool {
        self.speaker.is_some() && self.leaving_now(unix_seconds()).await != self.leaving
    }

    /// What is being drained.
    pub fn draining(&self) -> Vec<DrainInfo> {
        self.drains.told(unix_seconds())
    }
}

/// The name of the object that the peer comes of: one out of a range has the range's name in front.
fn configured(peer: &PeerStatus) -> &str {
    peer.name.split('[').next().unwrap_or_default()
}
