//! What went over one connection, as far as people and BMP are told of it: the OPENs, the NOTIFICATIONs, and where messages
//! begin and end. The state machine reads the same octets; here nothing is judged.

use crate::wire::{HEADER_LEN, MAX_EXTENDED_LEN};

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;

/// One per connection. Holds at most one incomplete message.
#[derive(Debug, Default)]
pub struct Tap {
    partial: Vec<u8>,
    /// What cannot be cut is no BGP: the session is about to end.
    lost: bool,
    pub sent_open: Vec<u8>,
    pub received_open: Vec<u8>,
    pub sent_notification: Option<Vec<u8>>,
    pub received_notification: Option<Vec<u8>>,
}

impl Tap {
    /// A whole message of ours.
    pub fn sent(&mut self, message: &[u8]) {
        match kind(message) {
            Some(OPEN) => self.sent_open = message.to_vec(),
            Some(NOTIFICATION) => self.sent_notification = Some(message.to_vec()),
            _ => {}
        }
    }

    /// Octets as they came: `each` is given every whole message.
    pub fn received(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut rest = bytes;
        if !self.partial.is_empty() {
            rest = self.complete(rest);
            let whole = length(&self.partial).is_some_and(|length| length == self.partial.len());
            if !whole {
                return;
            }
            let message = std::mem::take(&mut self.partial);
            self.take(&message, &mut each);
        }
        while !self.lost
            && let Some(length) = length(rest)
        {
            self.lost = !(HEADER_LEN..=MAX_EXTENDED_LEN).contains(&length) || rest[..16] != [0xff; 16];
            let Some((message, behind)) = rest.split_at_checked(length).filter(|_| !self.lost) else { break };
            self.take(message, &mut each);
            rest = behind;
        }
        if !self.lost {
            self.partial.extend_from_slice(rest);
        }
    }

    /// Moves what is missing of the incomplete message, as far as it is there; what is left over.
    fn complete<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = HEADER_LEN.saturating_sub(self.partial.len()).min(bytes.len());
        let (header, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(header);
        let Some(length) = length(&self.partial) else { return rest };
        if !(HEADER_LEN..=MAX_EXTENDED_LEN).contains(&length) {
            (self.lost, self.partial) = (true, Vec::new());
            return &[];
        }
        let (body, rest) = rest.split_at((length - self.partial.len()).min(rest.len()));
        self.partial.extend_from_slice(body);
        rest
    }

    fn take(&mut self, message: &[u8], each: &mut impl FnMut(&[u8])) {
        match kind(message) {
            Some(OPEN) => self.received_open = message.to_vec(),
            Some(NOTIFICATION) => self.received_notification = Some(message.to_vec()),
            _ => {}
        }
        each(message);
    }
}

pub fn is_update(message: &[u8]) -> bool {
    kind(message) == Some(UPDATE)
}

fn kind(message: &[u8]) -> Option<u8> {
    message.get(HEADER_LEN - 1).copied()
}

/// That the first message says it has.
fn length(bytes: &[u8]) -> Option<usize> {
    let &[high, low, _] = bytes.get(16..HEADER_LEN)? else { return None };
    Some(u16::from_be_bytes([high, low]).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Context, Message, Notification};
    use proptest::prelude::*;

    fn messages() -> Vec<Vec<u8>> {
        let open = crate::wire::Open {
            asn: 65010,
            hold_time: 90,
            router_id: [10, 0, 0, 1].into(),
            capabilities: Vec::new(),
        };
        let update = crate::wire::Update::withdraw(
            crate::Family::Ipv4Unicast,
            (0..700u32).map(|n| ipnetwork::IpNetwork::from(std::net::IpAddr::V4(n.into()))).collect(),
        );
        [
            Message::Open(open),
            Message::Keepalive,
            Message::Update(update.clone()),
            Message::Update(update),
            Message::Keepalive,
            Message::Notification(Notification::new(6, 2)),
        ]
        .map(|message| message.encode(Context::default()))
        .into()
    }

    proptest! {
        #[test]
        fn messages_come_whole_and_once_however_the_stream_is_cut(
            cuts in proptest::collection::vec(1usize..3000, 0..40)
        ) {
            let expected = messages();
            let stream = expected.concat();
            let (mut tap, mut seen, mut at) = (Tap::default(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([stream.len()]) {
                let end = (at + cut).min(stream.len());
                tap.received(&stream[at..end], |message| seen.push(message.to_vec()));
                at = end;
            }
            prop_assert_eq!(&seen, &expected);
            prop_assert_eq!(&tap.received_open, &expected[0]);
            prop_assert_eq!(tap.received_notification.as_ref(), expected.last());
        }

        #[test]
        fn arbitrary_octets_are_never_more_than_they_are(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut tap = Tap::default();
            let mut cut = 0;
            for part in &parts {
                tap.received(part, |message| cut += message.len());
            }
            prop_assert!(cut + tap.partial.len() <= parts.concat().len());
        }
    }

    #[test]
    fn a_length_that_lies_ends_it() {
        let mut header = vec![0xff; 16];
        header.extend_from_slice(&[0, 3, UPDATE]);
        for cut in [4, 17, 19] {
            let mut tap = Tap::default();
            for part in [&header[..cut], &header[cut..], &messages()[1]] {
                tap.received(part, |message| panic!("{message:?}"));
            }
            assert!(tap.lost && tap.partial.is_empty());
        }
    }
}
