//! What a watch has told of one kind, by name (`namespace/name` where the kind has a namespace). Pure.

use kube::{ResourceExt, runtime::watcher::Event};
use std::collections::BTreeMap;

pub struct Store<T> {
    objects: BTreeMap<String, T>,
    listing: Option<BTreeMap<String, T>>,
    complete: bool,
}

/// `namespace/name` where the kind has a namespace.
pub fn key(object: &impl ResourceExt) -> String {
    object.namespace().map_or_else(|| object.name_any(), |ns| format!("{ns}/{}", object.name_any()))
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: None, complete: false }
    }
}

impl<T> Store<T> {
    /// A list takes the place of what was known when it is whole.
    pub fn handle<K: ResourceExt>(&mut self, event: Event<K>, of: impl FnOnce(K) -> T) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                let key = key(&object);
                self.listing.get_or_insert_default().insert(key, of(object));
            }
            Event::InitDone => {
                self.objects = self.listing.take().unwrap_or_default();
                self.complete = true;
            }
            Event::Apply(object) => {
                let key = key(&object);
                self.objects.insert(key, of(object));
            }
            Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
        }
    }

    /// There are none, and this is known.
    pub fn clear(&mut self) {
        self.objects.clear();
        self.complete = true;
    }

    /// Listed to its end once.
    pub fn complete(&self) -> bool {
        self.complete
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &T)> {
        self.objects.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&String, &mut T)> {
        self.objects.iter_mut()
    }
}
