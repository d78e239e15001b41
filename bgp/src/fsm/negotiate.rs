//! OPEN: the one we send, and what a peer's means together with it.

use super::{OpenFault, Settings};
use crate::Family;
use crate::wire::notification::{Notification, code};
use crate::wire::{Capability, Context, GracefulRestart, Open, RestartFamily};
use std::net::Ipv4Addr;

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub peer_asn: u32,
    pub peer_router_id: Ipv4Addr,
    /// The peer is in another AS.
    pub external: bool,
    /// Seconds; 0: no keepalives.
    pub hold_time: u16,
    pub families: Vec<Family>,
    pub four_octet_as: bool,
    pub route_refresh: bool,
    /// The peer's graceful restart capability; ours is always sent.
    pub restart: Option<GracefulRestart>,
}

impl Negotiated {
    pub fn context(&self) -> Context {
        Context { four_octet_as: self.four_octet_as, external: self.external }
    }

    /// The peer asks for its routes to be kept while it restarts.
    pub fn peer_restarts_gracefully(&self) -> bool {
        self.restart.as_ref().is_some_and(|restart| !restart.families.is_empty())
    }

    /// The peer says that it still forwards what it announced of `family` before it restarted.
    pub fn peer_kept_forwarding(&self, family: Family) -> bool {
        let families = self.restart.iter().flat_map(|restart| &restart.families);
        families.into_iter().any(|kept| kept.family == family && kept.forwarding)
    }
}

/// `established_before`: a session with this peer was established in this process.
pub(super) fn our_open(settings: &Settings, established_before: bool) -> Open {
    let forwarding = settings.restart.forwarding_preserved || established_before;
    let restart = GracefulRestart {
        restarting: settings.restart.restarting && !established_before,
        time: settings.restart.time,
        families: settings.families.iter().map(|&family| RestartFamily { family, forwarding }).collect(),
    };
    let multiprotocol = settings.families.iter().map(|family| Capability::Multiprotocol(*family));
    let others = [
        Capability::RouteRefresh,
        Capability::GracefulRestart(restart),
        Capability::FourOctetAs(settings.local_asn),
    ];
    Open {
        asn: settings.local_asn,
        hold_time: settings.hold_time,
        router_id: settings.router_id,
        capabilities: multiprotocol.chain(others).collect(),
    }
}

/// RFC 4271 section 6.2, RFC 6286 for identifiers, RFC 5492 for capabilities.
pub(super) fn negotiate(settings: &Settings, open: &Open) -> Result<Negotiated, OpenFault> {
    if open.asn != settings.peer_asn {
        return Err(OpenFault::PeerAs { expected: settings.peer_asn, got: open.asn });
    }
    let external = open.asn != settings.local_asn;
    if open.router_id.is_unspecified() || (!external && open.router_id == settings.router_id) {
        return Err(OpenFault::Identifier(open.router_id));
    }
    if matches!(open.hold_time, 1 | 2) {
        return Err(OpenFault::HoldTime(open.hold_time));
    }
    let theirs = families(open);
    let common: Vec<Family> = settings.families.iter().copied().filter(|f| theirs.contains(f)).collect();
    if common.is_empty() {
        return Err(OpenFault::NoCommonFamily);
    }
    let restart = open.capabilities.iter().find_map(|capability| match capability {
        Capability::GracefulRestart(restart) => Some(restart.clone()),
        _ => None,
    });
    let capabilities = &open.capabilities;
    Ok(Negotiated {
        peer_asn: open.asn,
        peer_router_id: open.router_id,
        external,
        hold_time: settings.hold_time.min(open.hold_time),
        families: common,
        four_octet_as: capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_))),
        route_refresh: capabilities.contains(&Capability::RouteRefresh),
        restart,
    })
}

/// A peer that offers no multiprotocol capability at all speaks IPv4 unicast (RFC 4760 section 8).
fn families(open: &Open) -> Vec<Family> {
    let is_multiprotocol = |capability: &Capability| match capability {
        Capability::Multiprotocol(_) => true,
        Capability::Unknown { code, .. } => *code == 1,
        _ => false,
    };
    if !open.capabilities.iter().any(is_multiprotocol) {
        return vec![Family::Ipv4Unicast];
    }
    let ours = open.capabilities.iter().filter_map(|capability| match capability {
        Capability::Multiprotocol(family) => Some(*family),
        _ => None,
    });
    ours.collect()
}

/// RFC 5492 section 5: data of 2/7 lists the capabilities that are missed.
pub(super) fn refusal(settings: &Settings, fault: OpenFault) -> Notification {
    let data = match fault {
        OpenFault::NoCommonFamily => {
            let missed = |family: &Family| {
                let [high, low] = family.afi().to_be_bytes();
                [1, 4, high, low, 0, family.safi()]
            };
            settings.families.iter().flat_map(missed).collect()
        }
        _ => Vec::new(),
    };
    Notification::with_data(code::OPEN, fault.subcode(), data)
}

/// Whether we are the one whose connection stays when two collide (RFC 4271 section 6.8, RFC 6286
/// section 2.3).
pub(super) fn ours_stays(settings: &Settings, negotiated: &Negotiated) -> bool {
    (settings.router_id, settings.local_asn) > (negotiated.peer_router_id, negotiated.peer_asn)
}
