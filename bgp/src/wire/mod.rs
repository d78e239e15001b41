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
pub use attributes::{Attributes, Origin};
pub use capability::{Capability, GracefulRestart, RestartFamily};
pub use header::{Framer, HEADER_LEN, MAX_LEN};
pub use nlri::encoded_len;
pub use notification::Notification;
pub use open::Open;
pub use update::{Announced, Reach, Unreach, Update};

use crate::Family;
use header::Type;
use reader::Reader;

/// What a session has agreed on that changes how its bytes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Context {
    /// AS numbers of UPDATE take four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in another AS.
    pub external: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    /// RFC 2918; `None` is a family that is not ours.
    RouteRefresh(Option<Family>),
}

impl Message {
    /// The whole message, header included. Its content must fit in [`MAX_LEN`]: the RIB packs by that.
    pub fn encode(&self, context: Context) -> Vec<u8> {
        match self {
            Message::Open(open) => header::frame(Type::Open, &open.encode()),
            Message::Update(update) => header::frame(Type::Update, &update.encode(context)),
            Message::Notification(n) => header::frame(Type::Notification, &encode_notification(n)),
            Message::Keepalive => header::frame(Type::Keepalive, &[]),
            Message::RouteRefresh(family) => {
                let (afi, safi) = family.map_or((0, 0), |family| (family.afi(), family.safi()));
                let [high, low] = afi.to_be_bytes();
                header::frame(Type::RouteRefresh, &[high, low, 0, safi])
            }
        }
    }
}

/// Data that would make the message too long is cut: it only illustrates.
fn encode_notification(notification: &Notification) -> Vec<u8> {
    let room = MAX_LEN - HEADER_LEN - 2;
    let data = &notification.data[..notification.data.len().min(room)];
    [&[notification.code, notification.subcode], data].concat()
}

fn decode_body(kind: Type, body: &[u8], context: Context) -> Result<Message, Notification> {
    match kind {
        Type::Open => Open::decode(body).map(Message::Open),
        Type::Update => Update::decode(body, context).map(Message::Update),
        Type::Notification => decode_notification(body).ok_or_else(too_short),
        Type::Keepalive => Ok(Message::Keepalive),
        Type::RouteRefresh => decode_refresh(body).ok_or_else(too_short),
    }
}

/// The header's length was checked against its type, so this is not seen.
fn too_short() -> Notification {
    Notification::new(notification::code::HEADER, notification::header::BAD_LENGTH)
}

fn decode_notification(body: &[u8]) -> Option<Message> {
    let mut reader = Reader::new(body);
    let (code, subcode) = (reader.u8()?, reader.u8()?);
    Some(Message::Notification(Notification::with_data(code, subcode, reader.rest())))
}

fn decode_refresh(body: &[u8]) -> Option<Message> {
    let mut reader = Reader::new(body);
    let (afi, subtype, safi) = (reader.u16()?, reader.u8()?, reader.u8()?);
    // Other subtypes belong to RFC 7313, which is not offered: they are ignored, as it says.
    let family = Family::from_codes(afi, safi).filter(|_| subtype == 0);
    Some(Message::RouteRefresh(family))
}

#[cfg(test)]
mod tests;
