//! Every state against every event, once: what is put out, and the state that follows.

use super::*;
use std::fmt::Write;

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

fn too_many(retry: Option<Duration>) -> Stop {
    Stop::TooManyPrefixes { family: Family::Ipv4Unicast, limit: 10, retry }
}

type Make<T> = (&'static str, fn() -> T);

const STATES: &[Make<Peer>] = &[
    ("Idle, stopped", || Peer::new(settings(), seconds(0))),
    ("Idle, waiting", waiting_idle),
    ("Connect", started),
    ("Active", active),
    ("Active, passive", passive),
    ("OpenSent", open_sent),
    ("OpenSent twice", two_handshakes),
    ("OpenConfirm", open_confirm),
    ("Established", established),
    ("Established, challenged", challenged),
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
    ("KEEPALIVE", || received(1, Message::Keepalive)),
    ("UPDATE", || received(1, Message::Update(update()))),
    ("End-of-RIB", || received(1, Message::Update(Update::end_of_rib(Family::Ipv6Unicast)))),
    ("ROUTE-REFRESH", || received(1, refresh(Refresh::Request))),
    ("BoRR", || received(1, refresh(Refresh::Begin))),
    ("EoRR", || received(1, refresh(Refresh::End))),
    ("HARD RESET", || received(1, Message::Notification(Notification::new(6, 4).hard()))),
    ("NOTIFICATION", || received(1, Message::Notification(Notification::new(6, 4)))),
    ("garbage", || Input::Received(ConnId(1), b"GET / HTTP/1.1".to_vec())),
    ("part of a message", || Input::Received(ConnId(1), vec![0xff; 10])),
    ("OPEN on 2", || received(2, Message::Open(their_open()))),
    ("KEEPALIVE on 2", || received(2, Message::Keepalive)),
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
        if let Some(deadline) = peer.deadline() {
            let outputs = peer.handle(deadline, Input::TimerTick);
            let after = deadline.as_secs();
            writeln!(
                table,
                "  tick after {after:3} s     -> {} [{}]",
                peer.state(),
                words(&outputs).join(", ")
            )
            .unwrap();
        }
    }
    let expected = include_str!("table.txt");
    let differing = table.lines().zip(expected.lines()).find(|(got, wanted)| got != wanted);
    assert!(table == expected, "first difference (got, wanted): {differing:#?}\nthe whole table:\n{table}");
}
