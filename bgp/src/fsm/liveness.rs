//! Hold and keepalive timers of one connection (RFC 4271 section 4.4, 6.5).

use std::time::Duration;

/// `None` inside: the hold time is zero, and there are no timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Liveness(Option<Timers>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timers {
    hold: Duration,
    expires: Duration,
    keepalive_due: Duration,
}

impl Timers {
    fn interval(&self) -> Duration {
        self.hold / 3
    }
}

impl Liveness {
    pub fn start(hold_time: u16, now: Duration) -> Self {
        let hold = Duration::from_secs(hold_time.into());
        let timers = Timers { hold, expires: now + hold, keepalive_due: now + hold / 3 };
        Self((hold_time > 0).then_some(timers))
    }

    pub fn heard(&mut self, now: Duration) {
        if let Some(timers) = &mut self.0 {
            timers.expires = now + timers.hold;
        }
    }

    pub fn spoke(&mut self, now: Duration) {
        if let Some(timers) = &mut self.0 {
            timers.keepalive_due = now + timers.interval();
        }
    }

    pub fn expired(&self, now: Duration) -> bool {
        self.0.is_some_and(|timers| timers.expires <= now)
    }

    pub fn keepalive_is_due(&self, now: Duration) -> bool {
        self.0.is_some_and(|timers| timers.keepalive_due <= now)
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.0.map(|timers| timers.expires.min(timers.keepalive_due))
    }
}
