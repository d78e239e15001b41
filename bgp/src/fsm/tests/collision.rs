//! Two connections at once (RFC 4271 section 6.8), and two speakers that run against each other.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Connection 1 dialled, 2 accepted, and OPEN received on both, in either order.
fn both_open(router_id: Ipv4Addr, order: [u64; 2]) -> (Peer, Vec<String>) {
    let mut peer = Peer::new(Settings { router_id, ..settings() }, seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer.handle(seconds(0), Input::Connected(connection(1)));
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer.handle(seconds(0), received(order[0], Message::Open(their_open())));
    let outputs = peer.handle(seconds(0), received(order[1], Message::Open(their_open())));
    (peer, words(&outputs))
}

const LOWER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const HIGHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);

#[test]
fn with_the_lower_router_id_the_connection_that_the_peer_dialled_stays() {
    let (_, outputs) = both_open(LOWER, [1, 2]);
    assert_eq!(outputs, ["1: 6/7", "1: close", "2: KEEPALIVE"]);
    let (_, outputs) = both_open(LOWER, [2, 1]);
    assert_eq!(outputs, ["1: 6/7", "1: close"]);
}

#[test]
fn with_the_higher_router_id_the_connection_that_we_dialled_stays() {
    let (_, outputs) = both_open(HIGHER, [1, 2]);
    assert_eq!(outputs, ["2: 6/7", "2: close"]);
    let (_, outputs) = both_open(HIGHER, [2, 1]);
    assert_eq!(outputs, ["2: 6/7", "2: close", "1: KEEPALIVE"]);
}

#[test]
fn with_equal_router_ids_the_higher_as_number_decides() {
    // RFC 6286 section 2.3. Ours is the lower.
    let (_, outputs) = both_open(their_open().router_id, [1, 2]);
    assert_eq!(outputs, ["1: 6/7", "1: close", "2: KEEPALIVE"]);
}

#[test]
fn the_connection_that_stays_becomes_the_session() {
    let (mut peer, _) = both_open(HIGHER, [1, 2]);
    assert_eq!(words(&peer.handle(seconds(0), received(1, Message::Keepalive))), ["up"]);
    assert_eq!(peer.state(), StateName::Established);
}

#[test]
fn a_session_closes_what_has_not_come_as_far() {
    let mut peer = open_confirm();
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    let outputs = peer.handle(seconds(0), received(1, Message::Keepalive));
    assert_eq!(words(&outputs), ["2: 6/7", "2: close", "up"]);
}

#[test]
fn beside_a_session_with_a_peer_that_only_helps_a_connection_is_refused() {
    let mut peer = established_with(helper_open());
    let outputs = peer.handle(seconds(1), Input::Incoming(connection(2)));
    assert_eq!(words(&outputs), ["2: 6/7", "2: close"]);
    assert_eq!(peer.state(), StateName::Established);
}

#[test]
fn a_peer_that_restarts_takes_its_session_over_once_it_sends_open() {
    let mut peer = established();
    assert_eq!(words(&peer.handle(seconds(1), Input::Incoming(connection(2)))), ["2: OPEN"]);
    assert_eq!(peer.state(), StateName::Established, "a bare connection proves nothing");
    let outputs = peer.handle(seconds(1), received(2, Message::Open(their_open())));
    assert_eq!(words(&outputs), ["1: close", "down, keep", "2: KEEPALIVE"]);
    assert_eq!(words(&peer.handle(seconds(1), received(2, Message::Keepalive))), ["up"]);
}

#[test]
fn a_challenger_that_is_refused_does_not_touch_the_session() {
    let mut peer = established();
    peer.handle(seconds(1), Input::Incoming(connection(2)));
    let mut open = their_open();
    open.hold_time = 1;
    let outputs = peer.handle(seconds(1), received(2, Message::Open(open)));
    assert_eq!(words(&outputs), ["2: 2/6", "2: close"]);
    assert_eq!(peer.state(), StateName::Established);
    assert_eq!(peer.last_error(), None);
}

/// Two speakers with a network between them. A connection has the same number at both ends; what is in
/// flight arrives in order per connection and end, and in any order otherwise.
struct Pair {
    peers: [Peer; 2],
    now: Duration,
    flights: BTreeMap<(u64, usize), VecDeque<Flight>>,
    open: BTreeSet<(u64, usize)>,
    next: u64,
    ups: [i32; 2],
}

enum Flight {
    Connected,
    Incoming,
    Bytes(Vec<u8>),
    Closed,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let left = Settings { seed, ..settings() };
        let right = Settings {
            local_asn: PEER_AS,
            peer_asn: LOCAL_AS,
            router_id: their_open().router_id,
            seed: seed.wrapping_mul(31) + 1,
            ..settings()
        };
        let peers = [left, right].map(|settings| Peer::new(settings, seconds(0)));
        let mut pair = Pair {
            peers,
            now: seconds(0),
            flights: BTreeMap::new(),
            open: BTreeSet::new(),
            next: 1,
            ups: [0; 2],
        };
        pair.feed(0, Input::Start);
        pair.feed(1, Input::Start);
        pair
    }

    fn feed(&mut self, side: usize, input: Input) {
        for output in self.peers[side].handle(self.now, input) {
            match output {
                Output::Connect => {
                    let id = self.next;
                    self.next += 1;
                    self.flights.entry((id, side)).or_default().push_back(Flight::Connected);
                    self.flights.entry((id, 1 - side)).or_default().push_back(Flight::Incoming);
                }
                Output::Send(id, bytes) => self.fly(id.0, side, Flight::Bytes(bytes)),
                Output::Close(id) => {
                    assert!(self.open.remove(&(id.0, side)), "closes what is not open");
                    self.fly(id.0, side, Flight::Closed);
                }
                Output::Event(Event::Up(_)) => self.ups[side] += 1,
                Output::Event(Event::Down(_)) => self.ups[side] -= 1,
                Output::Event(_) => {}
            }
            assert!((0..=1).contains(&self.ups[side]), "Up and Down alternate");
        }
    }

    fn fly(&mut self, id: u64, from: usize, flight: Flight) {
        self.flights.entry((id, 1 - from)).or_default().push_back(flight);
    }

    /// Lets one thing in flight arrive, or time pass when there is none.
    fn step(&mut self, choice: usize) {
        self.flights.retain(|_, queue| !queue.is_empty());
        let Some(&(id, side)) = self.flights.keys().nth(choice % self.flights.len().max(1)) else {
            self.now = self.peers.iter().filter_map(Peer::deadline).min().expect("never stuck").max(self.now);
            return (0..2).for_each(|side| self.feed(side, Input::TimerTick));
        };
        let flight = self.flights.get_mut(&(id, side)).and_then(VecDeque::pop_front).expect("in flight");
        let known = self.open.contains(&(id, side));
        match flight {
            Flight::Connected | Flight::Incoming => {
                self.open.insert((id, side));
                let incoming = matches!(flight, Flight::Incoming);
                let connection = connection(id);
                self.feed(
                    side,
                    if incoming { Input::Incoming(connection) } else { Input::Connected(connection) },
                );
            }
            Flight::Bytes(bytes) if known => self.feed(side, Input::Received(ConnId(id), bytes)),
            Flight::Closed if known => {
                self.open.remove(&(id, side));
                self.feed(side, Input::Closed(ConnId(id), None));
            }
            Flight::Bytes(_) | Flight::Closed => {}
        }
    }

    fn settled(&self) -> bool {
        let up = self.peers.iter().all(|peer| peer.state() == StateName::Established);
        up && self.flights.values().all(VecDeque::is_empty)
    }
}

proptest! {
    #[test]
    fn two_speakers_that_dial_each_other_end_with_one_session(
        seed: u64,
        choices in proptest::collection::vec(any::<usize>(), 400),
    ) {
        let mut pair = Pair::new(seed);
        let steps = choices.iter().position(|&choice| {
            pair.step(choice);
            pair.settled()
        });
        prop_assert!(steps.is_some(), "{:?}, open {:?}", pair.peers.map(|peer| peer.state()), pair.open);
        let open: Vec<_> = pair.open.iter().collect();
        prop_assert_eq!(open.len(), 2, "one connection, with its two ends: {:?}", open);
        prop_assert!(pair.now < seconds(10), "after {:?}", pair.now);
    }

    #[test]
    fn no_order_of_inputs_panics_or_closes_what_is_not_open(
        inputs in proptest::collection::vec((0..14u8, 1..4u64, 0..50u64), 0..60),
    ) {
        let mut peer = Peer::new(settings(), seconds(0));
        let mut now = seconds(0);
        let mut open = BTreeSet::new();
        let mut up = false;
        for (kind, id, wait) in inputs {
            now += seconds(wait);
            let fresh = open.insert(id);
            let input = match kind {
                0 => Input::Start,
                1 => Input::Stop(Stop::Restart),
                2 => Input::Stop(Stop::Deconfigured),
                3 if fresh => Input::Connected(connection(id)),
                4 if fresh => Input::Incoming(connection(id)),
                5 => Input::ConnectFailed(ErrorKind::TimedOut),
                6 | 7 if !fresh => received(id, Message::Open(their_open())),
                8 | 9 if !fresh => received(id, Message::Keepalive),
                10 if !fresh => received(id, Message::Update(update())),
                11 if !fresh => received(id, Message::Notification(Notification::new(6, 7))),
                12 if !fresh => { open.remove(&id); Input::Closed(ConnId(id), None) }
                13 => Input::Advertise(update()),
                _ => Input::TimerTick,
            };
            if fresh && !matches!(input, Input::Connected(_) | Input::Incoming(_)) {
                open.remove(&id);
            }
            for output in peer.handle(now, input) {
                match output {
                    Output::Close(id) => prop_assert!(open.remove(&id.0)),
                    Output::Send(id, _) => prop_assert!(open.contains(&id.0)),
                    Output::Event(Event::Up(_)) => prop_assert!(!std::mem::replace(&mut up, true)),
                    Output::Event(Event::Down(_)) => prop_assert!(std::mem::replace(&mut up, false)),
                    Output::Event(_) => prop_assert!(up),
                    Output::Connect => {}
                }
            }
            prop_assert_eq!(up, peer.state() == StateName::Established);
        }
    }
}
