//! OPEN: the one we send, and what a peer's means together with it.

use super::{OpenFault, Settings};
use crate::Family;
use crate::wire::notification::{Notification, code};
use crate::wire::{AddPath, Capability, Context, GracefulRestart, LongLived, Open, RestartFamily};
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
    /// RFC 7313.
    pub enhanced_refresh: bool,
    /// RFC 8654.
    pub extended_messages: bool,
    /// The peer says several routes for a prefix of these families (RFC 7911).
    pub add_path: Vec<Family>,
    /// IPv4 routes may have an IPv6 next hop (RFC 8950).
    pub extended_next_hop: bool,
    /// Of two next hops of a route, the link-local one is meant.
    pub link_local: bool,
    /// The peer's graceful restart capability; ours is always sent.
    pub restart: Option<GracefulRestart>,
    /// How long the peer wants its routes kept after its restart time (RFC 9494).
    pub long_lived: Vec<LongLived>,
}

impl Negotiated {
    pub fn context(&self) -> Context {
        Context {
            four_octet_as: self.four_octet_as,
            external: self.external,
            extended_messages: self.extended_messages,
            add_path: Family::ALL.map(|family| self.add_path.contains(&family)),
            link_local: self.link_local,
        }
    }

    /// The peer asks for its routes to be kept while it restarts.
    pub fn peer_restarts_gracefully(&self) -> bool {
        self.restart.as_ref().is_some_and(|restart| !restart.families.is_empty())
    }

    /// RFC 8538: the end of the session by an error is a restart as well. We always offer that.
    pub fn survives_notifications(&self) -> bool {
        self.restart.as_ref().is_some_and(|restart| restart.notification)
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
        notification: true,
        time: settings.restart.time,
        families: settings.families.iter().map(|&family| RestartFamily { family, forwarding }).collect(),
    };
    let multiprotocol = settings.families.iter().map(|family| Capability::Multiprotocol(*family));
    let ipv4 = settings.families.contains(&Family::Ipv4Unicast);
    let next_hop =
        (settings.extended_next_hop && ipv4).then(|| Capability::ExtendedNextHop(vec![Family::Ipv4Unicast]));
    let receive = |&family: &Family| AddPath { family, receive: true, send: false };
    let add_path =
        settings.add_path.then(|| Capability::AddPath(settings.families.iter().map(receive).collect()));
    let others = [
        Capability::RouteRefresh,
        Capability::EnhancedRefresh,
        Capability::ExtendedMessage,
        Capability::GracefulRestart(restart),
        Capability::LongLived(Vec::new()),
        Capability::FourOctetAs(settings.local_asn),
    ];
    let others = next_hop.into_iter().chain(add_path).chain(others);
    Open {
        asn: settings.local_asn,
        hold_time: settings.timers.hold,
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
    let capabilities = &open.capabilities;
    let restart = capabilities.iter().find_map(|capability| match capability {
        Capability::GracefulRestart(restart) => Some(restart.clone()),
        _ => None,
    });
    let sends_paths = |family: &Family| {
        let mut offers = capabilities.iter().flat_map(|capability| match capability {
            Capability::AddPath(families) => families.as_slice(),
            _ => &[],
        });
        offers.any(|offer| offer.family == *family && offer.send)
    };
    let add_path =
        if settings.add_path { common.iter().copied().filter(sends_paths).collect() } else { Vec::new() };
    let next_hop =
        |c: &Capability| matches!(c, Capability::ExtendedNextHop(f) if f.contains(&Family::Ipv4Unicast));
    let long_lived = capabilities.iter().find_map(|capability| match capability {
        Capability::LongLived(families) => Some(families.clone()),
        _ => None,
    });
    Ok(Negotiated {
        peer_asn: open.asn,
        peer_router_id: open.router_id,
        external,
        hold_time: settings.timers.hold.min(open.hold_time),
        families: common,
        four_octet_as: capabilities.iter().any(|c| matches!(c, Capability::FourOctetAs(_))),
        route_refresh: capabilities.contains(&Capability::RouteRefresh),
        enhanced_refresh: capabilities.contains(&Capability::EnhancedRefresh),
        extended_messages: capabilities.contains(&Capability::ExtendedMessage),
        add_path,
        extended_next_hop: settings.extended_next_hop && capabilities.iter().any(next_hop),
        link_local: settings.link_local,
        // RFC 9494 section 4.1: nothing without graceful restart.
        long_lived: long_lived.filter(|_| restart.is_some()).unwrap_or_default(),
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
