//! The router at the other end of a link, found by its advertisements (RFC 4861): for sessions over link-local addresses
//! that nobody has to configure.
//!
//! ```text
//!   ours:   advertisements with lifetime 0 (here is a neighbour, and no default router), every 10 s and when asked
//!           solicitations, as long as no router is known
//!   theirs: the address that the first one came from; another's counts once that one has been silent for long
//! ```
//! A function of values, as all above the driver: a time in, what is to be sent out. What an advertisement says of
//! prefixes, default routes and the link is not looked at.

mod packet;

pub use packet::{ADVERTISEMENT, Heard, Malformed, SOLICITATION, advertisement, decode, solicitation};

use std::net::Ipv6Addr;
use std::time::Duration;

/// RFC 4861 section 6.2.4 wants anything up to this; three quarters of it at least.
const ADVERTISE_INTERVAL: Duration = Duration::from_secs(10);
/// RFC 4861 section 10: between two advertisements, whoever asks.
const ADVERTISE_PAUSE: Duration = Duration::from_secs(3);
/// An answer waits for some of this, so that those of several routers do not collide.
const ANSWER_DELAY: Duration = Duration::from_millis(500);
/// RFC 4861 section 10. There is one host on such a link, and it asks until it is answered.
const SOLICIT_INTERVAL: Duration = Duration::from_secs(4);
/// When the kernel did not take a packet: the interface is down, or its address not usable yet.
const RETRY: Duration = Duration::from_millis(500);
/// Three intervals; a router whose advertisements are rarer says a lifetime.
const SHORTEST_MEMORY: Duration = Duration::from_secs(30);

/// A packet as the kernel handed it over, its checksum verified.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub bytes: &'a [u8],
    pub from: Ipv6Addr,
    pub hop_limit: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Advertise,
    Solicit,
}

/// One interface.
#[derive(Debug)]
pub struct Discovery {
    router: Option<Router>,
    advertise_at: Duration,
    advertised_at: Option<Duration>,
    solicit_at: Duration,
    random: u64,
}

#[derive(Clone, Copy, Debug)]
struct Router {
    address: Ipv6Addr,
    /// As long it is not replaced by another.
    until: Duration,
}

impl Discovery {
    /// `now`, here and everywhere: since an epoch of the caller's, never going back.
    pub fn new(now: Duration, seed: u64) -> Discovery {
        Discovery { router: None, advertise_at: now, advertised_at: None, solicit_at: now, random: seed }
    }

    pub fn router(&self) -> Option<Ipv6Addr> {
        self.router.map(|router| router.address)
    }

    /// # Errors
    /// Why the packet was discarded.
    pub fn received(&mut self, now: Duration, arrival: &Arrival<'_>) -> Result<(), Malformed> {
        match decode(arrival)? {
            Heard::Solicitation => {
                let answer = now + ANSWER_DELAY.mul_f64(self.chance());
                let earliest = self.advertised_at.map_or(answer, |last| answer.max(last + ADVERTISE_PAUSE));
                self.advertise_at = self.advertise_at.min(earliest);
            }
            Heard::Advertisement { lifetime } => {
                let new = Router { address: arrival.from, until: now + lifetime.max(SHORTEST_MEMORY) };
                let stays = |known: &Router| known.address != new.address && known.until > now;
                if !self.router.as_ref().is_some_and(stays) {
                    self.router = Some(new);
                }
            }
        }
        Ok(())
    }

    /// The router that is known cannot be reached: another may take its place at once.
    pub fn doubt(&mut self, now: Duration) {
        if let Some(router) = &mut self.router {
            router.until = router.until.min(now);
        }
    }

    /// When [`Self::tick`] is due next.
    pub fn deadline(&self) -> Duration {
        if self.router.is_some() { self.advertise_at } else { self.advertise_at.min(self.solicit_at) }
    }

    pub fn tick(&mut self, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.advertise_at <= now {
            self.advertised_at = Some(now);
            self.advertise_at = now + ADVERTISE_INTERVAL.mul_f64(0.75 + self.chance() / 4.0);
            outputs.push(Output::Advertise);
        }
        if self.router.is_none() && self.solicit_at <= now {
            self.solicit_at = now + SOLICIT_INTERVAL;
            outputs.push(Output::Solicit);
        }
        outputs
    }

    /// The kernel did not take it.
    pub fn not_sent(&mut self, now: Duration, output: Output) {
        match output {
            Output::Advertise => (self.advertise_at, self.advertised_at) = (now + RETRY, None),
            Output::Solicit => self.solicit_at = now + RETRY,
        }
    }

    /// From 0 to 1.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.random >> 32) as f64 / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
