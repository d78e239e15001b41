//! A BFD packet for sessions of both kinds: believed or discarded, and what was read survives being written again.
#![no_main]

use bulkhead_bgp::bfd::{Arrival, Key, Packet, Sessions, Settings};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Packet::decode(bytes) {
        assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
    }
    let key = |multihop| Key { peer: PEER, local: Some(LOCAL), ifindex: None, multihop };
    let wanted = [None, Some(250)].map(|multihop| (key(multihop), Settings::DEFAULT));
    let mut sessions = Sessions::default();
    // The first session is known as 1, so that a packet can name it.
    let mut numbers = 1..;
    sessions.configure(Duration::ZERO, &BTreeMap::from(wanted), || numbers.next().unwrap_or(u64::MAX));
    for (index, multihop) in [false, true, false].into_iter().enumerate() {
        let now = Duration::from_millis(100 * index as u64);
        let arrival = Arrival { bytes, from: PEER, to: LOCAL, ifindex: 1, ttl: 255, multihop };
        // Whatever it is: the sessions go on.
        let _ = sessions.received(now, &arrival);
        sessions.tick(now);
    }
});
