//! What is known of sessions when the claims of fixed addresses are asked for. Pure.

/// As it was before asking, which may take its time: of a session that comes up meanwhile nothing can be concluded about the time
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// So many sessions have begun, ever.
    pub sessions: u64,
    /// None has lasted since the claims were asked for last: another node may have taken over.
    pub alone: bool,
}

impl Begun {
    /// Nothing, if no session has begun since. `established` is to be counted first: one that begins between the two then counts
    /// as new, and not as one that has lasted.
    pub fn since(asked_after: u64, established: u64, sessions: u64) -> Option<Self> {
        let new = sessions.checked_sub(asked_after).filter(|new| *new > 0)?;
        Some(Self { sessions, alone: established <= new })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_that_was_there_at_the_last_asking_has_lasted() {
        for (asked_after, established, sessions, alone) in [
            (0, 0, 0, None),
            (3, 2, 3, None),
            (0, 1, 1, Some(true)),
            (0, 2, 2, Some(true)),
            (1, 1, 2, Some(true)),
            (1, 2, 2, Some(false)),
            // One more has begun since the established ones were counted; it is new all the same.
            (1, 1, 3, Some(true)),
            (1, 3, 3, Some(false)),
            // It has ended already.
            (1, 0, 2, Some(true)),
        ] {
            let wanted = alone.map(|alone| Begun { sessions, alone });
            assert_eq!(Begun::since(asked_after, established, sessions), wanted);
        }
    }
}
