//! Every state against every event, once: what is put out, and the state that follows.

use super::*;
use std::{collections::BTreeSet, fmt::Write};

fn waiting_idle() -> Peer {
    let mut peer = open_sent();
    peer.handle(seconds(0), received(1, Message::Notification(Notification::new(2, 2))));
    peer
}

fn active() -> Peer {
    let mut peer = started();
    peer.handle(seconds(0), Input::ConnectFailed(ErrorKind::ConnectionRefused));
    peer
}

fn two_handshakes() -> Peer {
    let mut peer = open_sent();
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer
}

/// Connection 1 has come farther than 2.
fn ahead() -> Peer {
    let mut peer = open_confirm();
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer
}

/// It dials, and the peer has as well.
fn called_meanwhile() -> Peer {
    let mut peer = started();
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer
}

/// Without keepalives, so that nothing but the challenger's time is over.
fn challenged_in_silence() -> Peer {
    let settings = Settings { timers: Timers { hold: 0, ..settings().timers }, ..settings() };
    let mut peer = Peer::new(settings, seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer.handle(seconds(0), Input::Connected(connection(1)));
    peer.handle(seconds(0), received(1, Message::Open(their_open())));
    peer.handle(seconds(0), received(1, Message::Keepalive));
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer
}

fn challenged() -> Peer {
    let mut peer = established();
    peer.handle(seconds(0), Input::Incoming(connection(2)));
    peer
}

fn passive() -> Peer {
    let mut peer = Peer::new(Settings { passive: true, ..settings() }, seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer
}

/// With a peer that survives NOTIFICATIONs (RFC 8538).
fn hardened() -> Peer {
    let mut open = their_open();
    for capability in &mut open.capabilities {
        if let Capability::GracefulRestart(restart) = capability {
            restart.notification = true;
        }
    }
    established_with(open)
}

/// Something waits for a peer that does not read.
fn blocked() -> Peer {
    let settings = Settings { timers: Timers { hold: 0, connect_retry: 20, send_hold: 40 }, ..settings() };
    let mut peer = Peer::new(settings, seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer.handle(seconds(0), Input::Connected(connection(1)));
    peer.handle(seconds(0), received(1, Message::Open(their_open())));
    peer.handle(seconds(0), received(1, Message::Keepalive));
    peer.handle(seconds(0), Input::Advertise(update()));
    peer
}

fn refresh(meaning: Refresh) -> Message {
    Message::RouteRefresh(Some((Family::Ipv4Unicast, meaning)))
}

/// A message with some octets overwritten.
fn spoilt(message: Message, at: usize, octets: &[u8]) -> Input {
    let Input::Received(id, mut bytes) = received(1, message) else { unreachable!() };
    bytes[at..at + octets.len()].copy_from_slice(octets);
    Input::Received(id, bytes)
}

fn too_many(retry: Option<Duration>) -> Stop {
    Stop::TooManyPrefixes { family: Family::Ipv4Unicast, limit: 10, retry }
}

type Make<T> = (&'static str, fn() -> T);

const STATES: &[Make<Peer>] = &[
    ("Idle, stopped", || Peer::new(settings(), seconds(0))),
    ("Idle, waiting", waiting_idle),
    ("Connect", started),
    ("Connect, called meanwhile", called_meanwhile),
    ("Active", active),
    ("Active, passive", passive),
    ("OpenSent", open_sent),
    ("OpenSent twice", two_handshakes),
    ("OpenConfirm", open_confirm),
    ("OpenConfirm, ahead of another", ahead),
    ("Established", established),
    ("Established, challenged", challenged),
    ("Established, challenged in silence", challenged_in_silence),
    ("Established, RFC 8538", hardened),
    ("Established, blocked", blocked),
];

const EVENTS: &[Make<Input>] = &[
    ("Start", || Input::Start),
    ("Stop to restart", || Input::Stop(Stop::Restart)),
    ("Stop, shutdown", || Input::Stop(Stop::Shutdown("bye".to_owned()))),
    ("Stop, too many", || Input::Stop(too_many(None))),
    ("Stop, for a while", || Input::Stop(too_many(Some(seconds(30))))),
    ("Stop for good", || Input::Stop(Stop::Deconfigured)),
    ("Connected", || Input::Connected(connection(9))),
    ("ConnectFailed", || Input::ConnectFailed(ErrorKind::ConnectionRefused)),
    ("Incoming", || Input::Incoming(connection(9))),
    ("OPEN", || received(1, Message::Open(their_open()))),
    ("OPEN, version 3", || spoilt(Message::Open(their_open()), VERSION, &[3])),
    ("OPEN, malformed", || spoilt(Message::Open(their_open()), PARAMETERS, &[255])),
    ("KEEPALIVE", || received(1, Message::Keepalive)),
    ("UPDATE", || received(1, Message::Update(update()))),
    ("UPDATE, malformed", || spoilt(Message::Update(update()), WITHDRAWN, &[255; 2])),
    ("UPDATE, taken back", || spoilt(Message::Update(update()), ORIGIN, &[7])),
    ("End-of-RIB", || received(1, Message::Update(Update::end_of_rib(Family::Ipv6Unicast)))),
    ("ROUTE-REFRESH", || received(1, refresh(Refresh::Request))),
    ("BoRR", || received(1, refresh(Refresh::Begin))),
    ("EoRR", || received(1, refresh(Refresh::End))),
    ("HARD RESET", || received(1, Message::Notification(Notification::new(6, 4).hard()))),
    ("NOTIFICATION", || received(1, Message::Notification(Notification::new(6, 4)))),
    ("garbage", || Input::Received(ConnId(1), b"GET / HTTP/1.1 and so on".to_vec())),
    ("part of a message", || Input::Received(ConnId(1), vec![0xff; 10])),
    ("OPEN on 2", || received(2, Message::Open(their_open()))),
    ("KEEPALIVE on 2", || received(2, Message::Keepalive)),
    ("UPDATE on 2", || received(2, Message::Update(update()))),
    ("NOTIFICATION on 2", || received(2, Message::Notification(Notification::new(6, 4)))),
    ("garbage on 2", || Input::Received(ConnId(2), b"GET / HTTP/1.1 and so on".to_vec())),
    ("Closed", || Input::Closed(ConnId(1), None)),
    ("Closed 2", || Input::Closed(ConnId(2), None)),
    ("Closed, unknown", || Input::Closed(ConnId(77), None)),
    ("Advertise", || Input::Advertise(update())),
    ("Refresh", || Input::Refresh(Family::Ipv4Unicast, Refresh::Begin)),
    ("Written, all", || Input::Written { id: ConnId(1), all: true }),
    ("Written, some", || Input::Written { id: ConnId(1), all: false }),
    ("Path down", || Input::PathDown { independent: false }),
    ("Path down, C bit", || Input::PathDown { independent: true }),
    ("TimerTick too early", || Input::TimerTick),
];

/// Where these stand in their messages.
const VERSION: usize = 19;
const PARAMETERS: usize = 28;
const WITHDRAWN: usize = 19;
const ORIGIN: usize = 26;

/// Another input, or another message, is another row of the table.
fn number(input: &Input) -> usize {
    match input {
        Input::Start => 0,
        Input::Stop(_) => 1,
        Input::Connected(_) => 2,
        Input::ConnectFailed(_) => 3,
        Input::Incoming(_) => 4,
        Input::Closed(..) => 5,
        Input::Advertise(_) => 6,
        Input::Refresh(..) => 7,
        Input::Written { .. } => 8,
        Input::PathDown { .. } => 9,
        Input::TimerTick => 10,
        Input::Received(_, bytes) => {
            let mut framer = Framer::default();
            framer.push(bytes);
            match framer.next(Context { four_octet_as: true, external: true, ..Context::default() }) {
                None => 11,
                Some(Err(_)) => 12,
                Some(Ok(Message::Open(_))) => 13,
                Some(Ok(Message::Update(_))) => 14,
                Some(Ok(Message::Notification(_))) => 15,
                Some(Ok(Message::Keepalive)) => 16,
                Some(Ok(Message::RouteRefresh(_))) => 17,
            }
        }
    }
}

#[test]
fn no_event_is_missing_from_the_table() {
    let there: BTreeSet<usize> = EVENTS.iter().map(|(_, make)| number(&make())).collect();
    assert_eq!(there, (0..18).collect());
}

/// Its timers, one after the other, until they have led elsewhere.
const TICKS: usize = 4;

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    let mut table = String::new();
    for (state, make_peer) in STATES {
        writeln!(table, "{state}").unwrap();
        for (event, make_input) in EVENTS {
            let mut peer = make_peer();
            let outputs = peer.handle(seconds(0), make_input());
            writeln!(table, "  {event:20} -> {} [{}]", peer.state(), words(&outputs).join(", ")).unwrap();
        }
        let mut peer = make_peer();
        let before = peer.state();
        for _ in 0..TICKS {
            let Some(deadline) = peer.deadline().filter(|_| peer.state() == before) else { break };
            let outputs = words(&peer.handle(deadline, Input::TimerTick)).join(", ");
            writeln!(table, "  tick after {:3} s     -> {} [{outputs}]", deadline.as_secs(), peer.state())
                .unwrap();
        }
    }
    let expected = include_str!("table.txt");
    let differing = table.lines().zip(expected.lines()).find(|(got, wanted)| got != wanted);
    assert!(table == expected, "first difference (got, wanted): {differing:#?}\nthe whole table:\n{table}");
}
