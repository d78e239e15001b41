//! Messages of a session, UPDATEs above all, under every kind of session: read, refused or taken for withdrawn; and what was
//! read survives being written again, where it is something that we send.
//!
//! The first octet says what the session has agreed on; a seed, which has none, reads as if it were put before it.
#![no_main]

use bulkhead_bgp::wire::{Context, Framer, HEADER_LEN, Message, Update};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A message begins with sixteen octets of ones: a recorded one is read as of the most common session.
    let (agreed, stream) = match bytes {
        [0xff, 0xff, ..] | [] => (0b0000_0011, bytes),
        [agreed, stream @ ..] => (*agreed, stream),
    };
    let bit = |n: u8| agreed & (1 << n) != 0;
    let context = Context {
        four_octet_as: bit(0),
        external: bit(1),
        extended_messages: bit(2),
        add_path: [bit(3), bit(4)],
        link_local: bit(5),
    };
    let mut framer = Framer::default();
    // In two pieces, as TCP may give it.
    let (first, second) = stream.split_at(stream.len().min(HEADER_LEN));
    for piece in [first, second] {
        framer.push(piece);
        while let Some(Ok(message)) = framer.next(context) {
            if let Message::Update(update) = message {
                written_and_read(update, context);
            }
        }
    }
});

/// We send neither path identifiers nor AS numbers of two octets, and nothing that was malformed.
fn written_and_read(update: Update, context: Context) {
    if context.add_path != [false; 2] || !context.four_octet_as || update.malformed.is_some() {
        return;
    }
    let written = Message::Update(update.clone()).encode(context);
    if written.len() > context.longest() {
        return;
    }
    let mut framer = Framer::default();
    framer.push(&written);
    match framer.next(context) {
        Some(Ok(Message::Update(read))) => assert_eq!(normal(read), normal(update)),
        other => panic!("{update:?} was written as {written:02x?}, which reads as {other:?}"),
    }
}

/// Without what makes no difference: lists that are empty, and where a prefix of the same family stood.
fn normal(mut update: Update) -> Update {
    update.unreach.retain(|unreach| !unreach.prefixes.is_empty());
    update
}
