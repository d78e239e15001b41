//! Paths by number: a route of a table holds four octets, and no count that processors must agree on.

use super::adj_rib_in::Path;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Number(u32);

#[derive(Debug)]
struct Shared {
    path: Arc<Path>,
    routes: u32,
}

#[derive(Debug, Default)]
pub(super) struct Paths {
    all: Vec<Option<Shared>>,
    free: Vec<Number>,
    /// The last that was taken: the prefixes of one UPDATE follow one another.
    last: Option<Number>,
}

impl Paths {
    /// For one more route.
    pub fn take(&mut self, path: &Arc<Path>) -> Number {
        let same = |number: &Number| self.get(*number).is_some_and(|last| Arc::ptr_eq(last, path));
        let number = self.last.filter(same).unwrap_or_else(|| self.add(path.clone()));
        self.hold(number);
        self.last = Some(number);
        number
    }

    /// For no route yet.
    pub fn add(&mut self, path: Arc<Path>) -> Number {
        let shared = Some(Shared { path, routes: 0 });
        let free = self.free.pop().and_then(|number| Some((number, self.all.get_mut(number.index())?)));
        if let Some((number, slot)) = free {
            *slot = shared;
            return number;
        }
        self.all.push(shared);
        // Fewer than routes, whose keys would fill the memory first.
        Number(self.all.len() as u32 - 1)
    }

    /// One route more has it.
    pub fn hold(&mut self, number: Number) {
        if let Some(Some(shared)) = self.all.get_mut(number.index()) {
            shared.routes += 1;
        }
    }

    pub fn get(&self, number: Number) -> Option<&Arc<Path>> {
        self.all.get(number.index())?.as_ref().map(|shared| &shared.path)
    }

    /// One route less has it; the last one takes it along.
    pub fn release(&mut self, number: Number) {
        let Some(slot) = self.all.get_mut(number.index()) else { return };
        let Some(shared) = slot else { return };
        shared.routes -= 1;
        if shared.routes == 0 {
            *slot = None;
            self.free.push(number);
        }
    }
}

impl Number {
    fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Attributes;

    fn path() -> Arc<Path> {
        Arc::new(Path { attributes: Attributes::default(), next_hop: "172.31.9.1".parse().unwrap() })
    }

    #[test]
    fn a_path_is_there_as_long_as_a_route_has_it() {
        let (mut paths, one, other) = (Paths::default(), path(), path());
        let [first, second] = [paths.take(&one), paths.take(&one)];
        let third = paths.take(&other);
        assert_eq!((first, Arc::strong_count(&one)), (second, 2), "one for all its routes");
        assert_ne!(first, third);
        paths.release(first);
        assert!(Arc::ptr_eq(paths.get(first).unwrap(), &one));
        paths.release(second);
        assert!(paths.get(first).is_none());
        assert_eq!(Arc::strong_count(&one), 1);
        assert!(Arc::ptr_eq(paths.get(third).unwrap(), &other));
    }

    #[test]
    fn numbers_of_paths_that_are_gone_are_given_again() {
        let mut paths = Paths::default();
        for _ in 0..1000 {
            let number = paths.take(&path());
            paths.release(number);
        }
        assert_eq!(paths.all.len(), 1);
    }

    #[test]
    fn a_number_that_was_given_again_is_not_taken_for_its_former_path() {
        let (mut paths, one, other) = (Paths::default(), path(), path());
        let number = paths.take(&one);
        paths.release(number);
        assert_eq!(paths.take(&other), number);
        let again = paths.take(&one);
        assert!(Arc::ptr_eq(paths.get(number).unwrap(), &other));
        assert!(Arc::ptr_eq(paths.get(again).unwrap(), &one));
    }
}
