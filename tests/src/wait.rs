//! Waiting for the world: for a condition, with a deadline, never for a time.

use crate::{Error, Result};
use std::{
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(10);

/// Asks until the answer is `Some`. An error of `ask` is a "not yet", and is told when the deadline has passed.
pub fn until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => String::new(),
            Err(e) => e.to_string(),
        };
        if start.elapsed() >= deadline {
            return Err(Error::Deadline { what: what.into(), waited: start.elapsed(), last });
        }
        thread::sleep(PAUSE);
    }
}

/// Asks until `hold` is true.
pub fn until_true(what: &str, deadline: Duration, mut hold: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, deadline, || Ok(hold()?.then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_is_told_when_the_deadline_passes() {
        let error = until::<()>("it rains", Duration::ZERO, || crate::unmet("the sun shines")).unwrap_err();
        assert!(error.to_string().ends_with("it rains: the sun shines"), "{error}");
    }

    #[test]
    fn a_failure_before_the_deadline_is_only_a_not_yet() {
        let mut calls = 0;
        let answer = until("second call", Duration::from_secs(5), || {
            calls += 1;
            if calls == 1 { crate::unmet("first") } else { Ok(Some(calls)) }
        });
        assert_eq!(answer.unwrap(), 2);
    }
}
