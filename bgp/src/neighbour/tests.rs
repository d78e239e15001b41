//! When routes and End-of-RIB go out, and what becomes of routes that came in.

use super::*;
use crate::fsm::{Connection, Restart};
use crate::wire::{
    AsPath, Attributes, Capability, Context, Framer, GracefulRestart, Open, Origin, RestartFamily,
};
use std::net::{IpAddr, Ipv4Addr};

const PLENTY: usize = 1 << 20;
const CONTEXT: Context = Context { four_octet_as: true, external: true };

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn neighbour(restarting: bool) -> Neighbour {
    let settings = Settings {
        local_asn: 65010,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        peer_asn: 65020,
        hold_time: 90,
        connect_retry: 5,
        families: Family::ALL.to_vec(),
        restart: Restart { time: 60, restarting, forwarding_preserved: true },
        seed: 1,
    };
    let next_hops = NextHops { ipv4: None, ipv6: Some("2001:db8::10".parse().unwrap()) };
    let mut neighbour = Neighbour::new(settings, next_hops, seconds(0));
    neighbour.handle(seconds(0), Input::Start);
    neighbour
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
    GracefulRestart { restarting: false, time: 120, families }
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
    Intent { routes: Arc::new(routes.collect()), initial_complete }
}

/// What was sent, as words: `+10.0.0.0/24`, `-10.0.0.0/24`, `end of ipv4-unicast`.
fn sent(effects: &[Effect]) -> Vec<String> {
    let mut words = Vec::new();
    for effect in effects {
        let Effect::Send(_, bytes) = effect else { continue };
        let mut framer = Framer::default();
        framer.push(bytes);
        let Some(Ok(Message::Update(update))) = framer.next(CONTEXT) else { panic!("no UPDATE") };
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
    neighbour.next_hops = NextHops::default();
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
    receive(&mut neighbour, seconds(1), 1, Message::RouteRefresh(Some(Family::Ipv6Unicast)));
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
    let attributes = Attributes {
        origin: Origin::Igp,
        as_path: AsPath::sequence([65020]),
        med: None,
        local_pref: None,
        communities: Vec::new(),
    };
    let prefixes = vec![prefix.parse().unwrap()];
    let next_hop = IpAddr::from([10, 0, 0, 20]);
    Message::Update(Update::announce(attributes, Reach { family: Family::Ipv4Unicast, next_hop, prefixes }))
}

/// A neighbour that sent two routes and then lost its connection at 10 s.
fn lost(restart: Option<GracefulRestart>) -> Neighbour {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(restart));
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    receive(&mut neighbour, seconds(0), 1, their_route("10.9.0.0/24"));
    assert_eq!(neighbour.received().len(), 2);
    neighbour.handle(seconds(10), Input::Closed(ConnId(1), None));
    neighbour
}

#[test]
fn routes_of_a_peer_that_does_not_restart_gracefully_go_with_its_session() {
    assert_eq!(lost(None).received().len(), 0);
}

#[test]
fn routes_of_a_restarting_peer_stay_until_its_restart_time_is_over() {
    let mut neighbour = lost(Some(kept(true)));
    neighbour.handle(seconds(129), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 2);
    assert!(neighbour.deadline().is_some_and(|at| at <= seconds(130)));
    neighbour.handle(seconds(130), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 0);
}

#[test]
fn a_peer_that_returns_keeps_what_it_announces_before_its_end_of_rib() {
    let mut neighbour = lost(Some(kept(true)));
    establish(&mut neighbour, seconds(20), 2, open(Some(kept(true))));
    assert_eq!(neighbour.received().len(), 2);
    receive(&mut neighbour, seconds(21), 2, their_route("10.9.0.0/24"));
    receive(&mut neighbour, seconds(22), 2, Message::Update(Update::end_of_rib(Family::Ipv4Unicast)));
    let held: Vec<String> = neighbour.received().iter().map(|(prefix, _)| prefix.to_string()).collect();
    assert_eq!(held, ["10.9.0.0/24"]);
    assert!(!neighbour.received().has_stale());
}

#[test]
fn a_peer_that_returns_without_its_forwarding_state_loses_its_stale_routes_at_once() {
    let mut neighbour = lost(Some(kept(true)));
    establish(&mut neighbour, seconds(20), 2, open(Some(kept(false))));
    assert_eq!(neighbour.received().len(), 0);
}

#[test]
fn stale_routes_do_not_outlive_a_peer_that_never_sends_end_of_rib() {
    let mut neighbour = lost(Some(kept(true)));
    establish(&mut neighbour, seconds(20), 2, open(Some(kept(true))));
    let mut now = seconds(20);
    while now < seconds(380) {
        now += seconds(20);
        receive(&mut neighbour, now, 2, Message::Keepalive);
        neighbour.handle(now, Input::TimerTick);
    }
    assert_eq!(neighbour.received().len(), 0);
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
