//! The message header (RFC 4271 section 4.1), and cutting a byte stream into messages.

use super::notification::{Notification, code, header};
use super::{Context, Message, decode_body};

/// Marker, length, type.
pub const HEADER_LEN: usize = 19;
/// The longest message, but where RFC 8654 is agreed on; of OPEN and KEEPALIVE always.
pub const MAX_LEN: usize = 4096;
/// RFC 8654.
pub const MAX_EXTENDED_LEN: usize = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Open = 1,
    Update = 2,
    Notification = 3,
    Keepalive = 4,
    RouteRefresh = 5,
}

impl Type {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Type::Open,
            2 => Type::Update,
            3 => Type::Notification,
            4 => Type::Keepalive,
            5 => Type::RouteRefresh,
            _ => return None,
        })
    }

    /// RFC 4271 section 6.1, RFC 2918 section 3, RFC 8654 section 4.
    fn accepts(self, length: usize, longest: usize) -> bool {
        match self {
            Type::Open => (29..=MAX_LEN).contains(&length),
            Type::Update => (23..=longest).contains(&length),
            Type::Notification => (21..=longest).contains(&length),
            Type::Keepalive => length == HEADER_LEN,
            Type::RouteRefresh => (23..=longest).contains(&length),
        }
    }
}

/// Writes a header for `body` and `body` itself.
pub(super) fn frame(kind: Type, body: &[u8]) -> Vec<u8> {
    let length = HEADER_LEN + body.len();
    debug_assert!(length <= MAX_EXTENDED_LEN, "a message of {length} octets was built");
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&[0xff; 16]);
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.push(kind as u8);
    out.extend_from_slice(body);
    out
}

/// Type and length of the first message in `bytes`; `None` until its header is there.
fn peek(bytes: &[u8], longest: usize) -> Result<Option<(Type, usize)>, Notification> {
    let marker = &bytes[..bytes.len().min(16)];
    if marker.iter().any(|byte| *byte != 0xff) {
        return Err(Notification::new(code::HEADER, header::NOT_SYNCHRONIZED));
    }
    let Some(&[high, low, kind]) = bytes.get(16..HEADER_LEN) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let bad_length = || Notification::with_data(code::HEADER, header::BAD_LENGTH, [high, low]);
    if !(HEADER_LEN..=longest).contains(&length) {
        return Err(bad_length());
    }
    let Some(kind) = Type::from_code(kind) else {
        return Err(Notification::with_data(code::HEADER, header::BAD_TYPE, [kind]));
    };
    if !kind.accepts(length, longest) {
        return Err(bad_length());
    }
    Ok(Some((kind, length)))
}

/// Holds what was received of one connection and not yet understood. Never holds more than one incomplete
/// message beyond what was pushed last.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    start: usize,
}

impl Framer {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message. After an error the stream cannot be used any more.
    pub fn next(&mut self, context: Context) -> Option<Result<Message, Notification>> {
        let bytes = &self.buffer[self.start..];
        let (kind, length) = match peek(bytes, context.longest()) {
            Ok(found) => found?,
            Err(notification) => return Some(Err(notification)),
        };
        let body = bytes.get(HEADER_LEN..length)?;
        let message = decode_body(kind, body, context);
        self.start += length;
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_error(bytes: &[u8]) -> Notification {
        let mut framer = Framer::default();
        framer.push(bytes);
        framer.next(Context::default()).expect("an answer").expect_err("an error")
    }

    fn header(length: u16, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0xff; 16];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(kind);
        bytes
    }

    #[test]
    fn a_bad_marker_is_1_1_as_soon_as_it_is_seen() {
        assert_eq!(first_error(&[0xff, 0xfe]), Notification::new(1, 1));
        assert_eq!(first_error(b"GET / HTTP/1.1\r\n"), Notification::new(1, 1));
    }

    #[test]
    fn a_bad_length_is_1_2_with_the_length_as_data() {
        for (length, kind) in
            [(18, 4), (20, 4), (4097, 2), (u16::MAX, 2), (28, 1), (22, 2), (20, 3), (22, 5), (0, 4)]
        {
            let expected = Notification::with_data(1, 2, length.to_be_bytes());
            assert_eq!(first_error(&header(length, kind)), expected, "length {length} of type {kind}");
        }
    }

    #[test]
    fn a_bad_type_is_1_3_with_the_type_as_data() {
        assert_eq!(first_error(&header(19, 0)), Notification::with_data(1, 3, [0]));
        assert_eq!(first_error(&header(19, 77)), Notification::with_data(1, 3, [77]));
    }

    #[test]
    fn messages_are_cut_wherever_the_stream_was_cut() {
        let keepalive = Message::Keepalive.encode(Context::default());
        let stream = [keepalive.as_slice(), &keepalive, &keepalive].concat();
        for cut in 0..stream.len() {
            let mut framer = Framer::default();
            let mut seen = 0;
            for part in [&stream[..cut], &stream[cut..]] {
                framer.push(part);
                while let Some(message) = framer.next(Context::default()) {
                    assert_eq!(message, Ok(Message::Keepalive));
                    seen += 1;
                }
            }
            assert_eq!(seen, 3, "cut at {cut}");
        }
    }

    #[test]
    fn long_messages_are_read_where_they_are_agreed_on_but_no_long_open() {
        let context = Context { extended_messages: true, ..Context::default() };
        let first = |bytes: &[u8]| {
            let mut framer = Framer::default();
            framer.push(bytes);
            framer.next(context)
        };
        assert_eq!(first(&header(u16::MAX, 2)), None, "the rest is waited for");
        let long = Notification::with_data(6, 9, vec![7; 5000]);
        let bytes = Message::Notification(long.clone()).encode(context);
        assert_eq!(first(&bytes), Some(Ok(Message::Notification(long))));
        for kind in [1, 4] {
            let refused = Notification::with_data(1, 2, 5000u16.to_be_bytes());
            assert_eq!(first(&header(5000, kind)), Some(Err(refused)));
        }
    }
}
