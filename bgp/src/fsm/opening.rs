//! Connect, Active, OpenSent and OpenConfirm: one or two connections on their way to a session.

use super::liveness::Liveness;
use super::negotiate::{negotiate, ours_stays, refusal};
use super::peer::{Step, close, collision};
use super::state::{Dial, Direction, Established, Handshake, Idle, Opening, Phase, Session, State};
use super::{ConnId, Connection, Event, Negotiated, Output, Peer, PeerError, Up};
use crate::wire::notification::{Notification, code, fsm};
use crate::wire::{Context, Message};
use std::time::Duration;

/// What a message did to a handshake.
pub(super) enum Progress {
    /// An OPEN that is accepted; KEEPALIVE is not sent yet.
    Opened(Negotiated),
    Established,
    Failed(PeerError, Option<Notification>),
}

impl Peer {
    pub(super) fn in_opening(
        &mut self,
        mut opening: Opening,
        now: Duration,
        step: Step,
        out: &mut Vec<Output>,
    ) -> State {
        match step {
            Step::Start
            | Step::Advertise(_)
            | Step::Refresh(..)
            | Step::Written { .. }
            | Step::PathDown { .. } => {}
            Step::Stop(stop) => {
                for handshake in opening.handshakes {
                    close(handshake.connection.id, stop.notification(), out);
                }
                self.last_error = Some(stop.reason());
                return State::Idle(Idle { restart_at: None });
            }
            Step::Connected(connection) if opening.dial == Dial::Connected => {
                close(connection.id, None, out);
            }
            Step::Connected(connection) => {
                opening.dial = Dial::Connected;
                opening.handshakes.push(self.open(connection, Direction::Outgoing, now, out));
            }
            Step::ConnectFailed(kind) => {
                if matches!(opening.dial, Dial::Calling { .. }) {
                    self.note_error(PeerError::ConnectFailed(kind));
                    opening.dial = Dial::Waiting { until: self.wait_after_failure(now) };
                }
            }
            Step::Incoming(connection) => self.accept(&mut opening, connection, now, out),
            Step::Closed(id, kind) => {
                let Some(index) = opening.position(id) else {
                    return State::Opening(opening);
                };
                return self.give_up(opening, index, PeerError::Closed(kind), now);
            }
            Step::Message(id, message) => return self.handshake_message(opening, id, message, now, out),
            Step::Tick => return self.opening_tick(opening, now, out),
        }
        State::Opening(opening)
    }

    /// A peer dials once at a time: that it dials again says that it gave the earlier connection up.
    fn accept(
        &mut self,
        opening: &mut Opening,
        connection: Connection,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        for old in opening.handshakes.extract_if(.., |h| h.direction == Direction::Incoming) {
            close(old.connection.id, None, out);
        }
        opening.handshakes.push(self.open(connection, Direction::Incoming, now, out));
    }

    fn handshake_message(
        &mut self,
        mut opening: Opening,
        id: ConnId,
        message: Result<Message, Notification>,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        let Some(index) = opening.position(id) else {
            return State::Opening(opening);
        };
        match self.progress(&mut opening.handshakes[index], message, now) {
            Progress::Failed(error, notification) => {
                close(id, notification, out);
                self.give_up(opening, index, error, now)
            }
            Progress::Opened(negotiated) => self.opened(opening, index, negotiated, now, out),
            Progress::Established => {
                let handshake = opening.handshakes.remove(index);
                for loser in opening.handshakes {
                    close(loser.connection.id, Some(collision()), out);
                }
                self.establish(handshake, now, out)
            }
        }
    }

    /// What a message means on a connection without a session.
    pub(super) fn progress(
        &self,
        handshake: &mut Handshake,
        message: Result<Message, Notification>,
        now: Duration,
    ) -> Progress {
        let unexpected = |subcode| {
            let notification = Notification::new(code::FSM, subcode);
            Progress::Failed(PeerError::Sent(notification.clone()), Some(notification))
        };
        match (message, &mut handshake.phase) {
            (Err(notification), _) => {
                Progress::Failed(PeerError::Sent(notification.clone()), Some(notification))
            }
            (Ok(Message::Notification(notification)), _) => {
                Progress::Failed(PeerError::Received { notification }, None)
            }
            (Ok(Message::Open(open)), Phase::OpenSent) => match negotiate(&self.settings, &open) {
                Ok(negotiated) => Progress::Opened(negotiated),
                Err(fault) => {
                    let notification = refusal(&self.settings, fault);
                    Progress::Failed(PeerError::OpenRefused(fault), Some(notification))
                }
            },
            (Ok(Message::Keepalive), Phase::OpenConfirm { liveness, .. }) => {
                liveness.heard(now);
                Progress::Established
            }
            (Ok(_), Phase::OpenSent) => unexpected(fsm::IN_OPEN_SENT),
            (Ok(_), Phase::OpenConfirm { .. }) => unexpected(fsm::IN_OPEN_CONFIRM),
        }
    }

    /// RFC 4271 section 6.8 is applied before KEEPALIVE is sent, so that the peer cannot take the
    /// connection that goes for established.
    fn opened(
        &mut self,
        mut opening: Opening,
        index: usize,
        negotiated: Negotiated,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> State {
        let id = opening.handshakes[index].connection.id;
        if opening.handshakes.iter().any(|other| other.connection.id != id && other.is_confirming()) {
            let stays = match ours_stays(&self.settings, &negotiated) {
                true => Direction::Outgoing,
                false => Direction::Incoming,
            };
            for loser in opening.handshakes.extract_if(.., |h| h.direction != stays) {
                close(loser.connection.id, Some(collision()), out);
            }
        }
        if let Some(index) = opening.position(id) {
            confirm(&mut opening.handshakes[index], negotiated, now, out);
        }
        State::Opening(opening)
    }

    pub(super) fn establish(&mut self, handshake: Handshake, now: Duration, out: &mut Vec<Output>) -> State {
        let Handshake { connection, framer, phase, direction: _, expires: _ } = handshake;
        let Phase::OpenConfirm { negotiated, liveness } = phase else {
            // KEEPALIVE before OPEN was refused by `progress`.
            return State::Idle(Idle { restart_at: Some(now) });
        };
        self.failures = 0;
        self.last_error = None;
        self.established_before = true;
        out.push(Output::Event(Event::Up(Up { connection, negotiated: negotiated.clone() })));
        let session = Session { connection, framer, negotiated, liveness, send_expires: None };
        State::Established(Box::new(Established { session, challenger: None }))
    }

    /// Takes a handshake out that failed and is closed. What is left, or a new attempt later, goes on.
    fn give_up(&mut self, mut opening: Opening, index: usize, error: PeerError, now: Duration) -> State {
        let handshake = opening.handshakes.remove(index);
        let idle = error.wants_idle();
        self.note_error(error);
        if !opening.handshakes.is_empty() {
            if handshake.direction == Direction::Outgoing {
                opening.dial = Dial::Waiting { until: self.wait_after_failure(now) };
            }
            return State::Opening(opening);
        }
        if idle {
            return State::Idle(Idle { restart_at: Some(self.wait_after_failure(now)) });
        }
        if !matches!(opening.dial, Dial::Calling { .. }) {
            opening.dial = Dial::Waiting { until: self.wait_after_failure(now) };
        }
        State::Opening(opening)
    }

    fn opening_tick(&mut self, mut opening: Opening, now: Duration, out: &mut Vec<Output>) -> State {
        if let Some(index) = opening.handshakes.iter().position(|handshake| handshake.expired(now)) {
            close(opening.handshakes[index].connection.id, Some(hold_timer_expired()), out);
            return self.give_up(opening, index, PeerError::HoldTimerExpired, now);
        }
        for handshake in &mut opening.handshakes {
            keep_alive(handshake, now, out);
        }
        if opening.is_confirming() {
            return State::Opening(opening);
        }
        match opening.dial {
            Dial::Waiting { until } if until <= now => opening.dial = self.call(now, out),
            Dial::Calling { until } if until <= now => {
                self.note_error(PeerError::ConnectTimeout);
                opening.dial = self.call(now, out);
            }
            Dial::Waiting { .. } | Dial::Calling { .. } | Dial::Connected | Dial::Passive => {}
        }
        State::Opening(opening)
    }
}

impl Opening {
    fn position(&self, id: ConnId) -> Option<usize> {
        self.handshakes.iter().position(|handshake| handshake.connection.id == id)
    }
}

/// Answers an accepted OPEN.
pub(super) fn confirm(
    handshake: &mut Handshake,
    negotiated: Negotiated,
    now: Duration,
    out: &mut Vec<Output>,
) {
    out.push(Output::Send(handshake.connection.id, Message::Keepalive.encode(Context::default())));
    let liveness = Liveness::start(negotiated.hold_time, now);
    handshake.phase = Phase::OpenConfirm { negotiated, liveness };
}

pub(super) fn keep_alive(handshake: &mut Handshake, now: Duration, out: &mut Vec<Output>) {
    if let Phase::OpenConfirm { liveness, .. } = &mut handshake.phase
        && liveness.keepalive_is_due(now)
    {
        liveness.spoke(now);
        out.push(Output::Send(handshake.connection.id, Message::Keepalive.encode(Context::default())));
    }
}

pub(super) fn hold_timer_expired() -> Notification {
    Notification::new(code::HOLD_TIMER, 0)
}
