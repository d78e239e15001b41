//! UPDATE and the codec as a whole; what belongs to one file is tested there.

use super::*;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const EXTERNAL: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};
const INTERNAL: Context = Context { external: false, ..EXTERNAL };

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 1];
const NLRI: &[u8] = &[24, 10, 1, 2];

fn decode(message: &[u8], context: Context) -> Result<Message, Notification> {
    let mut framer = Framer::default();
    framer.push(message);
    framer.next(context).expect("a whole message")
}

fn body(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut out = Vec::new();
    out.extend_from_slice(&(withdrawn.len() as u16).to_be_bytes());
    out.extend_from_slice(withdrawn);
    out.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
    out.extend_from_slice(&attributes);
    out.extend_from_slice(nlri);
    out
}

fn update(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Result<Update, Notification> {
    Update::decode(&body(withdrawn, attributes, nlri), EXTERNAL)
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn an_update_of_a_router_is_read() {
    let read = update(&[8, 10], &[ORIGIN, AS_PATH, NEXT_HOP], NLRI).unwrap();
    let announced = read.announced.unwrap();
    assert_eq!(announced.attributes.as_path, AsPath::sequence([65001]));
    assert_eq!(announced.reach[0].next_hop, IpAddr::from([192, 0, 2, 1]));
    assert_eq!(announced.reach[0].prefixes, [net("10.1.2.0/24")]);
    assert_eq!(read.unreach, [Unreach::new(Family::Ipv4Unicast, vec![net("10.0.0.0/8")])]);
    assert_eq!(read.malformed, None);
}

#[test]
fn faults_of_attributes_withdraw_the_routes_and_keep_the_session() {
    let community = &[0xc0, 8, 3, 0, 0, 1][..];
    let cases: &[(&str, &[&[u8]], u8)] = &[
        ("no ORIGIN", &[AS_PATH, NEXT_HOP], 3),
        ("no AS_PATH", &[ORIGIN, NEXT_HOP], 3),
        ("no NEXT_HOP", &[ORIGIN, AS_PATH], 3),
        ("ORIGIN of 3", &[&[0x40, 1, 1, 3], AS_PATH, NEXT_HOP], 6),
        ("ORIGIN of two octets", &[&[0x40, 1, 2, 0, 0], AS_PATH, NEXT_HOP], 5),
        ("ORIGIN as optional", &[&[0xc0, 1, 1, 0], AS_PATH, NEXT_HOP], 4),
        ("AS_PATH cut short", &[ORIGIN, &[0x40, 2, 3, 2, 1, 0], NEXT_HOP], 11),
        ("NEXT_HOP of three octets", &[ORIGIN, AS_PATH, &[0x40, 3, 3, 1, 2, 3]], 5),
        ("NEXT_HOP 0.0.0.0", &[ORIGIN, AS_PATH, &[0x40, 3, 4, 0, 0, 0, 0]], 8),
        ("MED of three octets", &[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 4, 3, 0, 0, 0]], 5),
        ("COMMUNITIES of three octets", &[ORIGIN, AS_PATH, NEXT_HOP, community], 9),
        ("an attribute longer than the field", &[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 99, 9, 1]], 1),
    ];
    for (name, attributes, subcode) in cases {
        let read = update(&[], attributes, NLRI).unwrap_or_else(|n| panic!("{name}: {n}"));
        assert_eq!(read.announced, None, "{name}");
        assert_eq!(read.unreach[0].prefixes, [net("10.1.2.0/24")], "{name}");
        let malformed = read.malformed.unwrap_or_else(|| panic!("{name} is not told"));
        assert_eq!((malformed.code, malformed.subcode), (3, *subcode), "{name}");
    }
}

#[test]
fn faults_that_hide_prefixes_end_the_session_with_3_x() {
    let reach = &[0x80, 14, 5, 0, 2, 1, 0, 0][..];
    let unreach = &[0x80, 15, 5, 0, 2, 1, 129, 0][..];
    let empty = &[0x80, 15, 3, 0, 2, 1][..];
    let cases: &[(&str, Vec<u8>, u8)] = &[
        ("withdrawn field longer than the message", vec![0, 9, 0, 0], 1),
        ("attribute field longer than the message", vec![0, 0, 0, 9, 1], 1),
        ("an IPv4 prefix of 33 bits", body(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[33, 1, 2, 3, 4, 5]), 10),
        ("a withdrawn prefix cut short", body(&[24, 10], &[], &[]), 10),
        ("an unknown well-known attribute", body(&[], &[ORIGIN, &[0x40, 99, 0]], NLRI), 2),
        ("MP_REACH without next hop", body(&[], &[ORIGIN, AS_PATH, reach], &[]), 9),
        ("MP_UNREACH with a prefix of 129 bits", body(&[], &[unreach], &[]), 9),
        ("MP_UNREACH twice", body(&[], &[empty, empty], &[]), 1),
    ];
    for (name, bytes, subcode) in cases {
        let error = Update::decode(bytes, EXTERNAL).expect_err(name);
        assert_eq!((error.code, error.subcode), (3, *subcode), "{name}");
    }
}

#[test]
fn the_first_of_two_equal_attributes_counts() {
    let second = &[0x40, 1, 1, 2][..];
    let read = update(&[], &[ORIGIN, AS_PATH, NEXT_HOP, second], NLRI).unwrap();
    assert_eq!(read.announced.unwrap().attributes.origin, Origin::Igp);
}

#[test]
fn local_pref_counts_only_from_an_internal_peer() {
    let attributes: &[&[u8]] = &[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 5, 4, 0, 0, 0, 7]];
    let bytes = body(&[], attributes, NLRI);
    let local_pref =
        |context| Update::decode(&bytes, context).unwrap().announced.unwrap().attributes.local_pref;
    assert_eq!(local_pref(INTERNAL), Some(7));
    assert_eq!(local_pref(EXTERNAL), None);
}

#[test]
fn a_next_hop_of_two_addresses_is_the_global_one() {
    let global: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let link_local: Ipv6Addr = "fe80::1".parse().unwrap();
    for (first, expected) in [(global, global), (Ipv6Addr::UNSPECIFIED, link_local)] {
        let value =
            [&[0, 2, 1, 32][..], &first.octets(), &link_local.octets(), &[0, 32, 0x20, 1, 0x0d, 0xb8]];
        let value = value.concat();
        let reach = [&[0x80, 14, value.len() as u8][..], &value].concat();
        let announced = update(&[], &[&reach, ORIGIN, AS_PATH], &[]).unwrap().announced.unwrap();
        assert_eq!(announced.reach[0].next_hop, IpAddr::V6(expected));
        assert_eq!(announced.reach[0].prefixes, [net("2001:db8::/32")]);
    }
}

#[test]
fn a_family_that_is_not_ours_is_passed_over_and_is_no_end_of_rib() {
    let vpn = &[0x80, 15, 3, 0, 1, 128][..];
    let read = update(&[], &[vpn], &[]).unwrap();
    assert_eq!(read, Update::default());
    assert_eq!(read.is_end_of_rib(), None);
}

#[test]
fn end_of_rib_is_what_rfc_4724_says() {
    let ipv4 = Message::Update(Update::end_of_rib(Family::Ipv4Unicast)).encode(EXTERNAL);
    assert_eq!(ipv4[16..], [0, 23, 2, 0, 0, 0, 0]);
    for family in Family::ALL {
        let bytes = Message::Update(Update::end_of_rib(family)).encode(EXTERNAL);
        let Ok(Message::Update(read)) = decode(&bytes, EXTERNAL) else { panic!("no UPDATE") };
        assert_eq!(read.is_end_of_rib(), Some(family));
    }
}

#[test]
fn a_two_octet_session_keeps_long_as_numbers_by_as4_path() {
    let context = Context { four_octet_as: false, ..EXTERNAL };
    let sent = Update::announce(
        Attributes { as_path: AsPath::sequence([65001, 4_200_000_000]), ..Attributes::default() },
        Reach::new(Family::Ipv4Unicast, IpAddr::from([192, 0, 2, 1]), vec![net("10.0.0.0/8")]),
    );
    let bytes = Message::Update(sent.clone()).encode(context);
    assert_eq!(decode(&bytes, context), Ok(Message::Update(sent)));
}

#[test]
fn a_route_refresh_asks_or_marks_and_another_meaning_is_passed_over() {
    for meaning in [Refresh::Request, Refresh::Begin, Refresh::End] {
        let message = Message::RouteRefresh(Some((Family::Ipv6Unicast, meaning)));
        let mut bytes = message.encode(EXTERNAL);
        assert_eq!(bytes[19..], [0, 2, meaning as u8, 1]);
        assert_eq!(decode(&bytes, EXTERNAL), Ok(message));
        bytes[21] = 3;
        assert_eq!(decode(&bytes, EXTERNAL), Ok(Message::RouteRefresh(None)));
    }
    // RFC 7313 section 5: a mark has four octets, and what had more is the data.
    let long = [&[0xff; 16][..], &[0, 24, 5, 0, 1, 1, 1, 9]].concat();
    assert_eq!(decode(&long, EXTERNAL), Err(Notification::with_data(7, 1, [0, 1, 1, 1, 9])));
}

#[test]
fn communities_of_all_kinds_and_a_reflectors_marks_are_read_from_inside() {
    let reflected: &[&[u8]] = &[
        ORIGIN,
        AS_PATH,
        NEXT_HOP,
        &[0x80, 9, 4, 10, 0, 0, 9],
        &[0x80, 10, 8, 0, 0, 0, 1, 0, 0, 0, 2],
        &[0xc0, 16, 8, 0, 2, 0xfd, 0xe9, 0, 0, 0, 7],
        &[0xc0, 32, 12, 0, 0, 0xfd, 0xe9, 0, 0, 0, 1, 0, 0, 0, 2],
    ];
    let read = |context| {
        let bytes = body(&[], reflected, NLRI);
        Update::decode(&bytes, context).unwrap().announced.unwrap().attributes
    };
    let inside = read(INTERNAL);
    assert_eq!(inside.originator, Some(Ipv4Addr::new(10, 0, 0, 9)));
    assert_eq!(inside.cluster_list, [1, 2]);
    assert_eq!(inside.extended_communities, [0x0002_fde9_0000_0007]);
    assert_eq!(inside.large_communities, [[65001, 1, 2]]);
    let outside = read(EXTERNAL);
    assert_eq!((outside.originator, outside.cluster_list), (None, Vec::new()));
    for odd in [&[0xc0, 16, 7, 0, 2, 0, 0, 0, 0, 7][..], &[0xc0, 32, 4, 0, 0, 0, 1], &[0x80, 10, 3, 0, 0, 1]]
    {
        let bytes = body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, odd], NLRI);
        let read = Update::decode(&bytes, INTERNAL).unwrap();
        assert_eq!(read.malformed.map(|why| (why.code, why.subcode)), Some((3, 9)), "{odd:?}");
    }
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_next_hop() {
    let next_hop: Ipv6Addr = "fe80::1".parse().unwrap();
    for next_hops in [next_hop.octets().to_vec(), [[0; 16], next_hop.octets()].concat()] {
        let length = next_hops.len() as u8;
        let value = [&[0, 1, 1, length][..], &next_hops, &[0, 24, 10, 1, 2]].concat();
        let reach = [&[0x80, 14, value.len() as u8][..], &value].concat();
        let announced = update(&[], &[ORIGIN, AS_PATH, &reach], &[]).unwrap().announced.unwrap();
        let expected = Reach::new(Family::Ipv4Unicast, next_hop.into(), vec![net("10.1.2.0/24")]);
        assert_eq!(announced.reach, std::slice::from_ref(&expected));
        let sent = Message::Update(Update::announce(announced.attributes, expected));
        assert_eq!(decode(&sent.encode(EXTERNAL), EXTERNAL), Ok(sent));
    }
}

#[test]
fn path_identifiers_are_read_where_they_are_agreed_on() {
    let context = Context { add_path: [true, false], ..EXTERNAL };
    let bytes = body(&[0, 0, 0, 7, 8, 10], &[ORIGIN, AS_PATH, NEXT_HOP], &[0, 0, 0, 9, 24, 10, 1, 2]);
    let read = Update::decode(&bytes, context).unwrap();
    assert_eq!(
        (read.unreach[0].prefixes.as_slice(), read.unreach[0].path_ids.as_slice()),
        (&[net("10.0.0.0/8")][..], &[7][..])
    );
    let reach = &read.announced.unwrap().reach[0];
    assert_eq!((reach.prefixes.as_slice(), reach.path_ids.as_slice()), (&[net("10.1.2.0/24")][..], &[9][..]));
}

#[test]
fn data_of_a_notification_is_cut_to_what_fits() {
    let long = Notification::with_data(3, 9, vec![7; 5000]);
    assert_eq!(Message::Notification(long).encode(EXTERNAL).len(), MAX_LEN);
}

fn ipv4_prefix() -> impl Strategy<Value = IpNetwork> {
    (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| {
        let network = Ipv4Network::new(Ipv4Addr::from(bits), length).unwrap();
        IpNetwork::new(IpAddr::V4(network.network()), length).unwrap()
    })
}

fn ipv6_prefix() -> impl Strategy<Value = IpNetwork> {
    (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| {
        let network = Ipv6Network::new(Ipv6Addr::from(bits), length).unwrap();
        IpNetwork::new(IpAddr::V6(network.network()), length).unwrap()
    })
}

fn reach() -> impl Strategy<Value = Vec<Reach>> {
    let ipv4 = vec(ipv4_prefix(), 1..20)
        .prop_map(|prefixes| Reach::new(Family::Ipv4Unicast, IpAddr::from([192, 0, 2, 1]), prefixes));
    let ipv6 = vec(ipv6_prefix(), 1..20)
        .prop_map(|prefixes| Reach::new(Family::Ipv6Unicast, "2001:db8::1".parse().unwrap(), prefixes));
    let both = (proptest::option::of(ipv4), proptest::option::of(ipv6));
    both.prop_map(|(a, b)| a.into_iter().chain(b).collect())
}

fn unreach() -> impl Strategy<Value = Vec<Unreach>> {
    (proptest::option::of(vec(ipv4_prefix(), 1..20)), proptest::option::of(vec(ipv6_prefix(), 0..20)))
        .prop_map(|(ipv4, ipv6)| {
            let ipv4 = ipv4.map(|prefixes| Unreach::new(Family::Ipv4Unicast, prefixes));
            let ipv6 = ipv6.map(|prefixes| Unreach::new(Family::Ipv6Unicast, prefixes));
            ipv4.into_iter().chain(ipv6).collect()
        })
}

fn as_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![Just(SegmentKind::Set), Just(SegmentKind::Sequence)];
    let segment = (kind, vec(any::<u32>(), 1..10)).prop_map(|(kind, asns)| Segment { kind, asns });
    vec(segment, 0..4).prop_map(AsPath)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let numbers = (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u32>>());
    let communities = (vec(any::<u32>(), 0..100), vec(any::<u64>(), 0..40), vec(any::<[u32; 3]>(), 0..30));
    (origin, as_path(), numbers, communities, vec(any::<u32>(), 0..70)).prop_map(
        |(origin, as_path, (med, local_pref, originator), communities, cluster_list)| Attributes {
            origin,
            as_path,
            med,
            local_pref,
            communities: communities.0,
            extended_communities: communities.1,
            large_communities: communities.2,
            originator: originator.map(Ipv4Addr::from),
            cluster_list,
        },
    )
}

fn announced() -> impl Strategy<Value = Option<Announced>> {
    (attributes(), reach()).prop_map(|(attributes, reach)| match reach.as_slice() {
        [] => None,
        _ => Some(Announced { attributes, reach }),
    })
}

fn capability() -> impl Strategy<Value = Capability> {
    let family = prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)];
    let restart_family =
        (family.clone(), any::<bool>()).prop_map(|(family, forwarding)| RestartFamily { family, forwarding });
    let restart = (any::<[bool; 2]>(), 0..4096u16, vec(restart_family, 0..3)).prop_map(
        |([restarting, notification], time, families)| GracefulRestart {
            restarting,
            notification,
            time,
            families,
        },
    );
    let add_path = (family.clone(), 0..3usize).prop_map(|(family, mode)| {
        let (receive, send) = [(true, false), (false, true), (true, true)][mode];
        AddPath { family, receive, send }
    });
    let long_lived = (family.clone(), any::<bool>(), 0..1u32 << 24)
        .prop_map(|(family, forwarding, time)| LongLived { family, forwarding, time });
    prop_oneof![
        vec(family.clone(), 0..3).prop_map(Capability::ExtendedNextHop),
        vec(add_path, 0..3).prop_map(Capability::AddPath),
        vec(long_lived, 0..3).prop_map(Capability::LongLived),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRefresh),
        family.prop_map(Capability::Multiprotocol),
        Just(Capability::RouteRefresh),
        restart.prop_map(Capability::GracefulRestart),
        (100..200u8, vec(any::<u8>(), 0..10)).prop_map(|(code, data)| Capability::Unknown { code, data }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    (any::<u32>(), any::<u16>(), any::<u32>(), vec(capability(), 0..40)).prop_map(
        |(asn, hold_time, router_id, mut capabilities)| {
            capabilities.push(Capability::FourOctetAs(asn));
            Open { asn, hold_time, router_id: router_id.into(), capabilities }
        },
    )
}

fn context() -> impl Strategy<Value = Context> {
    any::<[bool; 6]>().prop_map(|[four_octet_as, external, extended_messages, ipv4, ipv6, link_local]| {
        Context { four_octet_as, external, extended_messages, add_path: [ipv4, ipv6], link_local }
    })
}

proptest! {
    #[test]
    fn an_update_survives_the_wire(unreach in unreach(), announced in announced()) {
        let sent = Update { unreach, announced, malformed: None };
        prop_assume!(sent != Update::default());
        let bytes = Message::Update(sent.clone()).encode(INTERNAL);
        prop_assert_eq!(decode(&bytes, INTERNAL), Ok(Message::Update(sent)));
    }

    #[test]
    fn an_open_survives_the_wire(sent in open()) {
        let bytes = Message::Open(sent.clone()).encode(EXTERNAL);
        prop_assert_eq!(decode(&bytes, EXTERNAL), Ok(Message::Open(sent)));
    }

    #[test]
    fn a_notification_survives_the_wire(code: u8, subcode: u8, data in vec(any::<u8>(), 0..100)) {
        let sent = Message::Notification(Notification { code, subcode, data });
        prop_assert_eq!(decode(&sent.encode(EXTERNAL), EXTERNAL), Ok(sent));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), context in context()) {
        for kind in [Type::Open, Type::Update, Type::Notification, Type::Keepalive, Type::RouteRefresh] {
            let _ = decode_body(kind, &bytes, context);
        }
        let mut framer = Framer::default();
        framer.push(&bytes);
        while let Some(Ok(_)) = framer.next(context) {}
    }

    #[test]
    fn a_damaged_update_never_panics(
        unreach in unreach(),
        announced in announced(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Update { unreach, announced, malformed: None }.encode(INTERNAL);
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let _ = Update::decode(&bytes, INTERNAL);
    }
}
