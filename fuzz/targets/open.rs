//! An OPEN, as the first message of a connection: read or refused, and what was read survives being written again.
#![no_main]

use bulkhead_bgp::wire::{Context, Framer, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let context = Context::default();
    let mut framer = Framer::default();
    framer.push(bytes);
    // A refusal is the last that is heard of a connection.
    while let Some(Ok(message)) = framer.next(context) {
        let Message::Open(open) = message else { continue };
        let written = Message::Open(open.clone()).encode(context);
        let mut again = Framer::default();
        again.push(&written);
        match again.next(context) {
            Some(Ok(Message::Open(read))) => {
                assert_eq!(read, open, "what was read is written and read the same")
            }
            other => panic!("{open:?} was written as {written:02x?}, which reads as {other:?}"),
        }
    }
});
