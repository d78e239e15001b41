//! Router solicitations and advertisements (RFC 4861 sections 4.1, 4.2 and 6.1): octets to what they mean to us and back.
//!
//! The kernel writes and verifies the checksum.

use super::Arrival;
use std::net::Ipv6Addr;
use std::time::Duration;
use thiserror::Error;

pub const SOLICITATION: u8 = 133;
pub const ADVERTISEMENT: u8 = 134;

const SOLICITATION_LEN: usize = 8;
const ADVERTISEMENT_LEN: usize = 16;
/// Source link-layer address.
const SOURCE_ADDRESS: u8 = 1;
/// Nobody beyond the link can have sent it.
const HOP_LIMIT: u8 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Solicitation,
    /// For so long it wants to be a default router; zero: it does not.
    Advertisement {
        lifetime: Duration,
    },
}

/// Why a packet is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    #[error("its hop limit is {0}: it came from beyond the link")]
    HopLimit(u8),
    #[error("ICMPv6 type {0} with code {1} is neither a solicitation nor an advertisement")]
    Type(u8, u8),
    #[error("an advertisement from {0}, which is not a link-local address")]
    Source(Ipv6Addr),
    #[error("{0} octets are too few")]
    Length(usize),
    #[error("an option has no length, or one beyond the packet's end")]
    Option,
    #[error("a solicitation from nowhere that names a link-layer address")]
    Unspecified,
}

/// Ours: we are no default router, and say nothing of the link.
pub fn advertisement() -> [u8; ADVERTISEMENT_LEN] {
    let mut bytes = [0; ADVERTISEMENT_LEN];
    bytes[0] = ADVERTISEMENT;
    bytes
}

pub fn solicitation() -> [u8; SOLICITATION_LEN] {
    let mut bytes = [0; SOLICITATION_LEN];
    bytes[0] = SOLICITATION;
    bytes
}

/// # Errors
/// What RFC 4861 section 6.1 finds wrong with it.
pub fn decode(arrival: &Arrival<'_>) -> Result<Heard, Malformed> {
    let Arrival { bytes, from, hop_limit } = *arrival;
    if hop_limit != HOP_LIMIT {
        return Err(Malformed::HopLimit(hop_limit));
    }
    let &[kind, code, ..] = bytes else { return Err(Malformed::Length(bytes.len())) };
    let body = |length| bytes.split_at_checked(length).ok_or(Malformed::Length(bytes.len()));
    match (kind, code) {
        (SOLICITATION, 0) => {
            let (_, options) = body(SOLICITATION_LEN)?;
            let names_itself = options_of(options)?.contains(&SOURCE_ADDRESS);
            if from.is_unspecified() && names_itself {
                return Err(Malformed::Unspecified);
            }
            Ok(Heard::Solicitation)
        }
        (ADVERTISEMENT, 0) => {
            let (head, options) = body(ADVERTISEMENT_LEN)?;
            if !from.is_unicast_link_local() {
                return Err(Malformed::Source(from));
            }
            options_of(options)?;
            let seconds = u16::from_be_bytes([head[6], head[7]]);
            Ok(Heard::Advertisement { lifetime: Duration::from_secs(seconds.into()) })
        }
        _ => Err(Malformed::Type(kind, code)),
    }
}

/// The types of the options, each of which says its length in units of eight octets.
fn options_of(mut rest: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut types = Vec::new();
    while let &[kind, length, ..] = rest {
        let length = usize::from(length) * 8;
        if length == 0 {
            return Err(Malformed::Option);
        }
        rest = rest.get(length..).ok_or(Malformed::Option)?;
        types.push(kind);
    }
    if rest.is_empty() { Ok(types) } else { Err(Malformed::Option) }
}
