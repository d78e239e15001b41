//! NOTIFICATION: the message that ends a session, and what it means in words.
//!
//! It is also the error type of the whole codec: a message that cannot be decoded is worth exactly the
//! NOTIFICATION that RFC 4271 section 6 wants sent for it.

use std::fmt;

/// Error codes (RFC 4271 section 4.5).
pub mod code {
    pub const HEADER: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const HOLD_TIMER: u8 = 4;
    pub const FSM: u8 = 5;
    pub const CEASE: u8 = 6;
    /// RFC 7313.
    pub const REFRESH: u8 = 7;
    /// RFC 9687.
    pub const SEND_HOLD_TIMER: u8 = 8;
}

/// Subcodes of [`code::REFRESH`].
pub mod refresh {
    pub const BAD_LENGTH: u8 = 1;
}

/// Subcodes of [`code::HEADER`].
pub mod header {
    pub const NOT_SYNCHRONIZED: u8 = 1;
    pub const BAD_LENGTH: u8 = 2;
    pub const BAD_TYPE: u8 = 3;
}

/// Subcodes of [`code::OPEN`].
pub mod open {
    pub const UNSPECIFIC: u8 = 0;
    pub const UNSUPPORTED_VERSION: u8 = 1;
    pub const BAD_PEER_AS: u8 = 2;
    pub const BAD_IDENTIFIER: u8 = 3;
    pub const UNSUPPORTED_PARAMETER: u8 = 4;
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    /// RFC 5492.
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
}

/// Subcodes of [`code::UPDATE`].
pub mod update {
    pub const MALFORMED_LIST: u8 = 1;
    pub const UNRECOGNIZED_WELL_KNOWN: u8 = 2;
    pub const MISSING_WELL_KNOWN: u8 = 3;
    pub const FLAGS: u8 = 4;
    pub const LENGTH: u8 = 5;
    pub const INVALID_ORIGIN: u8 = 6;
    pub const INVALID_NEXT_HOP: u8 = 8;
    pub const OPTIONAL_ATTRIBUTE: u8 = 9;
    pub const INVALID_NETWORK: u8 = 10;
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of [`code::FSM`] (RFC 6608): a message that the state does not expect.
pub mod fsm {
    pub const IN_OPEN_SENT: u8 = 1;
    pub const IN_OPEN_CONFIRM: u8 = 2;
    pub const IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of [`code::CEASE`] (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    pub const MAX_PREFIXES: u8 = 1;
    pub const SHUTDOWN: u8 = 2;
    pub const DECONFIGURED: u8 = 3;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const COLLISION: u8 = 7;
    pub const HARD_RESET: u8 = 9;
    pub const BFD_DOWN: u8 = 10;
}

/// Octets of an administrative message (RFC 9003 section 2).
const TEXT_LEN: usize = 255;

/// A NOTIFICATION; as an error, the one that the fault must be answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

impl Notification {
    pub fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    pub fn with_data(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Self { code, subcode, data: data.into() }
    }

    /// Administrative shutdown, with a text for the people at the other end (RFC 9003). What is beyond 255
    /// octets is cut off.
    pub fn shutdown(text: &str) -> Self {
        let mut end = text.len().min(TEXT_LEN);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let data = [&[end as u8], &text.as_bytes()[..end]].concat();
        Self::with_data(code::CEASE, cease::SHUTDOWN, data)
    }

    /// Of two ends that have agreed on RFC 8538: this one inside a hard reset, after which no routes are kept.
    pub fn hard(self) -> Self {
        let data = [&[self.code, self.subcode][..], &self.data].concat();
        Self::with_data(code::CEASE, cease::HARD_RESET, data)
    }

    pub fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// What a hard reset was sent for.
    fn inner(&self) -> Option<Notification> {
        let [code, subcode, data @ ..] = self.data.as_slice() else { return None };
        self.is_hard_reset().then(|| Notification::with_data(*code, *subcode, data))
    }

    pub fn is_collision(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::COLLISION
    }

    /// `data` as the text of an administrative shutdown (RFC 9003), if it is that.
    pub fn shutdown_text(&self) -> Option<&str> {
        if self.code != code::CEASE || !matches!(self.subcode, 2 | 4) {
            return None;
        }
        let (length, text) = self.data.split_first()?;
        let text = text.get(..usize::from(*length))?;
        std::str::from_utf8(text).ok().filter(|text| !text.is_empty())
    }

    fn words(&self) -> (&'static str, &'static str) {
        let part = match self.code {
            code::HEADER => "message header error",
            code::OPEN => "OPEN message error",
            code::UPDATE => "UPDATE message error",
            code::HOLD_TIMER => "hold timer expired",
            code::FSM => "finite state machine error",
            code::CEASE => "cease",
            code::REFRESH => "ROUTE-REFRESH message error",
            code::SEND_HOLD_TIMER => "send hold timer expired",
            _ => "unknown error",
        };
        (part, self.detail())
    }

    fn detail(&self) -> &'static str {
        match (self.code, self.subcode) {
            (code::HEADER, 1) => "connection not synchronized",
            (code::HEADER, 2) => "bad message length",
            (code::HEADER, 3) => "bad message type",
            (code::OPEN, 1) => "unsupported version number",
            (code::OPEN, 2) => "bad peer AS",
            (code::OPEN, 3) => "bad BGP identifier",
            (code::OPEN, 4) => "unsupported optional parameter",
            (code::OPEN, 6) => "unacceptable hold time",
            (code::OPEN, 7) => "unsupported capability",
            (code::UPDATE, 1) => "malformed attribute list",
            (code::UPDATE, 2) => "unrecognized well-known attribute",
            (code::UPDATE, 3) => "missing well-known attribute",
            (code::UPDATE, 4) => "attribute flags error",
            (code::UPDATE, 5) => "attribute length error",
            (code::UPDATE, 6) => "invalid ORIGIN attribute",
            (code::UPDATE, 8) => "invalid NEXT_HOP attribute",
            (code::UPDATE, 9) => "optional attribute error",
            (code::UPDATE, 10) => "invalid network field",
            (code::UPDATE, 11) => "malformed AS_PATH",
            (code::FSM, 1) => "unexpected message in OpenSent",
            (code::FSM, 2) => "unexpected message in OpenConfirm",
            (code::FSM, 3) => "unexpected message in Established",
            (code::CEASE, 1) => "maximum number of prefixes reached",
            (code::CEASE, 2) => "administrative shutdown",
            (code::CEASE, 3) => "peer de-configured",
            (code::CEASE, 4) => "administrative reset",
            (code::CEASE, 5) => "connection rejected",
            (code::CEASE, 6) => "other configuration change",
            (code::CEASE, 7) => "connection collision resolution",
            (code::CEASE, 8) => "out of resources",
            (code::CEASE, 9) => "hard reset",
            (code::CEASE, 10) => "BFD down",
            (code::REFRESH, 1) => "invalid message length",
            _ => "",
        }
    }
}

/// `2/2: OPEN message error, bad peer AS`.
impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, detail) = self.words();
        write!(f, "{}/{}: {part}", self.code, self.subcode)?;
        if !detail.is_empty() {
            write!(f, ", {detail}")?;
        }
        if let Some(text) = self.shutdown_text() {
            write!(f, ": {text:?}")?;
        }
        if let Some(inner) = self.inner().filter(|inner| !inner.is_hard_reset()) {
            write!(f, " for {inner}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Notification {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_reads_as_words() {
        assert_eq!(Notification::new(2, 2).to_string(), "2/2: OPEN message error, bad peer AS");
        assert_eq!(Notification::new(4, 0).to_string(), "4/0: hold timer expired");
        assert_eq!(Notification::new(99, 9).to_string(), "99/9: unknown error");
    }

    #[test]
    fn the_text_of_a_shutdown_is_shown_and_its_length_is_not_trusted() {
        let told = Notification::with_data(6, 2, b"\x04bye!".as_slice());
        assert_eq!(told.to_string(), "6/2: cease, administrative shutdown: \"bye!\"");
        assert_eq!(Notification::with_data(6, 2, b"\x40bye!".as_slice()).shutdown_text(), None);
        assert_eq!(Notification::with_data(6, 2, Vec::new()).shutdown_text(), None);
    }

    #[test]
    fn a_text_for_people_is_cut_between_characters() {
        let told = Notification::shutdown("moving to rack 7");
        assert_eq!(told.shutdown_text(), Some("moving to rack 7"));
        let long = "ä".repeat(200);
        assert_eq!(Notification::shutdown(&long).shutdown_text(), Some("ä".repeat(127).as_str()));
        assert_eq!(Notification::shutdown("").data, [0]);
    }

    #[test]
    fn a_hard_reset_tells_what_it_is_for() {
        let hard = Notification::shutdown("bye").hard();
        assert_eq!((hard.code, hard.subcode, hard.data.as_slice()), (6, 9, b"\x06\x02\x03bye".as_slice()));
        let words = "6/9: cease, hard reset for 6/2: cease, administrative shutdown: \"bye\"";
        assert_eq!(hard.to_string(), words);
        assert_eq!(hard.hard().to_string(), "6/9: cease, hard reset");
    }
}
