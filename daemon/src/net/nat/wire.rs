//! Messages of the netfilter subsystems (nf_tables, conntrack) as octets: `nlmsghdr`, `nfgenmsg`, attributes. Pure.

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NlasIterator,
};

/// `nfnl_subsys_id`, which is the upper octet of a message's type.
pub const CONNTRACK: u16 = 1;
pub const NF_TABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;

/// A list of attributes in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let start = self.0.len();
        // What is emitted does not fill its padding.
        self.0.resize(start + attribute.buffer_len(), 0);
        attribute.emit(&mut self.0[start..]);
        self
    }

    /// In network order, as all numbers of these subsystems.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// With its closing zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Subsystem and message.
    kind: u16,
    /// `NFPROTO_*`.
    family: u8,
    flags: u16,
    /// `res_id`: the subsystem of a batch.
    resource: u16,
    attributes: Attributes,
}

impl Message {
    pub fn new(subsystem: u16, message: u8, family: u8, flags: u16, attributes: Attributes) -> Self {
        Self { kind: subsystem << 8 | u16::from(message), family, flags, resource: 0, attributes }
    }

    fn of_batch(kind: u16) -> Self {
        Self { kind, family: 0, flags: 0, resource: NF_TABLES, attributes: Attributes::new() }
    }

    fn emit(&self, sequence: u32, flags: u16, into: &mut Vec<u8>) {
        let length = NLMSG_HEADER + NFGEN_HEADER + self.attributes.0.len();
        let mut header = NetlinkHeader::default();
        header.length = length as u32;
        header.message_type = self.kind;
        header.flags = NLM_F_REQUEST | self.flags | flags;
        header.sequence_number = sequence;
        let start = into.len();
        into.resize(start + NLMSG_HEADER, 0);
        header.emit(&mut into[start..]);
        into.extend([self.family, 0]);
        into.extend(self.resource.to_be_bytes());
        into.extend(&self.attributes.0);
    }
}

/// Octets of requests, numbered from 1; `acknowledged`: each is answered.
pub fn requests(messages: &[Message], acknowledged: bool) -> Vec<u8> {
    let mut octets = Vec::new();
    let flags = if acknowledged { NLM_F_ACK } else { 0 };
    for (sequence, message) in (1..).zip(messages) {
        message.emit(sequence, flags, &mut octets);
    }
    octets
}

/// Octets of one transaction: all of it happens, or nothing. The last message is answered, whose number is that of messages;
/// one before it only when it fails.
pub fn transaction(messages: &[Message]) -> Vec<u8> {
    let mut octets = Vec::new();
    Message::of_batch(BATCH_BEGIN).emit(0, 0, &mut octets);
    for (sequence, message) in (1..).zip(messages) {
        let flags = if sequence as usize == messages.len() { NLM_F_ACK } else { 0 };
        message.emit(sequence, flags, &mut octets);
    }
    Message::of_batch(BATCH_END).emit(messages.len() as u32 + 1, 0, &mut octets);
    octets
}

/// One message out of what a socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Behind `nlmsghdr`.
    pub body: &'a [u8],
}

impl<'a> Received<'a> {
    /// Of an object: without `nfgenmsg`.
    pub fn attributes(&self) -> &'a [u8] {
        self.body.get(NFGEN_HEADER..).unwrap_or_default()
    }

    pub fn is_of(&self, subsystem: u16, message: u8) -> bool {
        self.kind == subsystem << 8 | u16::from(message)
    }
}

/// The messages in a buffer; what is cut off at its end is none.
pub fn received(mut octets: &[u8]) -> Vec<Received<'_>> {
    let mut messages = Vec::new();
    let word = |at: usize, of: &[u8]| -> Option<u32> {
        Some(u32::from_ne_bytes(of.get(at..at + 4)?.try_into().ok()?))
    };
    let half = |at: usize, of: &[u8]| -> Option<u16> {
        Some(u16::from_ne_bytes(of.get(at..at + 2)?.try_into().ok()?))
    };
    while let (Some(length), Some(kind), Some(flags), Some(sequence)) =
        (word(0, octets), half(4, octets), half(6, octets), word(8, octets))
    {
        let length = length as usize;
        let Some(body) = octets.get(NLMSG_HEADER..length) else { break };
        messages.push(Received { kind, flags, sequence, body });
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The value of the first attribute of this kind.
pub fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Kinds (without their flags) and values; ends where something is malformed.
pub fn each(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(Result::ok).map(|nla| {
        let length = usize::from(nla.length());
        (nla.kind(), nla.into_inner().get(4..length).unwrap_or_default())
    })
}

/// Up to its closing zero.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub fn number(value: &[u8]) -> u32 {
    value.try_into().map_or(0, u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let inner = Attributes::new().u32(1, 7);
        let attributes = Attributes::new().text(1, "abc").nest(4, inner.clone()).bytes(2, &[1, 2, 3]);
        assert_eq!(attributes.as_bytes().len() % 4, 0);
        let message = Message::new(NF_TABLES, 3, 2, 0, attributes);
        let octets = transaction(&[message.clone(), message]);
        let all = received(&octets);
        assert_eq!(all.iter().map(|m| m.sequence).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!((all[0].kind, all[3].kind), (BATCH_BEGIN, BATCH_END));
        assert!(all[1].is_of(NF_TABLES, 3));
        // Only the last of the two is answered.
        assert_eq!([all[1].flags, all[2].flags], [NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK]);
        let read = all[1].attributes();
        assert_eq!(find(read, 1).map(text).as_deref(), Some("abc"));
        assert_eq!(find(read, 4), Some(inner.as_bytes()));
        assert_eq!(find(read, 4).and_then(|i| find(i, 1)).map(number), Some(7));
        assert_eq!(find(read, 2), Some(&[1, 2, 3][..]));
        assert_eq!(find(read, 9), None);
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let octets = transaction(&[]);
        assert_eq!(received(&octets[..octets.len() - 1]).len(), 1);
        assert_eq!(received(&[0; 16]), []);
        assert_eq!(received(&[]), []);
    }
}
