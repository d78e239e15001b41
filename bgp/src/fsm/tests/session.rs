//! What refuses a session, what ends one, and its timers.

use super::*;

fn answer_to(open: Open) -> (Peer, Vec<Output>) {
    let mut peer = open_sent();
    let outputs = peer.handle(seconds(1), received(1, Message::Open(open)));
    (peer, outputs)
}

fn refused(open: Open) -> (Notification, String) {
    let (peer, outputs) = answer_to(open);
    assert_eq!(peer.state(), StateName::Idle);
    let words = words(&outputs);
    assert_eq!(words.last().map(String::as_str), Some("1: close"));
    let notification = sent_notification(&outputs).expect("a NOTIFICATION");
    (notification, peer.last_error().expect("an error").to_string())
}

#[test]
fn a_wrong_as_is_2_2_and_both_numbers_are_told() {
    let mut open = their_open();
    open.asn = 65099;
    open.capabilities.retain(|capability| !matches!(capability, Capability::FourOctetAs(_)));
    let (notification, words) = refused(open);
    assert_eq!(notification, Notification::new(2, 2));
    assert_eq!(words, "the peer is AS 65099, but AS 65020 is configured");
}

#[test]
fn a_router_id_of_zero_is_2_3() {
    let (notification, _) = refused(Open { router_id: Ipv4Addr::UNSPECIFIED, ..their_open() });
    assert_eq!(notification, Notification::new(2, 3));
}

#[test]
fn our_router_id_is_refused_inside_our_as_only() {
    let same = Open { router_id: settings().router_id, ..their_open() };
    let (peer, _) = answer_to(same.clone());
    assert_eq!(peer.state(), StateName::OpenConfirm, "RFC 6286: unique within an AS");

    let mut peer = Peer::new(Settings { peer_asn: LOCAL_AS, ..settings() }, seconds(0));
    peer.handle(seconds(0), Input::Start);
    peer.handle(seconds(0), Input::Connected(connection(1)));
    let mut internal = Open { asn: LOCAL_AS, ..same };
    internal.capabilities.retain(|capability| !matches!(capability, Capability::FourOctetAs(_)));
    let outputs = peer.handle(seconds(0), received(1, Message::Open(internal)));
    assert_eq!(sent_notification(&outputs), Some(Notification::new(2, 3)));
}

#[test]
fn a_hold_time_of_one_or_two_seconds_is_2_6() {
    for hold_time in [1, 2] {
        let (notification, _) = refused(Open { hold_time, ..their_open() });
        assert_eq!(notification, Notification::new(2, 6));
    }
}

#[test]
fn no_common_family_is_2_7_with_the_capabilities_that_are_missed() {
    let vpn = Capability::Unknown { code: 1, data: vec![0, 1, 0, 128] };
    let open = Open { capabilities: vec![vpn, Capability::FourOctetAs(PEER_AS)], ..their_open() };
    let (notification, _) = refused(open);
    let missed = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1];
    assert_eq!(notification, Notification::with_data(2, 7, missed));
}

#[test]
fn a_peer_without_capabilities_speaks_ipv4_with_two_octet_as_numbers() {
    let mut peer = open_sent();
    let plain = Open { capabilities: Vec::new(), ..their_open() };
    peer.handle(seconds(0), received(1, Message::Open(plain)));
    peer.handle(seconds(0), received(1, Message::Keepalive));
    let negotiated = peer.negotiated().expect("a session");
    assert_eq!(negotiated.families, [Family::Ipv4Unicast]);
    assert!(!negotiated.four_octet_as && !negotiated.route_refresh);
    assert_eq!(negotiated.restart, None);
}

#[test]
fn another_version_is_2_1_with_ours_as_data() {
    let mut bytes = Message::Open(their_open()).encode(Context::default());
    bytes[19] = 5;
    let mut peer = open_sent();
    let outputs = peer.handle(seconds(0), Input::Received(ConnId(1), bytes));
    assert_eq!(sent_notification(&outputs), Some(Notification::with_data(2, 1, [0, 4])));
}

#[test]
fn the_lower_hold_time_holds_and_its_end_is_4_0() {
    let mut peer = established();
    assert_eq!(peer.negotiated().expect("a session").hold_time, HOLD);
    for tick in [30, 60] {
        assert_eq!(peer.deadline(), Some(seconds(tick)));
        assert_eq!(words(&peer.handle(seconds(tick), Input::TimerTick)), ["1: KEEPALIVE"]);
    }
    let outputs = peer.handle(seconds(90), Input::TimerTick);
    assert_eq!(words(&outputs), ["1: 4/0", "1: close", "down"]);
    assert_eq!(peer.state(), StateName::Idle);
}

#[test]
fn whatever_is_heard_restarts_the_hold_timer_and_whatever_is_sent_delays_the_keepalive() {
    let mut peer = established();
    peer.handle(seconds(20), Input::Advertise(update()));
    assert_eq!(peer.deadline(), Some(seconds(50)), "a keepalive a third of the hold time later");
    peer.handle(seconds(40), received(1, Message::Update(update())));
    peer.handle(seconds(129), Input::TimerTick);
    assert_eq!(peer.state(), StateName::Established);
    peer.handle(seconds(130), Input::TimerTick);
    assert_eq!(peer.state(), StateName::Idle);
}

#[test]
fn a_hold_time_of_zero_has_no_timers() {
    let mut peer = established_with(Open { hold_time: 0, ..their_open() });
    assert_eq!(peer.deadline(), None);
    peer.handle(seconds(1_000_000), Input::TimerTick);
    assert_eq!(peer.state(), StateName::Established);
}

#[test]
fn a_handshake_that_goes_nowhere_ends_even_without_a_hold_time() {
    let mut peer = open_sent();
    peer.handle(seconds(0), received(1, Message::Open(Open { hold_time: 0, ..their_open() })));
    let outputs = peer.handle(seconds(240), Input::TimerTick);
    assert_eq!(words(&outputs), ["1: 4/0", "1: close"]);
}

#[test]
fn an_update_that_cannot_be_read_ends_the_session_with_3_x() {
    let mut peer = established();
    let mut bytes = Message::Update(update()).encode(Context {
        four_octet_as: true,
        external: true,
        ..Context::default()
    });
    bytes[19] = 0xff;
    let outputs = peer.handle(seconds(1), Input::Received(ConnId(1), bytes));
    assert_eq!(words(&outputs), ["1: 3/1", "1: close", "down"]);
}

#[test]
fn messages_that_arrive_together_are_all_handled() {
    let mut peer = open_sent();
    let context = Context { four_octet_as: true, external: true, ..Context::default() };
    let stream = [Message::Open(their_open()), Message::Keepalive, Message::Update(update())];
    let bytes = stream.iter().flat_map(|message| message.encode(context)).collect();
    let outputs = peer.handle(seconds(0), Input::Received(ConnId(1), bytes));
    assert_eq!(words(&outputs), ["1: KEEPALIVE", "up", "update"]);
}

#[test]
fn a_notification_of_the_peer_is_told_in_words_and_later_trouble_does_not_hide_it() {
    let mut peer = open_sent();
    peer.handle(seconds(0), received(1, Message::Notification(Notification::new(2, 2))));
    let wait = peer.deadline().expect("a wait");
    peer.handle(wait, Input::TimerTick);
    peer.handle(wait, Input::ConnectFailed(ErrorKind::ConnectionRefused));
    let words = peer.last_error().expect("an error").to_string();
    assert_eq!(
        words,
        "the peer sent NOTIFICATION 2/2: OPEN message error, bad peer AS: it expects another AS number of us"
    );
}

#[test]
fn a_session_clears_the_error() {
    let mut peer = started();
    peer.handle(seconds(0), Input::ConnectFailed(ErrorKind::ConnectionRefused));
    assert!(peer.last_error().is_some());
    peer.handle(seconds(0), Input::Incoming(connection(1)));
    peer.handle(seconds(0), received(1, Message::Open(their_open())));
    peer.handle(seconds(0), received(1, Message::Keepalive));
    assert_eq!(peer.last_error(), None);
}

#[test]
fn waits_grow_to_the_connect_retry_time_and_a_session_starts_them_anew() {
    let mut peer = started();
    let mut now = seconds(0);
    let mut waits = Vec::new();
    for _ in 0..7 {
        peer.handle(now, Input::ConnectFailed(ErrorKind::ConnectionRefused));
        let until = peer.deadline().expect("a wait");
        waits.push((until - now).as_secs_f64());
        now = until;
        assert_eq!(words(&peer.handle(now, Input::TimerTick)), ["connect"]);
    }
    for (wait, whole) in waits.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]) {
        assert!((0.75 * whole..=whole).contains(wait), "{wait} s of {whole} s in {waits:?}");
    }
    peer.handle(now, Input::Connected(connection(1)));
    peer.handle(now, received(1, Message::Open(their_open())));
    peer.handle(now, received(1, Message::Keepalive));
    peer.handle(now, Input::Closed(ConnId(1), None));
    assert!(peer.deadline().expect("a wait") - now <= seconds(1));
}

fn restart_of(outputs: &[Output]) -> GracefulRestart {
    let open = outputs.iter().find_map(|output| match output {
        Output::Send(_, bytes) => Some(read(bytes)),
        _ => None,
    });
    let Some(Message::Open(open)) = open else { panic!("no OPEN") };
    let restart = open.capabilities.into_iter().find_map(|capability| match capability {
        Capability::GracefulRestart(restart) => Some(restart),
        _ => None,
    });
    restart.expect("the capability")
}

#[test]
fn the_restart_bits_are_the_callers_until_the_first_session_and_ours_afterwards() {
    let restart = Restart { time: 60, restarting: true, forwarding_preserved: false };
    let mut peer = Peer::new(Settings { restart, ..settings() }, seconds(0));
    peer.handle(seconds(0), Input::Start);
    for attempt in 1..=2 {
        let first = restart_of(&peer.handle(seconds(0), Input::Incoming(connection(attempt))));
        assert!(first.restarting, "no session was established yet");
        assert_eq!(first.time, 60);
        assert_eq!(first.families.len(), 2);
        assert!(first.families.iter().all(|family| !family.forwarding));
    }
    peer.handle(seconds(0), received(2, Message::Open(their_open())));
    peer.handle(seconds(0), received(2, Message::Keepalive));
    peer.handle(seconds(5), Input::Closed(ConnId(2), None));
    let later = restart_of(&peer.handle(seconds(6), Input::Incoming(connection(3))));
    assert!(!later.restarting, "this process did not restart since");
    assert!(later.families.iter().all(|family| family.forwarding), "and its datapath stayed");
}

#[test]
fn routes_are_kept_when_the_connection_is_lost_and_not_after_a_notification() {
    let lost = Input::Closed(ConnId(1), Some(ErrorKind::ConnectionReset));
    assert_eq!(words(&established().handle(seconds(1), lost.clone())), ["down, keep"]);
    let told = received(1, Message::Notification(Notification::new(6, 2)));
    assert_eq!(words(&established().handle(seconds(1), told)), ["1: close", "down"]);
    let helper = words(&established_with(helper_open()).handle(seconds(1), lost));
    assert_eq!(helper, ["down"], "a peer that only helps did not ask for it");
}

#[test]
fn the_time_in_a_state_counts_from_its_entry() {
    let mut peer = established();
    peer.handle(seconds(20), received(1, Message::Keepalive));
    assert_eq!(peer.since(), seconds(0));
    peer.handle(seconds(30), Input::Closed(ConnId(1), None));
    assert_eq!(peer.since(), seconds(30));
}

#[test]
fn a_stop_on_purpose_is_the_reason_from_then_on_whatever_went_wrong_before() {
    let wrong_as = || {
        let mut peer = open_sent();
        peer.handle(seconds(0), received(1, Message::Notification(Notification::new(2, 2))));
        peer
    };
    let mut idle = wrong_as();
    let mut opening = wrong_as();
    opening.handle(seconds(3600), Input::TimerTick);
    assert_eq!((idle.state(), opening.state()), (StateName::Idle, StateName::Connect));
    for peer in [&mut idle, &mut opening] {
        peer.handle(seconds(3600), Input::Stop(Stop::Shutdown("bye".to_owned())));
        assert_eq!(peer.last_error(), Some(&PeerError::Shutdown("bye".to_owned())));
    }
}
