//! Established: the session, and how it ends.

use super::opening::{Progress, confirm, hold_timer_expired, keep_alive};
use super::peer::{Step, close, collision};
use super::state::{Dial, Direction, Established, Handshake, Idle, Opening, Session, State};
use super::{ConnId, Connection, Down, Event, Output, Peer, PeerError};
use crate::wire::notification::{Notification, cease, code, fsm};
use crate::wire::{Message, Refresh, Update};
use std::time::Duration;

impl Peer {
    pub(super) fn in_established(
        &mut self,
        mut established: Box<Established>,
        now: Duration,
        step: Step,
        out: &mut Vec<Output>,
    ) -> State {
        match step {
            Step::Start | Step::ConnectFailed(_) => {}
            Step::Stop(stop) => {
                if let Some(challenger) = &established.challenger {
                    close(challenger.connection.id, None, out);
                }
                let session = &established.session;
                // Else a peer that has agreed on RFC 8538 would keep our routes.
                let hard = session.negotiated.survives_notifications();
                let why = stop.notification().map(|why| if hard { why.hard() } else { why });
                close(session.connection.id, why, out);
                let restart_at = stop.retry().map(|wait| now + wait);
                self.down(stop.reason(), false, out);
                return State::Idle(Idle { restart_at });
            }
            // An attempt that was under way when an accepted connection won.
            Step::Connected(connection) => close(connection.id, None, out),
            Step::Incoming(connection) => self.challenge(&mut established, connection, now, out),
            Step::Closed(id, kind) if id == established.session.connection.id => {
                let keep_stale = established.session.negotiated.peer_restarts_gracefully();
                self.down(PeerError::Closed(kind), keep_stale, out);
                return self.reopen(established.challenger, now);
            }
            Step::Closed(id, _) => {
                established.challenger.take_if(|challenger| challenger.connection.id == id);
            }
            Step::Message(id, message) if id == established.session.connection.id => {
                return self.session_message(established, message, now, out);
            }
            Step::Message(id, message) => return self.challenger_message(established, id, message, now, out),
            Step::Advertise(update) => self.send(&mut established.session, Message::Update(update), now, out),
            Step::Refresh(family, meaning) => {
                let message = Message::RouteRefresh(Some((family, meaning)));
                self.send(&mut established.session, message, now, out);
            }
            Step::Written { id, all } if id == established.session.connection.id => {
                established.session.send_expires = (!all).then(|| now + self.send_hold());
            }
            Step::Written { .. } => {}
            Step::PathDown { independent } => return self.path_down(established, independent, now, out),
            Step::Tick => return self.established_tick(established, now, out),
        }
        State::Established(established)
    }

    /// RFC 4271 section 6.8: the established session stays. RFC 4724 section 5: but a peer that restarts
    /// gracefully may have lost it; whether it has is seen when its OPEN comes.
    fn challenge(
        &mut self,
        established: &mut Established,
        connection: Connection,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        if !established.session.negotiated.peer_restarts_gracefully() {
            close(connection.id, Some(collision()), out);
            return;
        }
        if let Some(old) = established.challenger.take() {
            close(old.connection.id, None, out);
        }
        established.challenger = Some(self.open(connection, Direction::Incoming, now, out));
    }

    fn challenger_message(
        &mut self,
        mut established: Box<Established>,
        id: ConnId,
        message: Result<Message, Notification>,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        let Some(mut challenger) = established.challenger.take_if(|c| c.connection.id == id) else {
            return State::Established(established);
        };
        match self.progress(&mut challenger, message, now) {
            Progress::Opened(negotiated) => {
                close(established.session.connection.id, None, out);
                self.down(PeerError::PeerRestarted, true, out);
                confirm(&mut challenger, negotiated, now, out);
                self.reopen(Some(challenger), now)
            }
            Progress::Failed(_, notification) => {
                close(id, notification, out);
                State::Established(established)
            }
            // Not met: a challenger is never beyond OpenSent.
            Progress::Established => State::Established(established),
        }
    }

    fn session_message(
        &mut self,
        mut established: Box<Established>,
        message: Result<Message, Notification>,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        established.session.liveness.heard(now);
        let event = match message {
            Ok(Message::Keepalive) | Ok(Message::RouteRefresh(None)) => {
                return State::Established(established);
            }
            Ok(Message::Update(update)) => update_event(update),
            Ok(Message::RouteRefresh(Some((family, meaning)))) => match meaning {
                Refresh::Request => Event::RefreshRequested(family),
                Refresh::Begin => Event::RefreshBegins(family),
                Refresh::End => Event::RefreshEnds(family),
            },
            Ok(Message::Notification(notification)) => {
                close(established.session.connection.id, None, out);
                return self.fail(established, PeerError::Received { notification }, now, out);
            }
            Ok(Message::Open(_)) => {
                return self.break_off(
                    established,
                    Notification::new(code::FSM, fsm::IN_ESTABLISHED),
                    now,
                    out,
                );
            }
            Err(notification) => return self.break_off(established, notification, now, out),
        };
        out.push(Output::Event(event));
        State::Established(established)
    }

    fn established_tick(
        &mut self,
        mut established: Box<Established>,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        if established.session.liveness.expired(now) {
            close(established.session.connection.id, Some(hold_timer_expired()), out);
            return self.fail(established, PeerError::HoldTimerExpired, now, out);
        }
        if established.session.send_expires.is_some_and(|at| at <= now) {
            let why = Notification::new(code::SEND_HOLD_TIMER, 0);
            close(established.session.connection.id, Some(why), out);
            let reason = PeerError::SendHoldTimerExpired(self.send_hold().as_secs());
            return self.fail(established, reason, now, out);
        }
        if established.session.liveness.keepalive_is_due(now) {
            self.send(&mut established.session, Message::Keepalive, now, out);
        }
        if let Some(challenger) = &mut established.challenger {
            keep_alive(challenger, now, out);
        }
        if let Some(silent) = established.challenger.take_if(|challenger| challenger.expired(now)) {
            close(silent.connection.id, Some(hold_timer_expired()), out);
        }
        State::Established(established)
    }

    fn break_off(
        &mut self,
        established: Box<Established>,
        notification: Notification,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        close(established.session.connection.id, Some(notification.clone()), out);
        self.fail(established, PeerError::Sent(notification), now, out)
    }

    /// Ends a session that an error closed; its connection is closed already.
    fn fail(
        &mut self,
        established: Box<Established>,
        reason: PeerError,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        if let Some(challenger) = established.challenger {
            close(challenger.connection.id, None, out);
        }
        let negotiated = &established.session.negotiated;
        let hard = matches!(&reason, PeerError::Received { notification } if notification.is_hard_reset());
        let keep_stale =
            negotiated.survives_notifications() && negotiated.peer_restarts_gracefully() && !hard;
        self.down(reason, keep_stale, out);
        State::Idle(Idle { restart_at: Some(self.wait_after_failure(now)) })
    }

    /// RFC 9384. RFC 5882 section 4.3: where the peer's BFD may have ended with its control plane, it may be restarting.
    fn path_down(
        &mut self,
        established: Box<Established>,
        independent: bool,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        if let Some(challenger) = &established.challenger {
            close(challenger.connection.id, None, out);
        }
        let session = &established.session;
        let why = Notification::new(code::CEASE, cease::BFD_DOWN);
        let hard = independent && session.negotiated.survives_notifications();
        close(session.connection.id, Some(if hard { why.hard() } else { why }), out);
        let keep_stale = !independent && session.negotiated.peer_restarts_gracefully();
        self.down(PeerError::PathDown, keep_stale, out);
        State::Idle(Idle { restart_at: Some(self.wait_after_failure(now)) })
    }

    fn send(&self, session: &mut Session, message: Message, now: Duration, out: &mut Vec<Output>) {
        session.liveness.spoke(now);
        session.send_expires.get_or_insert(now + self.send_hold());
        out.push(Output::Send(session.connection.id, message.encode(session.negotiated.context())));
    }

    fn down(&mut self, reason: PeerError, keep_stale: bool, out: &mut Vec<Output>) {
        self.last_error = Some(reason.clone());
        out.push(Output::Event(Event::Down(Down { reason, keep_stale })));
    }

    fn reopen(&mut self, challenger: Option<Handshake>, now: Duration) -> State {
        let dial = Dial::Waiting { until: self.wait_after_failure(now) };
        State::Opening(Opening { dial, handshakes: challenger.into_iter().collect() })
    }
}

fn update_event(update: Update) -> Event {
    match update.is_end_of_rib() {
        Some(family) => Event::EndOfRib(family),
        None => Event::Update(update),
    }
}
