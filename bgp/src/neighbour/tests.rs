//! When routes and End-of-RIB go out, and what becomes of routes that came in.

use super::*;
use crate::filter::{Changes, Community, PrefixRange, Rule};
use crate::fsm::{Connection, Restart, StateName};
use crate::wire::{
    AddPath, AsPath, Attributes, Capability, Context, Framer, GracefulRestart, LongLived, Message, Open,
    Origin, Reach, RestartFamily, Update,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

mod restarts;

const PLENTY: usize = 1 << 20;
const CONTEXT: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn neighbour(restarting: bool) -> Neighbour {
    let settings = Settings {
        local_asn: 65010,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        peer_asn: 65020,
        timers: Timers { hold: 90, connect_retry: 5, send_hold: 0 },
        families: Family::ALL.to_vec(),
        restart: Restart { time: 60, restarting, forwarding_preserved: true },
        passive: false,
        add_path: true,
        extended_next_hop: false,
        link_local: false,
        seed: 1,
    };
    let mut neighbour = Neighbour::new(settings, policy(), seconds(0));
    neighbour.handle(seconds(0), Input::Start);
    neighbour
}

fn policy() -> Policy {
    Policy {
        asn: 65010,
        remove_private_as: false,
        next_hops: NextHops { ipv4: None, ipv6: Some("2001:db8::10".parse().unwrap()) },
        export: Filter::ACCEPT,
        import: Filter::REJECT,
        allow_own_as: 0,
        prefix_limit: None,
        leaving: Default::default(),
    }
}

/// The peer's OPEN; `restart`: what it says of its own restart.
fn open(restart: Option<GracefulRestart>) -> Open {
    let mut capabilities = vec![
        Capability::Multiprotocol(Family::Ipv4Unicast),
        Capability::Multiprotocol(Family::Ipv6Unicast),
        Capability::FourOctetAs(65020),
    ];
    capabilities.extend(restart.map(Capability::GracefulRestart));
    Open { asn: 65020, hold_time: 90, router_id: Ipv4Addr::new(10, 0, 0, 20), capabilities }
}

fn kept(forwarding: bool) -> GracefulRestart {
    let families = Family::ALL.map(|family| RestartFamily { family, forwarding }).to_vec();
    GracefulRestart { restarting: false, notification: false, time: 120, families }
}

fn receive(neighbour: &mut Neighbour, now: Duration, id: u64, message: Message) -> Vec<Effect> {
    neighbour.handle(now, Input::Received(ConnId(id), message.encode(CONTEXT)))
}

fn establish(neighbour: &mut Neighbour, now: Duration, id: u64, open: Open) -> Vec<Effect> {
    let connection = Connection { id: ConnId(id), local: IpAddr::from([10, 0, 0, 10]) };
    neighbour.handle(now, Input::Incoming(connection));
    receive(neighbour, now, id, Message::Open(open));
    receive(neighbour, now, id, Message::Keepalive)
}

fn intent(prefixes: &[&str], initial_complete: bool) -> Intent {
    let routes = prefixes.iter().map(|prefix| (prefix.parse().unwrap(), RouteAttributes::default()));
    Intent { routes: Arc::new(routes.collect()), initial_complete, ..Intent::default() }
}

/// What was sent, as words: `+10.0.0.0/24`, `-10.0.0.0/24`, `end of ipv4-unicast`.
fn sent(effects: &[Effect]) -> Vec<String> {
    let mut words = Vec::new();
    for effect in effects {
        let Effect::Send(_, bytes) = effect else { continue };
        let mut framer = Framer::default();
        framer.push(bytes);
        let update = match framer.next(CONTEXT) {
            Some(Ok(Message::Update(update))) => update,
            Some(Ok(Message::RouteRefresh(Some((family, meaning))))) => {
                let word = match meaning {
                    Refresh::Request => "ask",
                    Refresh::Begin => "begin",
                    Refresh::End => "refreshed",
                };
                words.push(format!("{word} {family}"));
                continue;
            }
            other => panic!("neither UPDATE nor ROUTE-REFRESH: {other:?}"),
        };
        if let Some(family) = update.is_end_of_rib() {
            words.push(format!("end of {family}"));
            continue;
        }
        let gone = update.unreach.iter().flat_map(|unreach| &unreach.prefixes);
        words.extend(gone.map(|prefix| format!("-{prefix}")));
        let reach = update.announced.iter().flat_map(|announced| &announced.reach);
        words.extend(reach.flat_map(|reach| &reach.prefixes).map(|prefix| format!("+{prefix}")));
    }
    words
}

fn advertised(neighbour: &mut Neighbour) -> Vec<String> {
    sent(&neighbour.advertise(seconds(0), PLENTY))
}

#[test]
fn without_a_restart_end_of_rib_follows_the_initial_routes_at_once() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(intent(&["10.1.0.0/26", "2001:db8:1::/122"], false));
    establish(&mut neighbour, seconds(0), 1, open(None));
    let expected = ["+10.1.0.0/26", "end of ipv4-unicast", "+2001:db8:1::/122", "end of ipv6-unicast"];
    assert_eq!(advertised(&mut neighbour), expected);
    assert!(neighbour.is_settled());
    neighbour.set_intent(intent(&["10.2.0.0/26"], true));
    assert_eq!(advertised(&mut neighbour), ["-10.1.0.0/26", "-2001:db8:1::/122", "+10.2.0.0/26"]);
}

#[test]
fn after_a_restart_end_of_rib_waits_for_the_set_to_be_complete() {
    let mut neighbour = neighbour(true);
    establish(&mut neighbour, seconds(0), 1, open(None));
    assert_eq!(advertised(&mut neighbour), [""; 0]);
    neighbour.set_intent(intent(&["10.1.0.0/26"], false));
    assert_eq!(advertised(&mut neighbour), ["+10.1.0.0/26"]);
    neighbour.set_intent(intent(&["10.1.0.0/26", "10.2.0.0/26"], true));
    let expected = ["end of ipv6-unicast", "+10.2.0.0/26", "end of ipv4-unicast"];
    assert_eq!(advertised(&mut neighbour), expected);
    neighbour.set_intent(intent(&["10.1.0.0/26"], true));
    assert_eq!(advertised(&mut neighbour), ["-10.2.0.0/26"], "End-of-RIB is said once");
}

/// One route that anybody may have, and one that is ours alone, which was found so after `verified` sessions had begun.
fn with_exclusive(verified: u64) -> Intent {
    let mut intent = intent(&["10.1.0.0/26"], true);
    let exclusive = RouteAttributes { exclusive: true, ..RouteAttributes::default() };
    Arc::make_mut(&mut intent.routes).insert("10.2.0.7/32".parse().unwrap(), exclusive);
    Intent { verified, ..intent }
}

#[test]
fn in_a_new_session_an_exclusive_route_waits_until_it_is_known_to_be_ours_still() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(with_exclusive(6));
    establish(&mut neighbour, seconds(0), 1, open(None));
    neighbour.began(7);
    let prefix = "10.2.0.7/32".parse().unwrap();
    assert_eq!(advertised(&mut neighbour), ["+10.1.0.0/26"], "End-of-RIB waits, so that nothing is swept");
    assert_eq!(neighbour.fate(&prefix), Fate::Unverified);
    neighbour.set_intent(with_exclusive(7));
    let expected = ["end of ipv6-unicast", "+10.2.0.7/32", "end of ipv4-unicast"];
    assert_eq!(advertised(&mut neighbour), expected);
    // It is another's meanwhile: with the next session it does not come.
    neighbour.handle(seconds(1), Input::Closed(ConnId(1), None));
    establish(&mut neighbour, seconds(1), 2, open(None));
    neighbour.began(8);
    assert_eq!(advertised(&mut neighbour), ["+10.1.0.0/26"]);
    neighbour.set_intent(intent(&["10.1.0.0/26"], true));
    assert_eq!(advertised(&mut neighbour), ["end of ipv4-unicast", "end of ipv6-unicast"]);
}

#[test]
fn a_second_session_before_the_set_is_complete_waits_as_well() {
    let mut neighbour = neighbour(true);
    neighbour.set_intent(intent(&["10.1.0.0/26"], false));
    establish(&mut neighbour, seconds(0), 1, open(None));
    advertised(&mut neighbour);
    neighbour.handle(seconds(1), Input::Closed(ConnId(1), None));
    establish(&mut neighbour, seconds(1), 2, open(None));
    assert_eq!(advertised(&mut neighbour), ["+10.1.0.0/26"]);
    neighbour.set_intent(intent(&["10.1.0.0/26"], true));
    assert_eq!(advertised(&mut neighbour), ["end of ipv4-unicast", "end of ipv6-unicast"]);
}

#[test]
fn end_of_rib_comes_after_the_last_route_however_little_room_there_is() {
    let mut neighbour = neighbour(false);
    let prefixes: Vec<String> = (0..4000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    neighbour.set_intent(intent(&prefixes, false));
    establish(&mut neighbour, seconds(0), 1, open(None));
    let mut words = Vec::new();
    let mut messages = 0;
    while !neighbour.is_settled() {
        let effects = neighbour.advertise(seconds(0), 1);
        assert_eq!(effects.len(), 1, "one message at a time");
        messages += 1;
        words.extend(sent(&effects));
    }
    assert_eq!(words.len(), 4002);
    let last_route = words.iter().rposition(|word| word.starts_with('+')).unwrap();
    let end = words.iter().position(|word| word == "end of ipv4-unicast").unwrap();
    assert!(last_route < end, "{last_route} {end}");
    assert_eq!(messages, 4 + 2, "16 kB of prefixes, packed");
}

#[test]
fn routes_of_a_family_without_a_next_hop_are_withheld_and_that_is_said_once() {
    let mut neighbour = neighbour(false);
    neighbour.policy.next_hops = NextHops::default();
    neighbour.set_intent(intent(&["10.1.0.0/26", "2001:db8:1::/122"], false));
    let effects = establish(&mut neighbour, seconds(0), 1, open(None));
    let why = Withheld::NoNextHop(Family::Ipv6Unicast);
    assert!(effects.contains(&Effect::Note(Note::Withheld(why))));
    assert_eq!(neighbour.withheld().collect::<Vec<_>>(), [why]);
    let expected = ["end of ipv6-unicast", "+10.1.0.0/26", "end of ipv4-unicast"];
    assert_eq!(advertised(&mut neighbour), expected);
    assert_eq!(neighbour.set_intent(intent(&["2001:db8:1::/122"], false)), []);
    neighbour.set_intent(intent(&[], false));
    assert_eq!(neighbour.withheld().count(), 0);
}

#[test]
fn a_refresh_sends_its_family_again() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(intent(&["10.1.0.0/26", "2001:db8:1::/122"], false));
    establish(&mut neighbour, seconds(0), 1, open(None));
    advertised(&mut neighbour);
    receive(
        &mut neighbour,
        seconds(1),
        1,
        Message::RouteRefresh(Some((Family::Ipv6Unicast, Refresh::Request))),
    );
    assert_eq!(advertised(&mut neighbour), ["+2001:db8:1::/122"]);
}

#[test]
fn nothing_is_sent_without_a_session_and_everything_with_the_next() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(intent(&["10.1.0.0/26"], false));
    assert_eq!(advertised(&mut neighbour), [""; 0]);
    assert!(neighbour.is_settled(), "there is nobody to tell");
    for id in 1..=2 {
        establish(&mut neighbour, seconds(id), id, open(None));
        assert!(advertised(&mut neighbour).contains(&"+10.1.0.0/26".to_owned()));
        assert_eq!(neighbour.advertised().count(), 1);
        neighbour.handle(seconds(id), Input::Closed(ConnId(id), None));
        assert_eq!(neighbour.advertised().count(), 0);
    }
}

fn their_route(prefix: &str) -> Message {
    let attributes =
        Attributes { origin: Origin::Igp, as_path: AsPath::sequence([65020]), ..Attributes::default() };
    let prefixes = vec![prefix.parse().unwrap()];
    let next_hop = IpAddr::from([10, 0, 0, 20]);
    Message::Update(Update::announce(attributes, Reach::new(Family::Ipv4Unicast, next_hop, prefixes)))
}

#[test]
fn a_malformed_update_is_noted_and_its_routes_go() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(None));
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    let Message::Update(update) = their_route("10.8.0.0/24") else { unreachable!() };
    let mut bytes = Message::Update(update).encode(CONTEXT);
    let origin = bytes.windows(4).position(|window| window == [0x40, 1, 1, 0]).unwrap();
    bytes[origin + 3] = 9;
    let effects = neighbour.handle(seconds(1), Input::Received(ConnId(1), bytes));
    assert!(matches!(effects.as_slice(), [Effect::Note(Note::Malformed(why))] if why.subcode == 6));
    assert_eq!(neighbour.received().len(), 0);
}

#[test]
fn an_enhanced_refresh_is_marked_at_both_ends_but_not_before_end_of_rib() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(intent(&["10.1.0.0/26", "2001:db8:1::/122"], false));
    let mut open = open(None);
    open.capabilities.push(Capability::EnhancedRefresh);
    establish(&mut neighbour, seconds(0), 1, open);
    let ask = Message::RouteRefresh(Some((Family::Ipv4Unicast, Refresh::Request)));
    receive(&mut neighbour, seconds(0), 1, ask.clone());
    let first = advertised(&mut neighbour);
    assert_eq!(first, ["+10.1.0.0/26", "end of ipv4-unicast", "+2001:db8:1::/122", "end of ipv6-unicast"]);
    receive(&mut neighbour, seconds(1), 1, ask);
    assert!(!neighbour.is_settled());
    let again = advertised(&mut neighbour);
    assert_eq!(again, ["begin ipv4-unicast", "+10.1.0.0/26", "refreshed ipv4-unicast"]);
    assert!(neighbour.is_settled());
}

#[test]
fn what_the_peer_does_not_say_again_in_a_marked_answer_goes() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(None));
    let mark = |meaning| Message::RouteRefresh(Some((Family::Ipv4Unicast, meaning)));
    let routes = |neighbour: &Neighbour| neighbour.received().len();
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    receive(&mut neighbour, seconds(0), 1, their_route("10.9.0.0/24"));
    receive(&mut neighbour, seconds(1), 1, mark(Refresh::Begin));
    receive(&mut neighbour, seconds(1), 1, their_route("10.9.0.0/24"));
    assert_eq!(routes(&neighbour), 2);
    receive(&mut neighbour, seconds(1), 1, mark(Refresh::End));
    assert_eq!(routes(&neighbour), 1);
    receive(&mut neighbour, seconds(2), 1, mark(Refresh::Begin));
    for now in (20..=380).step_by(20) {
        receive(&mut neighbour, seconds(now), 1, Message::Keepalive);
        neighbour.handle(seconds(now), Input::TimerTick);
    }
    assert_eq!(routes(&neighbour), 0, "an end that never comes is not waited for");
}

fn in_range(network: &str, max: u8, accept: bool) -> Rule {
    let network: IpNetwork = network.parse().unwrap();
    Rule { prefixes: vec![PrefixRange { network, min: network.prefix(), max }], accept, ..Rule::default() }
}

#[test]
fn an_export_filter_decides_by_prefix_and_may_change_while_the_session_goes_on() {
    let mut neighbour = neighbour(false);
    neighbour.set_intent(intent(&["10.1.0.0/26", "10.2.0.0/26"], false));
    establish(&mut neighbour, seconds(0), 1, open(None));
    advertised(&mut neighbour);
    let net = |text: &str| text.parse::<IpNetwork>().unwrap();
    assert!(matches!(neighbour.fate(&net("10.1.0.0/26")), Fate::Announced { rule: None, .. }));
    assert_eq!(neighbour.fate(&net("10.3.0.0/26")), Fate::NotOurs);
    let mut prepending = in_range("10.2.0.0/16", 32, true);
    prepending.set = Changes {
        prepend: 1,
        communities: vec![Community::Plain(9)],
        local_pref: Some(7),
        ..Changes::default()
    };
    let export = Filter { rules: vec![in_range("10.1.0.0/16", 32, false), prepending], otherwise: true };
    neighbour.set_policy(seconds(1), Policy { export, ..policy() });
    assert_eq!(advertised(&mut neighbour), ["-10.1.0.0/26", "+10.2.0.0/26"]);
    assert_eq!(neighbour.fate(&net("10.1.0.0/26")), Fate::Filtered(Some(0)));
    let Fate::Announced { export, rule: Some(1) } = neighbour.fate(&net("10.2.0.0/26")) else {
        panic!("not announced by the second rule")
    };
    let attributes = &export.attributes;
    assert_eq!(attributes.as_path, AsPath::sequence([65010, 65010]));
    assert_eq!((attributes.communities.as_slice(), attributes.local_pref), (&[9][..], None));
    neighbour.handle(seconds(2), Input::Closed(ConnId(1), None));
    assert_eq!(neighbour.fate(&net("10.2.0.0/26")), Fate::NoSession);
}

fn learned(neighbour: &Neighbour) -> Vec<String> {
    let held: BTreeSet<IpNetwork> = neighbour.received().iter().map(|route| route.prefix).collect();
    let passed = held.into_iter().filter(|prefix| !neighbour.learned(prefix).is_empty());
    passed.map(|prefix| prefix.to_string()).collect()
}

fn changed(neighbour: &mut Neighbour) -> BTreeSet<String> {
    neighbour.take_learned_changes().iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_learned_without_an_import_rule_and_a_changed_one_counts_for_what_is_held() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(None));
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    assert_eq!(learned(&neighbour), [""; 0]);
    let import = Filter { rules: vec![in_range("10.0.0.0/8", 24, true)], otherwise: false };
    neighbour.set_policy(seconds(0), Policy { import: import.clone(), ..policy() });
    assert_eq!(learned(&neighbour), ["10.8.0.0/24"]);
    assert_eq!(changed(&mut neighbour), BTreeSet::from(["10.8.0.0/24".to_owned()]));
    receive(&mut neighbour, seconds(0), 1, their_route("10.9.0.0/24"));
    receive(&mut neighbour, seconds(0), 1, their_route("10.9.0.0/26"));
    assert_eq!(learned(&neighbour), ["10.8.0.0/24", "10.9.0.0/24"]);
    assert_eq!(changed(&mut neighbour), BTreeSet::from(["10.9.0.0/24", "10.9.0.0/26"].map(str::to_owned)));
    // A part of our own block, and our own block, stay ours.
    neighbour.set_intent(intent(&["10.8.0.0/23", "10.9.0.0/24"], false));
    assert_eq!(learned(&neighbour), [""; 0]);
    assert_eq!(changed(&mut neighbour).len(), 3);
    neighbour.set_intent(intent(&["10.8.0.0/23", "10.9.0.0/24", "10.10.0.0/24"], false));
    assert_eq!(changed(&mut neighbour).len(), 0, "nothing that is held lies in what is new");
    // Whether it is announced or not.
    let own = Arc::new(BTreeSet::from(["10.8.0.0/23", "10.9.0.0/24"].map(|own| own.parse().unwrap())));
    neighbour.set_intent(Intent { own, ..intent(&[], false) });
    assert_eq!((learned(&neighbour).len(), changed(&mut neighbour).len()), (0, 0));
    neighbour.set_intent(intent(&[], false));
    assert_eq!(learned(&neighbour).len(), 2);
    neighbour.set_policy(seconds(0), policy());
    assert_eq!(learned(&neighbour), [""; 0]);
    neighbour.set_policy(seconds(0), Policy { import, ..policy() });
    let Message::Update(mut leaving) = their_route("10.8.0.0/24") else { unreachable!() };
    leaving.announced.as_mut().unwrap().attributes.communities = vec![crate::export::GRACEFUL_SHUTDOWN];
    receive(&mut neighbour, seconds(0), 1, Message::Update(leaving));
    let paths = neighbour.learned(&"10.8.0.0/24".parse().unwrap());
    assert_eq!(paths[0].attributes.local_pref, Some(0), "RFC 8326: the last choice");
    changed(&mut neighbour);
    neighbour.handle(seconds(1), Input::Closed(ConnId(1), None));
    assert_eq!((learned(&neighbour).len(), changed(&mut neighbour).len()), (0, 3));
}

#[test]
fn ones_own_as_in_a_path_is_asked_for_again_once_it_is_allowed() {
    let mut neighbour = neighbour(false);
    let mut open = open(None);
    open.capabilities.push(Capability::RouteRefresh);
    establish(&mut neighbour, seconds(0), 1, open);
    let Message::Update(mut looped) = their_route("10.8.0.0/24") else { unreachable!() };
    looped.announced.as_mut().unwrap().attributes.as_path = AsPath::sequence([65020, 65010]);
    let looped = Message::Update(looped);
    receive(&mut neighbour, seconds(0), 1, looped.clone());
    assert_eq!(neighbour.received().len(), 0);
    let effects = neighbour.set_policy(seconds(1), Policy { allow_own_as: 1, ..policy() });
    assert_eq!(sent(&effects), ["ask ipv4-unicast", "ask ipv6-unicast"]);
    receive(&mut neighbour, seconds(1), 1, looped);
    assert_eq!(neighbour.received().len(), 1);
}

#[test]
fn a_peer_with_too_many_routes_is_warned_of_and_then_left() {
    let mut neighbour = neighbour(false);
    let retry = Some(seconds(30));
    let prefix_limit = Some(PrefixLimit { max: 4, warn_at: 50, retry });
    neighbour.set_policy(seconds(0), Policy { prefix_limit, ..policy() });
    establish(&mut neighbour, seconds(0), 1, open(None));
    let mut announce =
        |count: u8| receive(&mut neighbour, seconds(0), 1, their_route(&format!("10.8.{count}.0/24")));
    assert_eq!((announce(1), announce(2)), (Vec::new(), Vec::new()));
    let family = Family::Ipv4Unicast;
    let many = |count, max| ManyPrefixes { family, count, max };
    assert_eq!(announce(3), [Effect::Note(Note::ManyPrefixes(many(3, 4)))]);
    assert_eq!(announce(4), [], "said once");
    let effects = announce(5);
    let Effect::Send(_, bytes) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(bytes[19..], [6, 1, 0, 1, 1, 0, 0, 0, 4]);
    assert_eq!((neighbour.received().len(), neighbour.deadline()), (0, retry));
    assert_eq!(neighbour.handle(seconds(30), Input::TimerTick), [Effect::Connect]);
}

#[test]
fn another_limit_is_kept_at_once() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(None));
    for third in 1..=3 {
        receive(&mut neighbour, seconds(0), 1, their_route(&format!("10.8.{third}.0/24")));
    }
    assert_eq!(neighbour.many_prefixes(), [], "any number");
    let mut limit = |max| {
        let prefix_limit = Some(PrefixLimit { max, warn_at: 50, retry: None });
        let effects = neighbour.set_policy(seconds(1), Policy { prefix_limit, ..policy() });
        (effects, neighbour.many_prefixes())
    };
    let many = |max| ManyPrefixes { family: Family::Ipv4Unicast, count: 3, max };
    let warned = |max| (vec![Effect::Note(Note::ManyPrefixes(many(max)))], vec![many(max)]);
    assert_eq!(limit(4), warned(4));
    assert_eq!(limit(4), (vec![], vec![many(4)]), "said once");
    assert_eq!(limit(9), (vec![], vec![]));
    assert_eq!(limit(5), warned(5), "of another limit it is said again");
    let (effects, left) = limit(2);
    assert!(
        matches!(effects[..], [Effect::Send(..), Effect::Close(_), Effect::Note(Note::Down(_))]),
        "{effects:?}"
    );
    assert_eq!((left, neighbour.peer().state()), (vec![], StateName::Idle));
}

#[test]
fn several_paths_of_a_prefix_are_learned_from_a_peer_that_adds_them() {
    let mut neighbour = neighbour(false);
    let import = Filter::ACCEPT;
    neighbour.set_policy(seconds(0), Policy { import, ..policy() });
    let mut open = open(None);
    let family = Family::Ipv4Unicast;
    open.capabilities.push(Capability::AddPath(vec![AddPath { family, receive: false, send: true }]));
    establish(&mut neighbour, seconds(0), 1, open);
    let Message::Update(update) = their_route("10.8.0.0/24") else { unreachable!() };
    let body = Message::Update(update).encode(CONTEXT);
    let (head, prefix) = body.split_at(body.len() - 4);
    for path_id in 1..=2u8 {
        let mut bytes = [head, &[0, 0, 0, path_id], prefix].concat();
        bytes[17] += 4;
        neighbour.handle(seconds(0), Input::Received(ConnId(1), bytes));
    }
    let prefix: IpNetwork = "10.8.0.0/24".parse().unwrap();
    assert_eq!((neighbour.received().len(), neighbour.learned(&prefix).len()), (2, 2));
}
