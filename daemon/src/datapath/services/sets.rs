//! Which sets of backends there are, who names them, and the numbers of services. Pure.

use bulkhead_ebpf_abi::BackendAddr;
use std::collections::{BTreeMap, BTreeSet};

type Content = (Vec<BackendAddr>, bool);

struct Set {
    content: Content,
    /// Frontends.
    named: usize,
}

/// 0 is no set.
#[derive(Default)]
pub struct Sets {
    all: BTreeMap<u32, Set>,
    by_content: BTreeMap<Content, u32>,
    /// Nobody names them.
    left: BTreeSet<u32>,
    last: u32,
}

impl Sets {
    /// A set that has just been written, or was found; nobody names it yet.
    pub fn found(&mut self, set: u32, backends: Vec<BackendAddr>, members: bool) {
        let content = (backends, members);
        self.by_content.insert(content.clone(), set);
        self.all.insert(set, Set { content, named: 0 });
        self.left.insert(set);
        self.last = self.last.max(set);
    }

    /// The one that holds just these; 0 for none at all.
    pub fn find(&self, backends: &[BackendAddr], members: bool) -> Option<u32> {
        if backends.is_empty() {
            return Some(0);
        }
        self.by_content.get(&(backends.to_vec(), members)).copied()
    }

    /// A number that no call can have read lately.
    pub fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if !self.all.contains_key(&self.last) {
                return self.last;
            }
        }
    }

    pub fn name(&mut self, set: u32) {
        if let Some(found) = self.all.get_mut(&set) {
            found.named += 1;
            self.left.remove(&set);
        }
    }

    pub fn unname(&mut self, set: u32) {
        if let Some(found) = self.all.get_mut(&set) {
            found.named = found.named.saturating_sub(1);
            if found.named == 0 {
                self.left.insert(set);
            }
        }
    }

    /// Of maps that were read: a daemon that died before it named them may not have written them whole.
    pub fn drop_unnamed(&mut self) {
        for set in &self.left {
            if let Some(found) = self.all.get(set) {
                self.by_content.remove(&found.content);
            }
        }
    }

    /// Entries of sets that nobody names.
    pub fn left(&self) -> usize {
        self.left.iter().filter_map(|set| self.all.get(set)).map(|s| s.content.0.len().max(1)).sum()
    }

    /// Those sets; forgotten here.
    pub fn take_left(&mut self) -> Vec<(u32, Vec<BackendAddr>)> {
        let gone: Vec<_> = std::mem::take(&mut self.left).into_iter().collect();
        let take = |set: u32| {
            let found = self.all.remove(&set)?;
            if self.by_content.get(&found.content) == Some(&set) {
                self.by_content.remove(&found.content);
            }
            Some((set, found.content.0))
        };
        gone.into_iter().filter_map(take).collect()
    }

    /// Those of them that could not be removed: they are left as before, but may not be whole, so nobody finds them.
    pub fn put_back(&mut self, sets: Vec<(u32, Vec<BackendAddr>)>) {
        for (set, backends) in sets {
            self.all.insert(set, Set { content: (backends, false), named: 0 });
            self.left.insert(set);
        }
    }
}

/// Service, port, protocol.
type Of = (String, String, u8);

/// What services with affinity are called in the maps.
#[derive(Default)]
pub struct Numbers {
    by_service: BTreeMap<Of, u32>,
    taken: BTreeSet<u32>,
    last: u32,
}

impl Numbers {
    /// It stands in the maps.
    pub fn found(&mut self, number: u32) {
        self.last = self.last.max(number);
    }

    /// `before`: what its frontend says today; a daemon that has just begun goes on with it.
    pub fn of(&mut self, service: Of, before: u32) -> u32 {
        if let Some(number) = self.by_service.get(&service) {
            return *number;
        }
        let number = if before != 0 && !self.taken.contains(&before) {
            before
        } else {
            self.last = self.last.wrapping_add(1).max(1);
            self.last
        };
        self.taken.insert(number);
        self.by_service.insert(service, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_ebpf_abi::Addr;

    fn backend(last: u8) -> BackendAddr {
        BackendAddr { address: Addr::v4([10, 0, 0, last]), port: 80, reserved: 0 }
    }

    #[test]
    fn a_set_is_left_when_nobody_names_it_and_found_again_until_it_is_removed() {
        let mut sets = Sets::default();
        let set = sets.next();
        sets.found(set, vec![backend(1)], false);
        sets.name(set);
        sets.name(set);
        sets.unname(set);
        assert_eq!(sets.left(), 0);
        sets.unname(set);
        assert_eq!((sets.left(), sets.find(&[backend(1)], false)), (1, Some(set)));
        assert_eq!(sets.find(&[backend(1)], true), None);
        assert_eq!(sets.take_left(), [(set, vec![backend(1)])]);
        assert_eq!(sets.find(&[backend(1)], false), None);
        assert_ne!(sets.next(), set);
    }

    #[test]
    fn a_set_that_could_not_be_removed_is_left_and_not_found() {
        let mut sets = Sets::default();
        sets.found(7, vec![backend(1)], false);
        let taken = sets.take_left();
        sets.put_back(taken);
        assert_eq!((sets.left(), sets.find(&[backend(1)], false)), (1, None));
        // Another with the same backends is another's.
        sets.found(8, vec![backend(1)], false);
        sets.name(8);
        assert_eq!(sets.take_left(), [(7, vec![backend(1)])]);
        assert_eq!((sets.left(), sets.find(&[backend(1)], false)), (0, Some(8)));
    }

    #[test]
    fn what_a_daemon_before_has_not_named_is_not_believed() {
        let mut sets = Sets::default();
        sets.found(7, vec![backend(1)], false);
        sets.found(9, vec![backend(2)], false);
        sets.name(9);
        sets.drop_unnamed();
        assert_eq!(sets.find(&[backend(1)], false), None);
        assert_eq!(sets.find(&[backend(2)], false), Some(9));
        assert_eq!(sets.take_left(), [(7, vec![backend(1)])]);
        assert_eq!(sets.next(), 10);
    }

    #[test]
    fn a_service_keeps_its_number_over_a_restart_and_no_other_gets_it() {
        let of = |name: &str| (name.to_string(), "http".to_string(), 6);
        let mut numbers = Numbers::default();
        numbers.found(4);
        assert_eq!(numbers.of(of("a"), 4), 4);
        assert_eq!(numbers.of(of("a"), 0), 4);
        assert_eq!(numbers.of(of("b"), 4), 5);
    }
}
