//! UPDATE (RFC 4271 section 4.3): its three fields, with the prefixes of MP_REACH_NLRI and MP_UNREACH_NLRI
//! (RFC 4760) beside those of the old fields, so that the RIB sees one kind of announcement.

use super::attributes::{self, Attributes, Received};
use super::notification::{Notification, code, update};
use super::reader::Reader;
use super::{Context, nlri};
use crate::Family;
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// Prefixes of one family that became reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    pub family: Family,
    pub next_hop: IpAddr,
    pub prefixes: Vec<IpNetwork>,
    /// One for each prefix where the peer adds paths (RFC 7911), else none. Sent to collectors of BMP alone.
    pub path_ids: Vec<u32>,
}

/// Prefixes of one family that are reachable no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreach {
    pub family: Family,
    pub prefixes: Vec<IpNetwork>,
    /// As in [`Reach`].
    pub path_ids: Vec<u32>,
}

impl Reach {
    pub fn new(family: Family, next_hop: IpAddr, prefixes: Vec<IpNetwork>) -> Reach {
        Reach { family, next_hop, prefixes, path_ids: Vec::new() }
    }
}

impl Unreach {
    pub fn new(family: Family, prefixes: Vec<IpNetwork>) -> Unreach {
        Unreach { family, prefixes, path_ids: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub attributes: Attributes,
    /// At most one in the NLRI field (IPv4 by an IPv4 next hop), at most one in MP_REACH_NLRI.
    pub reach: Vec<Reach>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Update {
    /// At most one in the old field (IPv4), at most one in MP_UNREACH_NLRI.
    pub unreach: Vec<Unreach>,
    pub announced: Option<Announced>,
    /// A fault in the attributes, for which the announced prefixes were moved to `unreach` (RFC 7606).
    /// Never sent.
    pub malformed: Option<Notification>,
}

impl Update {
    pub fn announce(attributes: Attributes, reach: Reach) -> Update {
        Update { announced: Some(Announced { attributes, reach: vec![reach] }), ..Update::default() }
    }

    pub fn withdraw(family: Family, prefixes: Vec<IpNetwork>) -> Update {
        Update { unreach: vec![Unreach::new(family, prefixes)], ..Update::default() }
    }

    /// RFC 4724 section 2.
    pub fn end_of_rib(family: Family) -> Update {
        Update::withdraw(family, Vec::new())
    }

    /// The family that this is the End-of-RIB of.
    pub fn is_end_of_rib(&self) -> Option<Family> {
        match (self.unreach.as_slice(), &self.announced, &self.malformed) {
            ([Unreach { family, prefixes, .. }], None, None) if prefixes.is_empty() => Some(*family),
            _ => None,
        }
    }

    pub(super) fn encode(&self, context: Context) -> Vec<u8> {
        let mut withdrawn = Vec::new();
        let mut fields = Vec::new();
        let mut nlri = Vec::new();
        for unreach in &self.unreach {
            match unreach.family {
                Family::Ipv4Unicast => {
                    nlri::encode_all(&unreach.prefixes, &unreach.path_ids, &mut withdrawn);
                }
                Family::Ipv6Unicast => attributes::encode_unreach(unreach, &mut fields),
            }
        }
        if let Some(Announced { attributes, reach }) = &self.announced {
            let mut classic = None;
            for reach in reach {
                match (reach.family, reach.next_hop) {
                    (Family::Ipv4Unicast, IpAddr::V4(next_hop)) => {
                        classic = Some(next_hop);
                        nlri::encode_all(&reach.prefixes, &reach.path_ids, &mut nlri);
                    }
                    _ => attributes::encode_reach(reach, &mut fields),
                }
            }
            attributes.encode(classic, context, &mut fields);
        }
        let mut out = Vec::with_capacity(4 + withdrawn.len() + fields.len() + nlri.len());
        for field in [&withdrawn, &fields] {
            out.extend_from_slice(&(field.len() as u16).to_be_bytes());
            out.extend_from_slice(field);
        }
        out.extend_from_slice(&nlri);
        out
    }

    pub(super) fn decode(body: &[u8], context: Context) -> Result<Update, Notification> {
        let malformed_list = || Notification::new(code::UPDATE, update::MALFORMED_LIST);
        let invalid_network = || Notification::new(code::UPDATE, update::INVALID_NETWORK);
        let add_path = context.adds_paths(Family::Ipv4Unicast);
        let ipv4 = |field| nlri::decode_all(field, Family::Ipv4Unicast, add_path).ok_or_else(invalid_network);

        let mut reader = Reader::new(body);
        let withdrawn = reader.counted16().ok_or_else(malformed_list)?;
        let field = reader.counted16().ok_or_else(malformed_list)?;
        if body == [0; 4] {
            return Ok(Update::end_of_rib(Family::Ipv4Unicast));
        }
        let withdrawn = ipv4(withdrawn.rest())?;
        let nlri = ipv4(reader.rest())?;
        let mut received = Received::decode(field, context)?;

        let mut unreach = Vec::new();
        if !withdrawn.prefixes.is_empty() {
            let nlri::Nlri { prefixes, path_ids } = withdrawn;
            unreach.push(Unreach { family: Family::Ipv4Unicast, prefixes, path_ids });
        }
        unreach.extend(received.unreach.take());
        let mut reach = Vec::new();
        let classic = !nlri.prefixes.is_empty();
        if classic {
            let next_hop = IpAddr::V4(received.next_hop.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED));
            let nlri::Nlri { prefixes, path_ids } = nlri;
            reach.push(Reach { family: Family::Ipv4Unicast, next_hop, prefixes, path_ids });
        }
        reach.extend(received.reach.take());
        Ok(judge(unreach, reach, received, classic))
    }
}

/// Announces `reach`, or withdraws it if its attributes do not allow that.
fn judge(mut unreach: Vec<Unreach>, reach: Vec<Reach>, received: Received, classic: bool) -> Update {
    if reach.is_empty() {
        return Update { unreach, announced: None, malformed: received.malformed };
    }
    match received.attributes(classic) {
        Ok(attributes) => {
            Update { unreach, announced: Some(Announced { attributes, reach }), malformed: None }
        }
        Err(malformed) => {
            let taken_back =
                |Reach { family, prefixes, path_ids, .. }| Unreach { family, prefixes, path_ids };
            unreach.extend(reach.into_iter().map(taken_back));
            Update { unreach, announced: None, malformed: Some(malformed) }
        }
    }
}
