//! Every kind of packet, and when what is sent.

use super::*;
use proptest::prelude::*;

const LEAF: &str = "fe80::1";
const OTHER: &str = "fe80::2";

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn arrive(discovery: &mut Discovery, now: Duration, from: &str, bytes: &[u8]) -> Result<(), Malformed> {
    discovery.received(now, &Arrival { bytes, from: from.parse().unwrap(), hop_limit: 255 })
}

fn advertised(lifetime: u16) -> [u8; 16] {
    let mut bytes = advertisement();
    bytes[6..8].copy_from_slice(&lifetime.to_be_bytes());
    bytes
}

fn started() -> Discovery {
    let mut discovery = Discovery::new(seconds(0), 7);
    assert_eq!(discovery.tick(seconds(0)), [Output::Advertise, Output::Solicit]);
    discovery
}

/// What is sent until then, and when, in seconds.
fn until(discovery: &mut Discovery, end: u64) -> Vec<(u64, Output)> {
    let mut sent = Vec::new();
    while discovery.deadline() <= seconds(end) {
        let now = discovery.deadline();
        sent.extend(discovery.tick(now).into_iter().map(|output| (now.as_secs(), output)));
    }
    sent
}

#[test]
fn our_own_advertisement_says_that_we_are_no_default_router() {
    let arrival = Arrival { bytes: &advertisement(), from: LEAF.parse().unwrap(), hop_limit: 255 };
    assert_eq!(decode(&arrival), Ok(Heard::Advertisement { lifetime: Duration::ZERO }));
}

#[test]
fn a_router_is_asked_for_until_one_is_known() {
    let mut discovery = started();
    let sent = until(&mut discovery, 20);
    assert_eq!(sent.iter().filter(|(_, output)| *output == Output::Solicit).count(), 5);
    assert_eq!(discovery.router(), None);
    arrive(&mut discovery, seconds(21), LEAF, &advertised(30)).unwrap();
    assert_eq!(discovery.router(), Some(LEAF.parse().unwrap()));
    let sent = until(&mut discovery, 100);
    assert!(sent.iter().all(|(_, output)| *output == Output::Advertise), "{sent:?}");
    assert!((8..=11).contains(&sent.len()), "every 7.5 to 10 s: {sent:?}");
}

#[test]
fn a_solicitation_is_answered_soon_and_a_flood_of_them_every_three_seconds() {
    let mut discovery = started();
    arrive(&mut discovery, seconds(0), LEAF, &advertised(0)).unwrap();
    assert!(discovery.deadline() > seconds(7));
    arrive(&mut discovery, seconds(5), LEAF, &solicitation()).unwrap();
    assert!(discovery.deadline() < Duration::from_millis(5501));
    let mut sent = 0;
    for tenth in 60..=360 {
        let now = Duration::from_millis(tenth * 100);
        arrive(&mut discovery, now, LEAF, &solicitation()).unwrap();
        sent += discovery.tick(now).len();
    }
    assert!((9..=11).contains(&sent), "{sent} in 30 s");
}

#[test]
fn what_the_kernel_did_not_take_is_tried_again_at_once() {
    let mut discovery = started();
    discovery.not_sent(seconds(0), Output::Advertise);
    discovery.not_sent(seconds(0), Output::Solicit);
    assert_eq!(discovery.tick(seconds(1)), [Output::Advertise, Output::Solicit]);
}

#[test]
fn another_router_counts_once_the_known_one_was_silent_for_its_lifetime_or_cannot_be_reached() {
    let known = |discovery: &Discovery| discovery.router().unwrap().to_string();
    let mut discovery = started();
    arrive(&mut discovery, seconds(1), LEAF, &advertised(60)).unwrap();
    arrive(&mut discovery, seconds(2), OTHER, &advertised(60)).unwrap();
    assert_eq!(known(&discovery), LEAF);
    arrive(&mut discovery, seconds(50), LEAF, &advertised(0)).unwrap();
    arrive(&mut discovery, seconds(79), OTHER, &advertised(60)).unwrap();
    assert_eq!(known(&discovery), LEAF, "one without a lifetime is remembered for 30 s");
    arrive(&mut discovery, seconds(80), OTHER, &advertised(60)).unwrap();
    assert_eq!(known(&discovery), OTHER);
    discovery.doubt(seconds(81));
    assert_eq!(known(&discovery), OTHER, "better than nothing");
    arrive(&mut discovery, seconds(82), LEAF, &advertised(60)).unwrap();
    assert_eq!(known(&discovery), LEAF);
}

#[test]
fn what_rfc_4861_wants_discarded_is() {
    let leaf: Ipv6Addr = LEAF.parse().unwrap();
    let of = |bytes: &[u8], from: Ipv6Addr, hop_limit| decode(&Arrival { bytes, from, hop_limit });
    let with = |head: &[u8], options: &[u8]| [head, options].concat();
    let (ours, asking, global) = (advertised(30), solicitation(), "2001:db8::1".parse().unwrap());
    let address = [1, 1, 2, 0, 0, 0, 0, 1];
    assert_eq!(of(&with(&ours, &address), leaf, 255), Ok(Heard::Advertisement { lifetime: seconds(30) }));
    assert_eq!(of(&with(&asking, &address), global, 255), Ok(Heard::Solicitation));
    assert_eq!(of(&asking, Ipv6Addr::UNSPECIFIED, 255), Ok(Heard::Solicitation));
    assert_eq!(of(&with(&asking, &address), Ipv6Addr::UNSPECIFIED, 255), Err(Malformed::Unspecified));
    assert_eq!(of(&ours, leaf, 254), Err(Malformed::HopLimit(254)));
    assert_eq!(of(&ours, global, 255), Err(Malformed::Source(global)));
    assert_eq!(of(&ours[..15], leaf, 255), Err(Malformed::Length(15)));
    assert_eq!(of(&asking[..7], leaf, 255), Err(Malformed::Length(7)));
    assert_eq!(of(&[136, 0], leaf, 255), Err(Malformed::Type(136, 0)));
    assert_eq!(of(&with(&[134, 1], &[0; 14]), leaf, 255), Err(Malformed::Type(134, 1)));
    for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1, 1, 0], &[1]] {
        assert_eq!(of(&with(&ours, options), leaf, 255), Err(Malformed::Option), "{options:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_octets_are_read_or_discarded(bytes: Vec<u8>, from: [u8; 16], hop_limit: u8) {
        let _ = decode(&Arrival { bytes: &bytes, from: from.into(), hop_limit });
    }

    #[test]
    fn options_of_any_kind_are_passed_over(
        lifetime: u16,
        options in proptest::collection::vec((any::<u8>(), 1..4u8, any::<u8>()), 0..6)
    ) {
        let mut bytes = advertised(lifetime).to_vec();
        for (kind, length, octet) in options {
            bytes.extend([kind, length]);
            bytes.extend(std::iter::repeat_n(octet, usize::from(length) * 8 - 2));
        }
        let heard = decode(&Arrival { bytes: &bytes, from: LEAF.parse().unwrap(), hop_limit: 255 });
        prop_assert_eq!(heard, Ok(Heard::Advertisement { lifetime: seconds(lifetime.into()) }));
    }

    /// Whatever comes, and however late: no more than one advertisement in three seconds, and one in ten.
    #[test]
    fn the_pace_holds(steps in proptest::collection::vec((0..4000u64, any::<bool>(), any::<u16>()), 1..200), seed: u64) {
        let mut discovery = Discovery::new(seconds(0), seed);
        let mut now = seconds(0);
        let mut last: Option<Duration> = None;
        for (millis, asked, lifetime) in steps {
            now += Duration::from_millis(millis);
            let bytes = if asked { solicitation().to_vec() } else { advertised(lifetime).to_vec() };
            arrive(&mut discovery, now, LEAF, &bytes).unwrap();
            if discovery.tick(now).contains(&Output::Advertise) {
                prop_assert!(last.is_none_or(|last| now - last >= ADVERTISE_PAUSE));
                last = Some(now);
            }
            prop_assert!(last.is_some_and(|last| discovery.deadline() <= last + ADVERTISE_INTERVAL));
        }
    }
}
