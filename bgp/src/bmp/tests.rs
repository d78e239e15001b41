//! The encoder against a reader that was written from the RFC's text alone, and shares no line with it.

use super::*;
use proptest::prelude::*;
use std::net::Ipv6Addr;

/// Octets at the front.
fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn number(bytes: &mut &[u8], octets: usize) -> u64 {
    take(bytes, octets).iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet))
}

fn address(bytes: &mut &[u8], v6: bool) -> IpAddr {
    let octets: [u8; 16] = take(bytes, 16).try_into().unwrap();
    if v6 {
        return Ipv6Addr::from(octets).into();
    }
    assert_eq!(octets[..12], [0; 12], "section 4.2: the twelve octets in front are zero");
    Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into()
}

fn peer(bytes: &mut &[u8]) -> PeerHeader {
    assert_eq!(number(bytes, 1), 0, "a global instance peer");
    let flags = number(bytes, 1);
    assert_eq!(flags & 0x5f, 0, "L and what is reserved are off");
    assert_eq!(number(bytes, 8), 0);
    PeerHeader {
        address: address(bytes, flags & 0x80 != 0),
        asn: number(bytes, 4) as u32,
        router_id: Ipv4Addr::from_bits(number(bytes, 4) as u32),
        two_octet_as: flags & 0x20 != 0,
        time: Duration::from_secs(number(bytes, 4)) + Duration::from_micros(number(bytes, 4)),
    }
}

/// One BGP message, by the length in its header.
fn pdu(bytes: &mut &[u8]) -> Vec<u8> {
    let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    take(bytes, length).to_vec()
}

fn tlvs(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (kind, length) = (number(&mut bytes, 2), number(&mut bytes, 2));
        all.push((kind, take(&mut bytes, length as usize).to_vec()));
    }
    all
}

fn text(tlvs: &[(u64, Vec<u8>)], wanted: u64) -> String {
    let value = tlvs.iter().find(|(kind, _)| *kind == wanted).expect("it is there");
    String::from_utf8(value.1.clone()).unwrap()
}

fn statistics(bytes: &mut &[u8]) -> Statistics {
    let count = number(bytes, 4);
    let all = tlvs(bytes);
    assert_eq!(all.len() as u64, count);
    *bytes = &[];
    let mut read = Statistics::default();
    let mut sum = 0;
    for (kind, value) in all {
        let mut value = value.as_slice();
        match kind {
            7 => sum = number(&mut value, 8),
            9 => {
                let family = number(&mut value, 3);
                let index = [0x1_01, 0x2_01].iter().position(|known| *known == family).expect("a family");
                read.routes[index] = number(&mut value, 8);
            }
            11 => read.treated_as_withdraw = number(&mut value, 4) as u32,
            other => panic!("statistic {other}"),
        }
        assert_eq!(value, [0u8; 0]);
    }
    assert_eq!(sum, read.routes.iter().sum::<u64>());
    read
}

pub(crate) fn decode(whole: &[u8]) -> Message {
    let bytes = &mut &whole[..];
    assert_eq!(number(bytes, 1), 3, "version");
    assert_eq!(number(bytes, 4), whole.len() as u64, "length, the header's own octets included");
    let message = match number(bytes, 1) {
        0 => Message::RouteMonitoring { peer: peer(bytes), update: pdu(bytes) },
        1 => Message::Statistics { peer: peer(bytes), statistics: statistics(bytes) },
        2 => {
            let peer = peer(bytes);
            let reason = match number(bytes, 1) {
                1 => Reason::LocalNotification(pdu(bytes)),
                2 => Reason::LocalEvent(number(bytes, 2) as u16),
                3 => Reason::RemoteNotification(pdu(bytes)),
                4 => Reason::RemoteClosed,
                5 => Reason::Deconfigured,
                other => panic!("reason {other}"),
            };
            Message::PeerDown { peer, reason }
        }
        3 => {
            let peer = peer(bytes);
            Message::PeerUp {
                peer,
                local: address(bytes, peer.address.is_ipv6()),
                local_port: number(bytes, 2) as u16,
                remote_port: number(bytes, 2) as u16,
                sent: pdu(bytes),
                received: pdu(bytes),
            }
        }
        4 => {
            let all = tlvs(std::mem::take(bytes));
            Message::Initiation { name: text(&all, 2), description: text(&all, 1) }
        }
        5 => {
            let all = tlvs(std::mem::take(bytes));
            let reason = all.iter().find(|(kind, _)| *kind == 1).expect("a reason is mandatory");
            assert_eq!(reason.1, [0, 0], "administratively closed");
            Message::Termination { why: text(&all, 0) }
        }
        other => panic!("type {other}"),
    };
    assert!(bytes.is_empty(), "something is left over: {bytes:?}");
    message
}

fn some_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<u32>().prop_map(|n| Ipv4Addr::from_bits(n).into()), any::<u128>().prop_map(v6)]
}

fn v6(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).into()
}

fn some_peer() -> impl Strategy<Value = PeerHeader> {
    (some_address(), any::<u32>(), any::<u32>(), any::<bool>(), any::<u32>(), 0..1_000_000u32).prop_map(
        |(address, asn, router_id, two_octet_as, seconds, micros)| PeerHeader {
            address,
            asn,
            router_id: Ipv4Addr::from_bits(router_id),
            two_octet_as,
            time: Duration::new(seconds.into(), micros * 1000),
        },
    )
}

/// A message of BGP with that body.
fn some_pdu(kind: u8) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..80).prop_map(move |body| {
        let length = (19 + body.len() as u16).to_be_bytes();
        [&[0xff; 16][..], &length, &[kind], &body].concat()
    })
}

fn some_reason() -> impl Strategy<Value = Reason> {
    prop_oneof![
        some_pdu(3).prop_map(Reason::LocalNotification),
        any::<u16>().prop_map(Reason::LocalEvent),
        some_pdu(3).prop_map(Reason::RemoteNotification),
        Just(Reason::RemoteClosed),
        Just(Reason::Deconfigured),
    ]
}

fn some_message() -> impl Strategy<Value = Message> {
    let statistics = (any::<u32>(), 0..1u64 << 40, 0..1u64 << 40)
        .prop_map(|(treated_as_withdraw, v4, v6)| Statistics { treated_as_withdraw, routes: [v4, v6] });
    let up = (some_peer(), any::<u128>(), any::<u32>(), any::<[u16; 2]>(), some_pdu(1), some_pdu(1));
    prop_oneof![
        (".{0,40}", ".{0,40}").prop_map(|(name, description)| Message::Initiation { name, description }),
        up.prop_map(|(peer, six, four, [local_port, remote_port], sent, received)| {
            // Both ends of a session are of one IP version.
            let local = if peer.address.is_ipv6() { v6(six) } else { Ipv4Addr::from_bits(four).into() };
            Message::PeerUp { peer, local, local_port, remote_port, sent, received }
        }),
        (some_peer(), some_pdu(2)).prop_map(|(peer, update)| Message::RouteMonitoring { peer, update }),
        (some_peer(), statistics).prop_map(|(peer, statistics)| Message::Statistics { peer, statistics }),
        (some_peer(), some_reason()).prop_map(|(peer, reason)| Message::PeerDown { peer, reason }),
        ".{0,40}".prop_map(|why| Message::Termination { why }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_what_is_read(message in some_message()) {
        prop_assert_eq!(decode(&message.encode()), message);
    }
}

#[test]
fn a_peer_down_stands_as_the_rfc_draws_it() {
    let peer = PeerHeader {
        address: [192, 0, 2, 1].into(),
        asn: 65020,
        router_id: [10, 0, 0, 20].into(),
        two_octet_as: false,
        time: Duration::new(1, 2000),
    };
    let bytes = Message::PeerDown { peer, reason: Reason::RemoteClosed }.encode();
    let expected = [
        &[3, 0, 0, 0, 49, 2][..],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1],
        &[0, 0, 0xfd, 0xfc, 10, 0, 0, 20],
        &[0, 0, 0, 1, 0, 0, 0, 2],
        &[4],
    ];
    assert_eq!(bytes, expected.concat());
}
