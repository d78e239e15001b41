//! BGP-4 on the wire: bytes to messages and back (RFC 4271 section 4).
//!
//! Holds no state but the bytes of one unfinished message ([`Framer`]). A length that a peer sent is never
//! trusted: every read is bounded by what was received. What cannot be decoded is answered with the
//! [`Notification`] that the RFC asks for; faults of path attributes withdraw the routes and keep the
//! session, as far as RFC 7606 allows.

mod as_path;
mod attributes;
mod capability;
mod header;
mod nlri;
pub mod notification;
mod open;
mod reader;
mod update;

pub use as_path::{AS_TRANS, AsPath, Segment, SegmentKind};
pub use attributes::{Attributes, LargeCommunity, Origin};
pub use capability::{AddPath, Capability, GracefulRestart, LongLived, RestartFamily};
pub use header::{Framer, HEADER_LEN, MAX_EXTENDED_LEN, MAX_LEN};
pub use nlri::encoded_len;
pub use notification::Notification;
pub use open::Open;
pub use update::{Announced, Reach, Unreach, Update};

use crate::Family;
use header::Type;
use notification::code;
use reader::Reader;

/// What a session has agreed on that changes how its bytes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Context {
    /// AS numbers of UPDATE take four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in another AS.
    pub external: bool,
    /// Messages may be long (RFC 8654).
    pub extended_messages: bool,
    /// Prefixes of these families, IPv4 and IPv6, come with a path identifier (RFC 7911).
    pub add_path: [bool; 2],
    /// Of a global and a link-local next hop (RFC 2545), the second is meant.
    pub link_local: bool,
}

impl Context {
    /// Octets of the longest message.
    pub fn longest(self) -> usize {
        if self.extended_messages { MAX_EXTENDED_LEN } else { MAX_LEN }
    }

    fn adds_paths(self, family: Family) -> bool {
        self.add_path[family as usize]
    }
}

/// What a ROUTE-REFRESH says (RFC 2918, RFC 7313).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    Request = 0,
    /// What follows is everything.
    Begin = 1,
    /// What did not come since the beginning is gone.
    End = 2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    /// `None` is a family that is not ours, or a meaning that is not known.
    RouteRefresh(Option<(Family, Refresh)>),
}

impl Message {
    /// The whole message, header included. Its content must fit in [`Context::longest`]: the RIB packs by that.
    pub fn encode(&self, context: Context) -> Vec<u8> {
        match self {
            Message::Open(open) => header::frame(Type::Open, &open.encode()),
            Message::Update(update) => header::frame(Type::Update, &update.encode(context)),
            Message::Notification(n) => header::frame(Type::Notification, &encode_notification(n, context)),
            Message::Keepalive => header::frame(Type::Keepalive, &[]),
            Message::RouteRefresh(None) => header::frame(Type::RouteRefresh, &[0; 4]),
            Message::RouteRefresh(Some((family, meaning))) => {
                let [high, low] = family.afi().to_be_bytes();
                header::frame(Type::RouteRefresh, &[high, low, *meaning as u8, family.safi()])
            }
        }
    }
}

/// Data that would make the message too long is cut: it only illustrates.
fn encode_notification(notification: &Notification, context: Context) -> Vec<u8> {
    let room = context.longest() - HEADER_LEN - 2;
    let data = &notification.data[..notification.data.len().min(room)];
    [&[notification.code, notification.subcode], data].concat()
}

fn decode_body(kind: Type, body: &[u8], context: Context) -> Result<Message, Notification> {
    match kind {
        Type::Open => Open::decode(body).map(Message::Open),
        Type::Update => Update::decode(body, context).map(Message::Update),
        Type::Notification => decode_notification(body).ok_or_else(too_short),
        Type::Keepalive => Ok(Message::Keepalive),
        Type::RouteRefresh => decode_refresh(body),
    }
}

/// The header's length was checked against its type, so this is not seen.
fn too_short() -> Notification {
    Notification::new(code::HEADER, notification::header::BAD_LENGTH)
}

fn decode_notification(body: &[u8]) -> Option<Message> {
    let mut reader = Reader::new(body);
    let (code, subcode) = (reader.u8()?, reader.u8()?);
    Some(Message::Notification(Notification::with_data(code, subcode, reader.rest())))
}

fn decode_refresh(body: &[u8]) -> Result<Message, Notification> {
    let mut reader = Reader::new(body);
    let read = (|| Some((reader.u16()?, reader.u8()?, reader.u8()?)))();
    let (afi, meaning, safi) = read.ok_or_else(too_short)?;
    let meaning = match meaning {
        0 => Some(Refresh::Request),
        1 => Some(Refresh::Begin),
        2 => Some(Refresh::End),
        _ => None,
    };
    // RFC 7313 section 5; a request may carry filters (RFC 5291), which are not offered.
    if matches!(meaning, Some(Refresh::Begin | Refresh::End)) && !reader.is_empty() {
        return Err(Notification::with_data(code::REFRESH, notification::refresh::BAD_LENGTH, body));
    }
    Ok(Message::RouteRefresh(Family::from_codes(afi, safi).zip(meaning)))
}

#[cfg(test)]
mod tests;
