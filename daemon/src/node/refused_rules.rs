//! Rules that were refused: they are not compiled again with every pod that comes or goes, only to be refused again.

use super::switch::NoSwitch;
use bulkhead_policy::Objects;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// When rules that did not fit are tried again without a word of anybody: there may be room by now.
const AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct RefusedRules(Option<Refused>);

#[derive(Debug)]
struct Refused {
    rules: Objects,
    why: Arc<NoSwitch>,
    again_at: Instant,
}

impl RefusedRules {
    /// Why these objects' rules do not fit, if they were refused a short while ago.
    fn standing(&self, objects: &Objects, now: Instant) -> Option<&Arc<NoSwitch>> {
        let standing = self.0.as_ref().filter(|r| now < r.again_at && r.rules.same_rules(objects));
        standing.map(|r| &r.why)
    }

    /// Whether an attempt would be none.
    pub fn stand(&self, objects: &Objects, now: Instant) -> bool {
        self.standing(objects, now).is_some()
    }

    /// Tries these objects, unless their rules are those that were refused a short while ago.
    pub fn attempt(
        &mut self,
        objects: &Objects,
        now: Instant,
        attempt: impl FnOnce() -> Result<(), NoSwitch>,
    ) -> Result<(), NoSwitch> {
        if let Some(why) = self.standing(objects, now) {
            return Err(NoSwitch::Refused(why.clone()));
        }
        match attempt() {
            Err(e) if e.is_refusal() => {
                let (rules, why) = (Objects::default().ruled_by(objects.clone()), Arc::new(e));
                self.0 = Some(Refused { rules, why: why.clone(), again_at: now + AGAIN });
                Err(NoSwitch::Refused(why))
            }
            done => {
                self.0 = None;
                done
            }
        }
    }

    /// Whether there are any that are to be tried again.
    pub fn are_due(&self, now: Instant) -> bool {
        self.0.as_ref().is_some_and(|r| r.again_at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::NetworkGroupSpec;
    use bulkhead_policy::{CompileError, Sourced};
    use std::sync::Arc;

    fn with_group(cidr: &str) -> Objects {
        let mut objects = Objects::default();
        let spec = NetworkGroupSpec { cidrs: vec![cidr.parse().unwrap()] };
        objects.network_groups.insert("vms".into(), Arc::new(Sourced::new(spec, None)));
        objects
    }

    #[test]
    fn refused_rules_are_tried_once_until_they_are_others_or_a_minute_has_gone() {
        let (mut refused, mut tries, start) = (RefusedRules::default(), 0, Instant::now());
        let mut attempt = |refused: &mut RefusedRules, objects: &Objects, now, fits| {
            let outcome = refused.attempt(objects, now, || {
                tries += 1;
                let too_large = || CompileError::TooLarge { partition: "web".into() }.into();
                if fits { Ok(()) } else { Err(too_large()) }
            });
            (tries, outcome.map_err(|e| (e.is_refusal(), e.to_string())))
        };
        let rules = with_group("10.0.0.0/8");
        let first = attempt(&mut refused, &rules, start, false);
        assert!(first.0 == 1 && first.1.is_err() && !refused.are_due(start));
        assert!(refused.stand(&rules, start) && !refused.stand(&rules, start + AGAIN));
        assert!(!refused.stand(&with_group("10.0.0.0/9"), start));
        // Pods come and go: the same answer, and nothing is tried.
        let mut with_pod = rules.clone();
        with_pod.pods.insert("web/a".into(), Arc::default());
        assert_eq!(attempt(&mut refused, &with_pod, start, false), first);
        assert_eq!(attempt(&mut refused, &rules, start + AGAIN / 2, true), first);
        // Later there may be room.
        assert!(refused.are_due(start + AGAIN));
        let (tried, outcome) = attempt(&mut refused, &with_pod, start + AGAIN, false);
        assert!(tried == 2 && outcome.is_err() && !refused.are_due(start + AGAIN));
        // Others are tried at once, and what went well is forgotten.
        let others = with_group("10.0.0.0/9");
        assert_eq!(attempt(&mut refused, &others, start + AGAIN, true), (3, Ok(())));
        assert_eq!(attempt(&mut refused, &with_pod, start + AGAIN, true), (4, Ok(())));
        assert!(!refused.are_due(start + 9 * AGAIN));
    }

    #[test]
    fn what_could_not_be_written_is_tried_again_whatever_the_rules() {
        let (mut refused, rules, now) = (RefusedRules::default(), with_group("10.0.0.0/8"), Instant::now());
        let mut tries = 0;
        for _ in 0..2 {
            let outcome = refused.attempt(&rules, now, || {
                tries += 1;
                Err(crate::store::StoreError::Io {
                    path: "/".into(),
                    source: std::io::ErrorKind::Other.into(),
                }
                .into())
            });
            assert!(outcome.is_err_and(|e| !e.is_refusal()));
        }
        assert_eq!(tries, 2);
    }
}
