//! The state machine: every state against every event, timers, refusals, collisions, and two of them
//! against each other.

mod collision;
mod session;
mod table;

use super::*;
use crate::wire::{
    Attributes, Capability, Context, Framer, GracefulRestart, Message, Notification, Open, Origin, Reach,
    RestartFamily,
};
use std::time::Duration;

pub(super) const LOCAL_AS: u32 = 65010;
pub(super) const PEER_AS: u32 = 65020;
pub(super) const HOLD: u16 = 90;

pub(super) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(super) fn settings() -> Settings {
    Settings {
        local_asn: LOCAL_AS,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        peer_asn: PEER_AS,
        timers: Timers { hold: HOLD, connect_retry: 20, send_hold: 0 },
        families: Family::ALL.to_vec(),
        restart: Restart { time: 60, restarting: true, forwarding_preserved: true },
        passive: false,
        add_path: false,
        extended_next_hop: false,
        link_local: false,
        seed: 7,
    }
}

pub(super) fn connection(id: u64) -> Connection {
    Connection { id: ConnId(id), local: IpAddr::from([10, 0, 0, 10]) }
}

/// The peer's OPEN. Its router id is the higher one.
pub(super) fn their_open() -> Open {
    let restart = GracefulRestart {
        restarting: false,
        notification: false,
        time: 120,
        families: vec![RestartFamily { family: Family::Ipv4Unicast, forwarding: true }],
    };
    Open {
        asn: PEER_AS,
        hold_time: 180,
        router_id: Ipv4Addr::new(10, 0, 0, 20),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::GracefulRestart(restart),
            Capability::FourOctetAs(PEER_AS),
        ],
    }
}

/// As [`their_open`], of a peer that only helps others to restart.
pub(super) fn helper_open() -> Open {
    let mut open = their_open();
    open.capabilities.retain(|capability| !matches!(capability, Capability::GracefulRestart(_)));
    let helper = GracefulRestart { restarting: false, notification: false, time: 0, families: Vec::new() };
    open.capabilities.push(Capability::GracefulRestart(helper));
    open
}

pub(super) fn received(id: u64, message: Message) -> Input {
    let context = Context { four_octet_as: true, external: true, ..Context::default() };
    Input::Received(ConnId(id), message.encode(context))
}

pub(super) fn update() -> Update {
    let attributes = Attributes {
        origin: Origin::Igp,
        as_path: crate::wire::AsPath::sequence([PEER_AS]),
        ..Attributes::default()
    };
    let prefixes = vec!["10.1.0.0/16".parse().unwrap()];
    let next_hop = IpAddr::from([10, 0, 0, 20]);
    Update::announce(attributes, Reach::new(Family::Ipv4Unicast, next_hop, prefixes))
}

pub(super) fn started() -> Peer {
    let mut peer = Peer::new(settings(), seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer
}

/// Connection 1, dialled.
pub(super) fn open_sent() -> Peer {
    let mut peer = started();
    peer.handle(seconds(0), Input::Connected(connection(1)));
    peer
}

pub(super) fn open_confirm() -> Peer {
    let mut peer = open_sent();
    peer.handle(seconds(0), received(1, Message::Open(their_open())));
    peer
}

pub(super) fn established() -> Peer {
    established_with(their_open())
}

pub(super) fn established_with(open: Open) -> Peer {
    let mut peer = open_sent();
    peer.handle(seconds(0), received(1, Message::Open(open)));
    peer.handle(seconds(0), received(1, Message::Keepalive));
    assert_eq!(peer.state(), StateName::Established);
    peer
}

/// What was put out, as words: `1: OPEN` is an OPEN sent on connection 1.
pub(super) fn words(outputs: &[Output]) -> Vec<String> {
    outputs.iter().map(word).collect()
}

fn word(output: &Output) -> String {
    match output {
        Output::Connect => "connect".to_owned(),
        Output::Close(id) => format!("{}: close", id.0),
        Output::Send(id, bytes) => format!("{}: {}", id.0, name(&read(bytes))),
        Output::Event(Event::Up(_)) => "up".to_owned(),
        Output::Event(Event::Update(_)) => "update".to_owned(),
        Output::Event(Event::EndOfRib(family)) => format!("end of {family}"),
        Output::Event(Event::RefreshRequested(family)) => format!("refresh {family}"),
        Output::Event(Event::RefreshBegins(family)) => format!("begin {family}"),
        Output::Event(Event::RefreshEnds(family)) => format!("refreshed {family}"),
        Output::Event(Event::Down(Down { keep_stale: true, .. })) => "down, keep".to_owned(),
        Output::Event(Event::Down(_)) => "down".to_owned(),
    }
}

fn name(message: &Message) -> String {
    match message {
        Message::Open(_) => "OPEN".to_owned(),
        Message::Update(_) => "UPDATE".to_owned(),
        Message::Keepalive => "KEEPALIVE".to_owned(),
        Message::RouteRefresh(_) => "ROUTE-REFRESH".to_owned(),
        Message::Notification(Notification { code, subcode, .. }) => format!("{code}/{subcode}"),
    }
}

pub(super) fn read(bytes: &[u8]) -> Message {
    let mut framer = Framer::default();
    framer.push(bytes);
    framer
        .next(Context { four_octet_as: true, external: true, ..Context::default() })
        .expect("whole")
        .expect("well-formed")
}

pub(super) fn sent_notification(outputs: &[Output]) -> Option<Notification> {
    outputs.iter().find_map(|output| match output {
        Output::Send(_, bytes) => match read(bytes) {
            Message::Notification(notification) => Some(notification),
            _ => None,
        },
        _ => None,
    })
}
