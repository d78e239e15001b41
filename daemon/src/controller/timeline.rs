//! The objects of one kind as they came, change by change, so that a digest says how far a node has got. Pure.
//!
//! ```text
//! states    0 ──web 1──▶ 1 ──db 1──▶ 2 ──web 2──▶ 3       web came with 3, db with 2
//! digests   …           D1          D2           D3       a node that tells D2 goes by db 1, and not by web 2
//! ```
//! All watches of one kind tell its changes in one order, so a node's digest is that of a state which was passed here too.

use crate::source::{SetDigest, Version};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Beyond it the eldest states are forgotten: a node that is so far behind is known by what it told before.
const KEPT: usize = 10_000;

#[derive(Default)]
pub struct Timeline {
    digest: SetDigest,
    state: u64,
    /// The newest state with a digest.
    numbers: HashMap<SetDigest, u64>,
    order: VecDeque<SetDigest>,
    /// With the state that each version came with.
    objects: BTreeMap<String, (Version, u64)>,
}

impl Timeline {
    pub fn put(&mut self, object: &str, version: Version) {
        let before = self.objects.get(object).map(|(version, _)| *version);
        if before != Some(version) {
            self.pass(before.into_iter().chain([version]));
            self.objects.insert(object.to_string(), (version, self.state));
        }
    }

    pub fn remove(&mut self, object: &str) {
        if let Some((version, _)) = self.objects.remove(object) {
            self.pass([version].into_iter());
        }
    }

    /// A list of all of them: what it lacks is gone.
    pub fn replace(&mut self, all: impl Iterator<Item = (String, Version)>) {
        let all: BTreeMap<_, _> = all.collect();
        let gone: Vec<_> = self.objects.keys().filter(|o| !all.contains_key(*o)).cloned().collect();
        gone.iter().for_each(|object| self.remove(object));
        all.iter().for_each(|(object, version)| self.put(object, *version));
    }

    /// The state that a node which tells this digest has got to; none: one that was never passed here.
    pub fn state_of(&self, digest: SetDigest) -> Option<u64> {
        self.numbers.get(&digest).copied()
    }

    /// Whether the present version of the object was there in that state.
    pub fn holds(&self, object: &str, state: u64) -> bool {
        self.objects.get(object).is_some_and(|(_, came)| *came <= state)
    }

    fn pass(&mut self, toggled: impl Iterator<Item = Version>) {
        toggled.for_each(|version| self.digest.toggle(version));
        self.state += 1;
        self.numbers.insert(self.digest, self.state);
        self.order.push_back(self.digest);
        if self.order.len() > KEPT
            && let Some(eldest) = self.order.pop_front()
            // The same set may have come again since.
            && self.numbers.get(&eldest) == Some(&(self.state - KEPT as u64))
        {
            self.numbers.remove(&eldest);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::source::{Kind, Versions};
    use proptest::prelude::*;

    fn version(object: &str, generation: i64) -> Version {
        Version::new(object, "u", generation)
    }

    /// What a node tells that goes by exactly these.
    fn digest(of: &[(&str, i64)]) -> SetDigest {
        let mut digest = SetDigest::default();
        of.iter().for_each(|(object, generation)| digest.toggle(version(object, *generation)));
        digest
    }

    fn passed(changes: &[(&str, i64)]) -> Timeline {
        let mut timeline = Timeline::default();
        changes.iter().for_each(|(object, generation)| timeline.put(object, version(object, *generation)));
        timeline
    }

    #[test]
    fn a_node_that_is_behind_goes_by_what_has_not_changed_since() {
        let mut timeline = passed(&[("web", 1), ("db", 1), ("web", 2)]);
        let behind = timeline.state_of(digest(&[("web", 1), ("db", 1)])).unwrap();
        assert!(timeline.holds("db", behind) && !timeline.holds("web", behind));
        let there = timeline.state_of(digest(&[("web", 2), ("db", 1)])).unwrap();
        assert!(timeline.holds("db", there) && timeline.holds("web", there));
        // Removed and made anew: nobody who has not seen that goes by it.
        timeline.remove("db");
        timeline.put("db", Version::new("db", "v", 1));
        assert!(!timeline.holds("db", there) && timeline.holds("web", there));
        assert_eq!(timeline.state_of(digest(&[("web", 7)])), None);
    }

    #[test]
    fn a_list_is_one_step_to_whoever_has_read_it_too() {
        let mut timeline = passed(&[("web", 1), ("db", 1)]);
        let before = timeline.state_of(digest(&[("web", 1), ("db", 1)])).unwrap();
        timeline.replace([("web", 1), ("new", 1)].into_iter().map(|(o, g)| (o.to_string(), version(o, g))));
        let now = timeline.state_of(digest(&[("web", 1), ("new", 1)])).unwrap();
        assert!(timeline.holds("web", before) && !timeline.holds("new", before));
        assert!(timeline.holds("new", now) && !timeline.holds("db", now));
    }

    #[test]
    fn what_is_remembered_of_the_past_is_bounded() {
        let mut timeline = passed(&[("web", 1)]);
        let first = digest(&[("web", 1)]);
        for generation in 2..=KEPT as i64 {
            timeline.put("web", version("web", generation));
        }
        assert!(timeline.state_of(first).is_some());
        timeline.put("web", version("web", -1));
        assert_eq!((timeline.state_of(first), timeline.numbers.len()), (None, KEPT));
    }

    proptest! {
        /// A node that stopped anywhere on the way is judged as if it had told every version by name.
        #[test]
        fn a_digest_says_of_each_object_what_a_list_of_versions_would(
            changes in prop::collection::vec((0..4_u8, any::<bool>()), 1..60),
            stop in any::<prop::sample::Index>(),
        ) {
            let (mut timeline, mut node, mut frozen) = (Timeline::default(), Versions::default(), None);
            let mut known = BTreeMap::new();
            let stop = stop.index(changes.len());
            for (uid, (object, removed)) in changes.iter().enumerate() {
                let object = format!("Partition/{object}");
                if *removed {
                    timeline.remove(&object);
                    node.remove(Kind::Partition, &object);
                    known.remove(&object);
                } else {
                    let version = Version::new(&object, &uid.to_string(), 1);
                    timeline.put(&object, version);
                    node.insert(Kind::Partition, object.clone(), version);
                    known.insert(object, version);
                }
                if uid == stop {
                    frozen = Some((node.clone(), node.digests().next()));
                }
            }
            let (frozen, told) = frozen.unwrap();
            // Nothing was there yet.
            let Some((_, told)) = told else { return Ok(()) };
            let state = timeline.state_of(told).unwrap_or_default();
            for (object, version) in &known {
                prop_assert_eq!(timeline.holds(object, state), frozen.get(object) == Some(*version));
            }
        }
    }
}
