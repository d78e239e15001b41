//! Path attributes (RFC 4271 section 4.3, RFC 1997, RFC 4360, RFC 4456, RFC 4760, RFC 8092): their fields,
//! written and read.
//!
//! Only attributes that are used are kept; the speaker hands no route on, so others need not survive.
//! What a fault in one of them means follows RFC 7606: most withdraw the routes they came with, a few
//! cannot be told apart from the loss of the stream and end the session.

use super::Context;
use super::as_path::AsPath;
use super::nlri;
use super::notification::{Notification, code, update};
use super::reader::Reader;
use super::update::{Reach, Unreach};
use crate::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

mod kind {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MED: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITIES: u8 = 8;
    pub const ORIGINATOR: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH: u8 = 14;
    pub const MP_UNREACH: u8 = 15;
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const LARGE_COMMUNITIES: u8 = 32;
}

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED: u8 = 0x10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Origin {
    #[default]
    Igp = 0,
    Egp = 1,
    Incomplete = 2,
}

/// RFC 8092: global administrator and two numbers of its own.
pub type LargeCommunity = [u32; 3];

/// What prefixes of one UPDATE share, whatever their family; next hops are in [`Reach`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: AsPath,
    pub med: Option<u32>,
    /// Never from or to an external peer.
    pub local_pref: Option<u32>,
    /// RFC 1997.
    pub communities: Vec<u32>,
    /// RFC 4360, as they stand on the wire.
    pub extended_communities: Vec<u64>,
    /// RFC 8092.
    pub large_communities: Vec<LargeCommunity>,
    /// Who brought a route into this AS, where a reflector handed it on (RFC 4456). Never to or from an
    /// external peer, and so is the next.
    pub originator: Option<Ipv4Addr>,
    /// The reflectors that it passed.
    pub cluster_list: Vec<u32>,
}

fn put(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, kind, length]),
        Err(_) => put_long(out, flags, kind, value.len()),
    }
    out.extend_from_slice(value);
}

fn put_long(out: &mut Vec<u8>, flags: u8, kind: u8, length: usize) {
    let [high, low] = (length as u16).to_be_bytes();
    out.extend_from_slice(&[flags | EXTENDED, kind, high, low]);
}

impl Attributes {
    /// `next_hop` is NEXT_HOP, for the prefixes of the NLRI field.
    pub(super) fn encode(&self, next_hop: Option<Ipv4Addr>, context: Context, out: &mut Vec<u8>) {
        put(out, TRANSITIVE, kind::ORIGIN, &[self.origin as u8]);
        put(out, TRANSITIVE, kind::AS_PATH, &self.as_path.encode(context.four_octet_as));
        if let Some(next_hop) = next_hop {
            put(out, TRANSITIVE, kind::NEXT_HOP, &next_hop.octets());
        }
        if let Some(med) = self.med {
            put(out, OPTIONAL, kind::MED, &med.to_be_bytes());
        }
        if let Some(local_pref) = self.local_pref {
            put(out, TRANSITIVE, kind::LOCAL_PREF, &local_pref.to_be_bytes());
        }
        if !self.communities.is_empty() {
            let value: Vec<u8> = self.communities.iter().flat_map(|c| c.to_be_bytes()).collect();
            put(out, OPTIONAL | TRANSITIVE, kind::COMMUNITIES, &value);
        }
        if let Some(originator) = self.originator {
            put(out, OPTIONAL, kind::ORIGINATOR, &originator.octets());
        }
        if !self.cluster_list.is_empty() {
            let value: Vec<u8> = self.cluster_list.iter().flat_map(|id| id.to_be_bytes()).collect();
            put(out, OPTIONAL, kind::CLUSTER_LIST, &value);
        }
        if !self.extended_communities.is_empty() {
            let value: Vec<u8> = self.extended_communities.iter().flat_map(|c| c.to_be_bytes()).collect();
            put(out, OPTIONAL | TRANSITIVE, kind::EXTENDED_COMMUNITIES, &value);
        }
        if !self.large_communities.is_empty() {
            let value: Vec<u8> =
                self.large_communities.iter().flatten().flat_map(|part| part.to_be_bytes()).collect();
            put(out, OPTIONAL | TRANSITIVE, kind::LARGE_COMMUNITIES, &value);
        }
        if !context.four_octet_as && self.as_path.needs_four_octets() {
            put(out, OPTIONAL | TRANSITIVE, kind::AS4_PATH, &self.as_path.encode(true));
        }
    }
}

/// MP_REACH_NLRI (RFC 4760 section 3). Its length field always has two octets, so that what it adds to a
/// message does not depend on the number of prefixes.
pub(super) fn encode_reach(reach: &Reach, out: &mut Vec<u8>) {
    let mut value = reach.family.afi().to_be_bytes().to_vec();
    value.push(reach.family.safi());
    match reach.next_hop {
        IpAddr::V4(address) => {
            value.push(4);
            value.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            value.push(16);
            value.extend_from_slice(&address.octets());
        }
    }
    value.push(0);
    nlri::encode_all(&reach.prefixes, &reach.path_ids, &mut value);
    put_long(out, OPTIONAL, kind::MP_REACH, value.len());
    out.extend_from_slice(&value);
}

/// MP_UNREACH_NLRI (RFC 4760 section 4).
pub(super) fn encode_unreach(unreach: &Unreach, out: &mut Vec<u8>) {
    let mut value = unreach.family.afi().to_be_bytes().to_vec();
    value.push(unreach.family.safi());
    nlri::encode_all(&unreach.prefixes, &unreach.path_ids, &mut value);
    put_long(out, OPTIONAL, kind::MP_UNREACH, value.len());
    out.extend_from_slice(&value);
}

/// The attributes of a received UPDATE, as far as they could be read.
#[derive(Debug, Default)]
pub(super) struct Received {
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    pub next_hop: Option<Ipv4Addr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: Vec<u32>,
    extended_communities: Vec<u64>,
    large_communities: Vec<LargeCommunity>,
    originator: Option<Ipv4Addr>,
    cluster_list: Vec<u32>,
    pub reach: Option<Reach>,
    pub unreach: Option<Unreach>,
    /// The first fault that RFC 7606 wants treated as withdrawal.
    pub malformed: Option<Notification>,
}

struct Raw<'a> {
    flags: u8,
    kind: u8,
    value: &'a [u8],
    /// With its header: the data of a NOTIFICATION about it.
    whole: &'a [u8],
}

impl<'a> Raw<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<Raw<'a>> {
        let before = reader.rest();
        let (flags, kind) = (reader.u8()?, reader.u8()?);
        let value = if flags & EXTENDED == 0 { reader.counted8()? } else { reader.counted16()? };
        let whole = before.get(..before.len() - reader.rest().len())?;
        Some(Raw { flags, kind, value: value.rest(), whole })
    }

    fn fault(&self, subcode: u8) -> Notification {
        Notification::with_data(code::UPDATE, subcode, self.whole)
    }

    fn u32(&self) -> Result<u32, Fault> {
        let value = self.value.try_into().map_err(|_| Fault::Withdraw(self.fault(update::LENGTH)))?;
        Ok(u32::from_be_bytes(value))
    }
}

enum Fault {
    /// Treat as withdrawal.
    Withdraw(Notification),
    /// End the session.
    Reset(Notification),
}

impl Received {
    /// Reads the attributes field. An error ends the session.
    pub fn decode(field: Reader<'_>, context: Context) -> Result<Received, Notification> {
        let mut received = Received::default();
        let mut seen = [false; 256];
        let mut reader = field;
        while !reader.is_empty() {
            let Some(raw) = Raw::read(&mut reader) else {
                // RFC 7606 section 4: the rest of the field cannot be read, the message can.
                received.note(Notification::new(code::UPDATE, update::MALFORMED_LIST));
                break;
            };
            if std::mem::replace(&mut seen[usize::from(raw.kind)], true) {
                // RFC 7606 section 3 g: the first counts, but for the two that hold prefixes.
                if matches!(raw.kind, kind::MP_REACH | kind::MP_UNREACH) {
                    return Err(Notification::new(code::UPDATE, update::MALFORMED_LIST));
                }
                continue;
            }
            match received.read(&raw, context) {
                Ok(()) => {}
                Err(Fault::Withdraw(notification)) => received.note(notification),
                Err(Fault::Reset(notification)) => return Err(notification),
            }
        }
        Ok(received)
    }

    fn note(&mut self, notification: Notification) {
        self.malformed.get_or_insert(notification);
    }

    fn read(&mut self, raw: &Raw<'_>, context: Context) -> Result<(), Fault> {
        let withdraw = |subcode| Fault::Withdraw(raw.fault(subcode));
        match raw.kind {
            kind::ORIGIN => self.origin = Some(decode_origin(raw)?),
            kind::AS_PATH => {
                let path = AsPath::decode(raw.value, context.four_octet_as);
                self.as_path = Some(path.ok_or_else(|| withdraw(update::MALFORMED_AS_PATH))?);
            }
            kind::NEXT_HOP => self.next_hop = Some(decode_next_hop(raw)?),
            kind::MED => self.med = Some(raw.u32()?),
            // RFC 7606 section 7.5: from an external peer it is passed over, whatever it holds.
            kind::LOCAL_PREF if !context.external => self.local_pref = Some(raw.u32()?),
            kind::COMMUNITIES => {
                self.communities = decode_each(raw, u32::from_be_bytes)?;
            }
            kind::EXTENDED_COMMUNITIES => {
                self.extended_communities = decode_each(raw, u64::from_be_bytes)?;
            }
            kind::LARGE_COMMUNITIES => self.large_communities = decode_each(raw, large_community)?,
            // RFC 7606 sections 7.9 and 7.10: from an external peer they are passed over.
            kind::ORIGINATOR if !context.external => {
                self.originator = Some(Ipv4Addr::from(raw.u32()?));
            }
            kind::CLUSTER_LIST if !context.external => {
                self.cluster_list = decode_each(raw, u32::from_be_bytes)?;
            }
            kind::MP_REACH => {
                self.reach = decode_reach(raw, context)?;
                // The prefixes are kept: they are what must be withdrawn.
                let next_hop = self.reach.as_ref().map(|reach| reach.next_hop);
                if next_hop.is_some_and(|address| address.is_unspecified() || address.is_multicast()) {
                    return Err(withdraw(update::OPTIONAL_ATTRIBUTE));
                }
            }
            kind::MP_UNREACH => self.unreach = decode_unreach(raw, context)?,
            // RFC 6793 section 6: one that is malformed is passed over.
            kind::AS4_PATH if !context.four_octet_as => {
                self.as4_path = AsPath::decode(raw.value, true);
            }
            _ => {}
        }
        check_flags(raw)
    }

    /// The attributes for prefixes that are announced, or why there are none. `classic`: some are in the
    /// NLRI field, which needs NEXT_HOP.
    pub fn attributes(self, classic: bool) -> Result<Attributes, Notification> {
        if let Some(malformed) = self.malformed {
            return Err(malformed);
        }
        let missing = |kind| Notification::with_data(code::UPDATE, update::MISSING_WELL_KNOWN, [kind]);
        if classic && self.next_hop.is_none() {
            return Err(missing(kind::NEXT_HOP));
        }
        let as_path = self.as_path.ok_or_else(|| missing(kind::AS_PATH))?;
        Ok(Attributes {
            origin: self.origin.ok_or_else(|| missing(kind::ORIGIN))?,
            as_path: match self.as4_path {
                Some(as4) => as_path.merged(as4),
                None => as_path,
            },
            med: self.med,
            local_pref: self.local_pref,
            communities: self.communities,
            extended_communities: self.extended_communities,
            large_communities: self.large_communities,
            originator: self.originator,
            cluster_list: self.cluster_list,
        })
    }
}

/// RFC 7606 sections 7.8, 7.14, RFC 8092 section 5: a length of whole values, and at least one.
fn decode_each<const N: usize, T>(raw: &Raw<'_>, value: fn([u8; N]) -> T) -> Result<Vec<T>, Fault> {
    let (values, rest) = raw.value.as_chunks::<N>();
    if values.is_empty() || !rest.is_empty() {
        return Err(Fault::Withdraw(raw.fault(update::OPTIONAL_ATTRIBUTE)));
    }
    Ok(values.iter().map(|octets| value(*octets)).collect())
}

fn large_community(octets: [u8; 12]) -> LargeCommunity {
    let (parts, _) = octets.as_chunks::<4>();
    std::array::from_fn(|part| u32::from_be_bytes(parts[part]))
}

/// RFC 4271 section 6.3: flags of known attributes must be what their definition says.
fn check_flags(raw: &Raw<'_>) -> Result<(), Fault> {
    let expected = match raw.kind {
        kind::ORIGIN | kind::AS_PATH | kind::NEXT_HOP | kind::LOCAL_PREF | kind::ATOMIC_AGGREGATE => {
            TRANSITIVE
        }
        kind::MED | kind::MP_REACH | kind::MP_UNREACH | kind::ORIGINATOR | kind::CLUSTER_LIST => OPTIONAL,
        kind::AGGREGATOR
        | kind::COMMUNITIES
        | kind::EXTENDED_COMMUNITIES
        | kind::AS4_PATH
        | kind::LARGE_COMMUNITIES => OPTIONAL | TRANSITIVE,
        _ if raw.flags & OPTIONAL == 0 => {
            return Err(Fault::Reset(raw.fault(update::UNRECOGNIZED_WELL_KNOWN)));
        }
        _ => return Ok(()),
    };
    if raw.flags & (OPTIONAL | TRANSITIVE) != expected {
        return Err(Fault::Withdraw(raw.fault(update::FLAGS)));
    }
    Ok(())
}

fn decode_origin(raw: &Raw<'_>) -> Result<Origin, Fault> {
    match raw.value {
        [0] => Ok(Origin::Igp),
        [1] => Ok(Origin::Egp),
        [2] => Ok(Origin::Incomplete),
        [_] => Err(Fault::Withdraw(raw.fault(update::INVALID_ORIGIN))),
        _ => Err(Fault::Withdraw(raw.fault(update::LENGTH))),
    }
}

fn decode_next_hop(raw: &Raw<'_>) -> Result<Ipv4Addr, Fault> {
    let octets: [u8; 4] = raw.value.try_into().map_err(|_| Fault::Withdraw(raw.fault(update::LENGTH)))?;
    let address = Ipv4Addr::from(octets);
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(Fault::Withdraw(raw.fault(update::INVALID_NEXT_HOP)));
    }
    Ok(address)
}

/// `None` for a family that is not ours. RFC 7606 section 7.11: what cannot be read ends the session.
fn decode_reach(raw: &Raw<'_>, context: Context) -> Result<Option<Reach>, Fault> {
    let reset = || Fault::Reset(raw.fault(update::OPTIONAL_ATTRIBUTE));
    let mut reader = Reader::new(raw.value);
    let (afi, safi) = (reader.u16().ok_or_else(reset)?, reader.u8().ok_or_else(reset)?);
    let next_hop = reader.counted8().ok_or_else(reset)?.rest();
    reader.u8().ok_or_else(reset)?;
    let Some(family) = Family::from_codes(afi, safi) else {
        return Ok(None);
    };
    let next_hop = match (family, <[u8; 4]>::try_from(next_hop)) {
        (Family::Ipv4Unicast, Ok(octets)) => Some(IpAddr::from(octets)),
        // For IPv4 as well (RFC 8950).
        _ => next_hop_of(next_hop, context.link_local).map(IpAddr::V6),
    };
    let next_hop = next_hop.ok_or_else(reset)?;
    let nlri = nlri::decode_all(reader.rest(), family, context.adds_paths(family)).ok_or_else(reset)?;
    Ok(Some(Reach { family, next_hop, prefixes: nlri.prefixes, path_ids: nlri.path_ids }))
}

/// One address, or a global and a link-local one (RFC 2545 section 3); the second stands in where the
/// first is left empty, and where the session knows link-local addresses only.
fn next_hop_of(field: &[u8], prefer_link_local: bool) -> Option<Ipv6Addr> {
    let (addresses, rest) = field.as_chunks::<16>();
    match (addresses, rest) {
        ([one], []) => Some(Ipv6Addr::from(*one)),
        ([global, link_local], []) => {
            let [global, link_local] = [*global, *link_local].map(Ipv6Addr::from);
            let second = global.is_unspecified() || (prefer_link_local && link_local.is_unicast_link_local());
            Some(if second { link_local } else { global })
        }
        _ => None,
    }
}

fn decode_unreach(raw: &Raw<'_>, context: Context) -> Result<Option<Unreach>, Fault> {
    let reset = || Fault::Reset(raw.fault(update::OPTIONAL_ATTRIBUTE));
    let mut reader = Reader::new(raw.value);
    let (afi, safi) = (reader.u16().ok_or_else(reset)?, reader.u8().ok_or_else(reset)?);
    let Some(family) = Family::from_codes(afi, safi) else {
        return Ok(None);
    };
    let nlri = nlri::decode_all(reader.rest(), family, context.adds_paths(family)).ok_or_else(reset)?;
    Ok(Some(Unreach { family, prefixes: nlri.prefixes, path_ids: nlri.path_ids }))
}
