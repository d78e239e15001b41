//! What is said of late wakes: the first at once, and of all that follow one line a minute. On a busy machine there are many. Pure.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct HeldUp {
    told: Option<Instant>,
    untold: HoldUps,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldUps {
    pub times: u32,
    pub worst: Duration,
    pub total: Duration,
}

impl HeldUp {
    pub fn add(&mut self, late: Duration) {
        let HoldUps { times, worst, total } = self.untold;
        self.untold = HoldUps { times: times + 1, worst: worst.max(late), total: total + late };
    }

    /// When [`Self::take`] has something to say.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        let since = self.told.map_or(PAUSE, |told| now.saturating_duration_since(told));
        (self.untold.times > 0).then(|| PAUSE.saturating_sub(since))
    }

    /// What is to be said now.
    pub fn take(&mut self, now: Instant) -> Option<HoldUps> {
        self.due(now).filter(Duration::is_zero)?;
        self.told = Some(now);
        self.rest()
    }

    /// All that was not said.
    pub fn rest(&mut self) -> Option<HoldUps> {
        Some(std::mem::take(&mut self.untold)).filter(|held| held.times > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_once_a_minute_with_their_number() {
        let (mut held, start, ms) = (HeldUp::default(), Instant::now(), Duration::from_millis);
        let said = |times, worst, total| Some(HoldUps { times, worst: ms(worst), total: ms(total) });
        assert_eq!((held.due(start), held.take(start)), (None, None));
        held.add(ms(30));
        assert_eq!(held.take(start), said(1, 30, 30));
        held.add(ms(50));
        held.add(ms(40));
        let soon = start + ms(20_000);
        assert_eq!((held.due(soon), held.take(soon)), (Some(ms(40_000)), None));
        assert_eq!(held.take(start + PAUSE), said(2, 50, 90));
        assert_eq!((held.due(start + 2 * PAUSE), held.rest()), (None, None));
        held.add(ms(25));
        assert_eq!(held.rest(), said(1, 25, 25));
    }
}
