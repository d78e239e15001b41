//! What a neighbour is to hold, what it was sent, and the UPDATEs between the two.

use crate::Family;
use crate::wire::encoded_len;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};

/// One UPDATE's worth of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch<A> {
    Withdraw { family: Family, prefixes: Vec<IpNetwork> },
    Announce { family: Family, attributes: A, prefixes: Vec<IpNetwork> },
}

/// `A` is everything that one UPDATE says about its prefixes: those with equal `A` go together.
#[derive(Debug)]
pub struct AdjRibOut<A> {
    desired: BTreeMap<IpNetwork, A>,
    /// `None`: the peer may hold it, and must be told again.
    sent: BTreeMap<IpNetwork, Option<A>>,
    /// Sent and not desired.
    withdraw: BTreeSet<IpNetwork>,
    /// Desired and not sent just so.
    announce: BTreeMap<(Family, A), BTreeSet<IpNetwork>>,
}

impl<A: Clone + Ord> Default for AdjRibOut<A> {
    fn default() -> Self {
        Self {
            desired: BTreeMap::new(),
            sent: BTreeMap::new(),
            withdraw: BTreeSet::new(),
            announce: BTreeMap::new(),
        }
    }
}

impl<A: Clone + Ord> AdjRibOut<A> {
    /// The whole set that the peer is to hold.
    pub fn set_desired(&mut self, desired: BTreeMap<IpNetwork, A>) {
        self.desired = desired;
        self.compare();
    }

    /// The peer asked for everything of `family` again (RFC 2918).
    pub fn resend(&mut self, family: Family) {
        let of_family = self.sent.iter_mut().filter(|(prefix, _)| Family::of(prefix) == family);
        of_family.for_each(|(_, sent)| *sent = None);
        self.compare();
    }

    fn compare(&mut self) {
        let gone = self.sent.keys().filter(|prefix| !self.desired.contains_key(prefix));
        self.withdraw = gone.copied().collect();
        self.announce.clear();
        for (prefix, attributes) in &self.desired {
            if self.sent.get(prefix).and_then(Option::as_ref) != Some(attributes) {
                let key = (Family::of(prefix), attributes.clone());
                self.announce.entry(key).or_default().insert(*prefix);
            }
        }
    }

    /// The next UPDATE, which counts as sent. Withdrawals come first. `room` says how many octets one
    /// message has for prefixes of that family and, if they are announced, those attributes; it must have
    /// place for one.
    pub fn next(&mut self, room: impl Fn(Family, Option<&A>) -> usize) -> Option<Batch<A>> {
        if let Some(first) = self.withdraw.first() {
            let family = Family::of(first);
            let prefixes = take(&mut self.withdraw, family, room(family, None));
            prefixes.iter().for_each(|prefix| drop(self.sent.remove(prefix)));
            return Some(Batch::Withdraw { family, prefixes });
        }
        let mut entry = self.announce.first_entry()?;
        let (family, attributes) = entry.key().clone();
        let prefixes = take(entry.get_mut(), family, room(family, Some(&attributes)));
        if entry.get().is_empty() {
            entry.remove();
        }
        for prefix in &prefixes {
            self.sent.insert(*prefix, Some(attributes.clone()));
        }
        Some(Batch::Announce { family, attributes, prefixes })
    }

    pub fn is_settled(&self) -> bool {
        self.withdraw.is_empty() && self.announce.is_empty()
    }

    /// Nothing of `family` is left to be sent.
    pub fn is_settled_in(&self, family: Family) -> bool {
        let other = |prefix: &IpNetwork| Family::of(prefix) != family;
        self.withdraw.iter().all(other) && self.announce.keys().all(|(queued, _)| *queued != family)
    }

    /// What the peer was sent and holds. A route that is to be sent again still counts.
    pub fn sent(&self) -> impl Iterator<Item = (&IpNetwork, &A)> {
        self.sent.iter().filter_map(|(prefix, sent)| {
            let attributes = sent.as_ref().or_else(|| self.desired.get(prefix))?;
            Some((prefix, attributes))
        })
    }
}

/// As many prefixes of `family` from the front as fit in `room`, but at least one.
fn take(queue: &mut BTreeSet<IpNetwork>, family: Family, mut room: usize) -> Vec<IpNetwork> {
    let mut taken = Vec::new();
    while let Some(first) = queue.first().filter(|prefix| Family::of(prefix) == family) {
        let length = encoded_len(first);
        if length > room && !taken.is_empty() {
            break;
        }
        room = room.saturating_sub(length);
        taken.extend(queue.pop_first());
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Set = BTreeMap<IpNetwork, u8>;

    fn set(routes: &[(&str, u8)]) -> Set {
        routes.iter().map(|(prefix, attributes)| (prefix.parse().unwrap(), *attributes)).collect()
    }

    fn drain(rib: &mut AdjRibOut<u8>) -> Vec<Batch<u8>> {
        std::iter::from_fn(|| rib.next(|_, _| 4000)).collect()
    }

    fn nets(prefixes: &[&str]) -> Vec<IpNetwork> {
        prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
    }

    #[test]
    fn prefixes_of_one_attribute_set_and_family_share_a_message() {
        let mut rib = AdjRibOut::default();
        rib.set_desired(set(&[
            ("10.0.0.0/24", 1),
            ("10.0.1.0/24", 2),
            ("10.0.2.0/24", 1),
            ("2001:db8::/64", 1),
        ]));
        let announce = |family, attributes, prefixes: &[&str]| Batch::Announce {
            family,
            attributes,
            prefixes: nets(prefixes),
        };
        let expected = [
            announce(Family::Ipv4Unicast, 1, &["10.0.0.0/24", "10.0.2.0/24"]),
            announce(Family::Ipv4Unicast, 2, &["10.0.1.0/24"]),
            announce(Family::Ipv6Unicast, 1, &["2001:db8::/64"]),
        ];
        assert_eq!(drain(&mut rib), expected);
        assert!(rib.is_settled());
    }

    #[test]
    fn only_differences_are_sent_and_withdrawals_come_first() {
        let mut rib = AdjRibOut::default();
        rib.set_desired(set(&[("10.0.0.0/24", 1), ("10.0.1.0/24", 1), ("10.0.2.0/24", 1)]));
        drain(&mut rib);
        rib.set_desired(set(&[("10.0.0.0/24", 1), ("10.0.1.0/24", 9), ("10.0.3.0/24", 9)]));
        assert!(!rib.is_settled_in(Family::Ipv4Unicast) && rib.is_settled_in(Family::Ipv6Unicast));
        let family = Family::Ipv4Unicast;
        let expected = [
            Batch::Withdraw { family, prefixes: nets(&["10.0.2.0/24"]) },
            Batch::Announce { family, attributes: 9, prefixes: nets(&["10.0.1.0/24", "10.0.3.0/24"]) },
        ];
        assert_eq!(drain(&mut rib), expected);
    }

    #[test]
    fn what_was_never_sent_is_not_withdrawn_and_what_returns_in_time_is_not_sent() {
        let mut rib = AdjRibOut::default();
        rib.set_desired(set(&[("10.0.0.0/24", 1)]));
        rib.set_desired(set(&[]));
        assert_eq!(drain(&mut rib), []);
        rib.set_desired(set(&[("10.0.0.0/24", 1)]));
        drain(&mut rib);
        rib.set_desired(set(&[]));
        rib.set_desired(set(&[("10.0.0.0/24", 1)]));
        assert_eq!(drain(&mut rib), []);
    }

    #[test]
    fn a_refresh_sends_its_family_again_and_forgets_no_withdrawal() {
        let mut rib = AdjRibOut::default();
        rib.set_desired(set(&[("10.0.0.0/24", 1), ("10.0.1.0/24", 1), ("2001:db8::/64", 1)]));
        drain(&mut rib);
        rib.resend(Family::Ipv4Unicast);
        assert_eq!(rib.sent().count(), 3);
        rib.set_desired(set(&[("10.0.0.0/24", 1), ("2001:db8::/64", 1)]));
        let family = Family::Ipv4Unicast;
        let expected = [
            Batch::Withdraw { family, prefixes: nets(&["10.0.1.0/24"]) },
            Batch::Announce { family, attributes: 1, prefixes: nets(&["10.0.0.0/24"]) },
        ];
        assert_eq!(drain(&mut rib), expected);
    }

    fn sets() -> impl Strategy<Value = Vec<(Set, usize)>> {
        let prefix = (0..40u8).prop_map(|host| match host % 2 {
            0 => format!("10.0.{host}.0/24").parse().unwrap(),
            _ => format!("2001:db8:{host}::/64").parse().unwrap(),
        });
        let set = proptest::collection::btree_map(prefix, 0..3u8, 0..30);
        proptest::collection::vec((set, 0..12usize), 1..8)
    }

    proptest! {
        #[test]
        fn whatever_came_before_the_peer_ends_with_the_last_set(sets in sets()) {
            let mut rib = AdjRibOut::default();
            let mut held = Set::new();
            let last = sets.last().unwrap().0.clone();
            let mut apply = |batch: Batch<u8>| match batch {
                Batch::Withdraw { prefixes, .. } => prefixes.iter().for_each(|p| {
                    assert!(held.remove(p).is_some(), "withdraws what the peer does not hold");
                }),
                Batch::Announce { attributes, prefixes, .. } => {
                    assert!(!prefixes.is_empty() && prefixes.iter().map(encoded_len).sum::<usize>() <= 20);
                    held.extend(prefixes.into_iter().map(|p| (p, attributes)));
                }
            };
            for (set, messages) in sets {
                rib.set_desired(set);
                for _ in 0..messages {
                    rib.next(|_, _| 20).map(&mut apply);
                }
            }
            while let Some(batch) = rib.next(|_, _| 20) {
                apply(batch);
            }
            prop_assert!(rib.is_settled());
            prop_assert_eq!(&held, &last);
            let sent: Set = rib.sent().map(|(prefix, attributes)| (*prefix, *attributes)).collect();
            prop_assert_eq!(sent, last);
        }
    }
}
