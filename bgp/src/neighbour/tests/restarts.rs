//! What becomes of a peer's routes when its session ends, and when it comes back.

use super::*;
use std::io::ErrorKind;

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
    let held: Vec<String> =
        neighbour.received().first(usize::MAX).iter().map(|route| route.prefix.to_string()).collect();
    assert_eq!(held, ["10.9.0.0/24"]);
    assert!(!neighbour.received().has_stale());
}

#[test]
fn an_end_of_rib_before_any_route_leaves_the_peer_a_moment_to_say_them() {
    let mut neighbour = lost(Some(kept(true)));
    establish(&mut neighbour, seconds(20), 2, open(Some(kept(true))));
    receive(&mut neighbour, seconds(20), 2, Message::Update(Update::end_of_rib(Family::Ipv4Unicast)));
    assert_eq!(neighbour.received().len(), 2);
    receive(&mut neighbour, seconds(23), 2, their_route("10.9.0.0/24"));
    neighbour.handle(seconds(29), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 2);
    assert!(neighbour.deadline().is_some_and(|at| at <= seconds(30)));
    neighbour.handle(seconds(30), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 1, "what was not said by then is gone");
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
fn a_peer_is_learned_from_until_it_has_said_everything_in_each_family() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(None));
    assert!(!neighbour.is_learning(), "no import rule");
    neighbour.set_policy(seconds(0), Policy { import: Filter::ACCEPT, ..policy() });
    for family in Family::ALL {
        assert!(neighbour.is_learning());
        receive(&mut neighbour, seconds(1), 1, Message::Update(Update::end_of_rib(family)));
    }
    assert!(!neighbour.is_learning());
    let mut restarting = lost(Some(kept(true)));
    restarting.set_policy(seconds(11), Policy { import: Filter::ACCEPT, ..policy() });
    assert!(restarting.is_learning(), "it may have more to say when it is back");
    restarting.handle(seconds(1000), Input::TimerTick);
    assert!(!restarting.is_learning(), "its time to come back is over");
}

/// A peer that restarts gracefully, with two routes of its own, whose path BFD has found dead.
fn path_down(independent: bool) -> Neighbour {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, open(Some(kept(true))));
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    neighbour.handle(seconds(10), Input::PathDown { independent });
    neighbour
}

#[test]
fn routes_of_a_peer_whose_bfd_may_end_with_its_control_plane_stay_when_its_path_is_down() {
    assert!(path_down(false).received().has_stale());
    assert_eq!(path_down(true).received().len(), 0);
}

#[test]
fn a_restart_that_goes_on_is_over_when_the_path_is_down_for_sure() {
    let mut neighbour = lost(Some(kept(true)));
    neighbour.handle(seconds(11), Input::PathDown { independent: false });
    assert_eq!(neighbour.received().len(), 2);
    neighbour.handle(seconds(12), Input::PathDown { independent: true });
    assert_eq!(neighbour.received().len(), 0);
}

/// As [`kept`], and wanting more time after its restart time.
fn long_lived(time: u32) -> Open {
    let mut open = open(Some(kept(true)));
    let family = Family::Ipv4Unicast;
    open.capabilities.push(Capability::LongLived(vec![LongLived { family, forwarding: true, time }]));
    open
}

#[test]
fn long_lived_routes_stay_beyond_the_restart_time_and_no_longer_than_asked() {
    let mut neighbour = neighbour(false);
    establish(&mut neighbour, seconds(0), 1, long_lived(1000));
    receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
    neighbour.handle(seconds(10), Input::Closed(ConnId(1), None));
    let communities = |neighbour: &Neighbour| {
        neighbour.received().first(usize::MAX).first().map(|route| route.path.attributes.communities.clone())
    };
    neighbour.handle(seconds(129), Input::TimerTick);
    assert_eq!(communities(&neighbour), Some(Vec::new()));
    neighbour.handle(seconds(130), Input::TimerTick);
    assert_eq!(communities(&neighbour), Some(vec![crate::rib::LLGR_STALE]));
    neighbour.handle(seconds(1129), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 1);
    neighbour.handle(seconds(1130), Input::TimerTick);
    assert_eq!(neighbour.received().len(), 0);
}

#[test]
fn routes_survive_an_error_where_both_sides_agreed_on_that_but_no_hard_reset() {
    let lose = |notification| {
        let mut neighbour = neighbour(false);
        let restart = GracefulRestart { notification: true, ..kept(true) };
        establish(&mut neighbour, seconds(0), 1, open(Some(restart)));
        receive(&mut neighbour, seconds(0), 1, their_route("10.8.0.0/24"));
        receive(&mut neighbour, seconds(1), 1, Message::Notification(notification));
        neighbour.received().len()
    };
    assert_eq!(lose(Notification::new(4, 0)), 1);
    assert_eq!(lose(Notification::new(4, 0).hard()), 0);
}

#[test]
fn what_a_peer_may_keep_of_ours_is_over_with_end_of_rib_or_its_own_clocks() {
    let mut neighbour = neighbour(true);
    // Of the process before: its hold time of 90 s, and then the restart time of 60 s.
    assert!(neighbour.may_be_kept(seconds(149)) && !neighbour.may_be_kept(seconds(150)));
    establish(&mut neighbour, seconds(1), 1, open(Some(kept(true))));
    neighbour.advertise(seconds(1), PLENTY);
    assert!(neighbour.may_be_kept(seconds(1000)), "the set is not complete yet, however long that takes");
    neighbour.set_intent(intent(&[], true));
    neighbour.advertise(seconds(1), PLENTY);
    assert!(!neighbour.may_be_kept(seconds(1)));
    neighbour.handle(seconds(2), Input::Closed(ConnId(1), None));
    assert!(neighbour.may_be_kept(seconds(61)) && !neighbour.may_be_kept(seconds(62)));
    establish(&mut neighbour, seconds(3), 2, open(Some(kept(true))));
    assert!(neighbour.may_be_kept(seconds(1000)), "in the new session, until it has been told all of it");
    neighbour.advertise(seconds(3), PLENTY);
    assert!(!neighbour.may_be_kept(seconds(3)));
}

/// Seconds after the end of a session for which the peer may keep our routes; `None`: until there is another.
fn kept_after(
    hold_time: u16,
    restart: Option<GracefulRestart>,
    end: impl FnOnce(&mut Neighbour),
) -> Option<u64> {
    let mut neighbour = neighbour(true);
    neighbour.set_timers(Timers { hold: hold_time, connect_retry: 5, send_hold: 5 });
    neighbour.set_intent(intent(&["10.1.0.0/26"], true));
    establish(&mut neighbour, seconds(0), 1, Open { hold_time, ..open(restart) });
    neighbour.advertise(seconds(0), PLENTY);
    assert!(!neighbour.may_be_kept(seconds(0)));
    end(&mut neighbour);
    assert_ne!(neighbour.peer().state(), StateName::Established);
    let now = neighbour.peer().since().as_secs();
    let over = (0..=1000).find(|after| !neighbour.may_be_kept(seconds(now + after)));
    if over.is_some() {
        let until = neighbour.kept_until(seconds(now)).map_or(0, |until| until.as_secs() - now);
        assert_eq!(Some(until), over, "and so where it is a peer no longer");
    }
    over
}

#[test]
fn a_peer_that_was_not_told_may_have_noticed_as_late_as_its_hold_time_ends() {
    let helper = || Some(kept(true));
    let feed = |input: Input| move |neighbour: &mut Neighbour| drop(neighbour.handle(seconds(7), input));
    let path_down = || Input::PathDown { independent: true };
    let silence = |neighbour: &mut Neighbour| drop(neighbour.handle(seconds(200), Input::TimerTick));
    let lost = |kind| Input::Closed(ConnId(1), kind);
    let cease = || Message::Notification(Notification::new(6, 4)).encode(CONTEXT);
    let too_many = || Stop::TooManyPrefixes { family: Family::Ipv4Unicast, limit: 1, retry: None };
    let stop = |stop: Stop| kept_after(90, helper(), feed(Input::Stop(stop)));
    // Who knows it as early as we do.
    assert_eq!(kept_after(90, helper(), feed(lost(None))), Some(60));
    assert_eq!(kept_after(90, helper(), feed(lost(Some(ErrorKind::ConnectionReset)))), Some(60));
    assert_eq!(kept_after(90, helper(), feed(Input::Received(ConnId(1), cease()))), Some(60));
    // Who may not.
    assert_eq!(kept_after(90, helper(), feed(path_down())), Some(150));
    assert_eq!(kept_after(90, helper(), silence), Some(150));
    assert_eq!(kept_after(90, helper(), feed(lost(Some(ErrorKind::TimedOut)))), Some(150));
    assert_eq!(kept_after(0, helper(), feed(path_down())), None, "it waits for nothing");
    // Who keeps nothing once it knows.
    assert_eq!(kept_after(90, None, feed(path_down())), Some(90));
    assert_eq!(kept_after(90, None, feed(lost(None))), Some(0));
    // Who is told, before it is known to have heard it, and afterwards.
    let told = |stop: Stop| {
        kept_after(90, helper(), |neighbour| {
            neighbour.handle(seconds(7), Input::Stop(stop));
            neighbour.told();
        })
    };
    let ends = || [Stop::Shutdown("moving".into()), Stop::Deconfigured, too_many()];
    assert_eq!((ends().map(stop), ends().map(told)), ([Some(150); 3], [Some(0); 3]));
    assert_eq!(kept_after(0, helper(), feed(Input::Stop(Stop::Deconfigured))), None);
    let too_late = kept_after(90, helper(), |neighbour| {
        neighbour.handle(seconds(7), path_down());
        neighbour.told();
    });
    assert_eq!(too_late, Some(150), "it was told nothing");
}
