//! Which versions of the objects somebody goes by, and all of one kind told in eight bytes. Pure.
//!
//! A digest is the exclusive or of the hashes of its versions: it depends on the set and not on the way to it, and a change
//! costs one hash however many objects there are.

use super::Kind;
use imbl::OrdMap;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// One version of one object. Made anew under the same name, an object is another, though it counts from 1 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.generation`.
    pub generation: i64,
    hash: u64,
}

impl Version {
    /// `object` as in `Partition/web`.
    pub fn new(object: &str, uid: &str, generation: i64) -> Self {
        let hash = Sha256::digest(format!("{object} {uid} {generation}"));
        let first = hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        Self { generation, hash: first }
    }
}

/// Of a set of versions of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SetDigest(u64);

impl SetDigest {
    /// A version enters the set, or leaves it.
    pub fn toggle(&mut self, version: Version) {
        self.0 ^= version.hash;
    }

    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }

    /// None: nothing that [`Self::text`] writes.
    pub fn read(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

/// Versions of all objects that are told of; files have none. A clone costs next to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Versions {
    /// By `Partition/web`.
    objects: OrdMap<String, Version>,
    digests: BTreeMap<Kind, SetDigest>,
}

impl Versions {
    /// Says whether it is another version than before.
    pub fn insert(&mut self, kind: Kind, object: String, version: Version) -> bool {
        let before = self.objects.insert(object, version);
        if before == Some(version) {
            return false;
        }
        let digest = self.digests.entry(kind).or_default();
        before.into_iter().chain([version]).for_each(|v| digest.toggle(v));
        true
    }

    pub fn remove(&mut self, kind: Kind, object: &str) {
        if let Some(version) = self.objects.remove(object) {
            self.digests.entry(kind).or_default().toggle(version);
        }
    }

    pub fn get(&self, object: &str) -> Option<Version> {
        self.objects.get(object).copied()
    }

    /// Of each kind that there ever was an object of.
    pub fn digests(&self) -> impl Iterator<Item = (Kind, SetDigest)> {
        self.digests.iter().map(|(kind, digest)| (*kind, *digest))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of partitions, each with the uid `u`.
    pub(crate) fn versions(of: &[(&str, i64)]) -> Versions {
        let mut versions = Versions::default();
        for (object, generation) in of {
            let version = Version::new(object, "u", *generation);
            versions.insert(Kind::Partition, (*object).to_string(), version);
        }
        versions
    }

    fn digest(of: &Versions) -> SetDigest {
        of.digests().next().unwrap().1
    }

    #[test]
    fn a_digest_tells_sets_apart_and_not_the_ways_to_them() {
        let wanted = versions(&[("Partition/a", 2), ("Partition/b", 1)]);
        let mut other = versions(&[("Partition/c", 7), ("Partition/b", 1), ("Partition/a", 1)]);
        assert_ne!(digest(&other), digest(&wanted));
        other.remove(Kind::Partition, "Partition/c");
        assert_ne!(digest(&other), digest(&wanted));
        other.insert(Kind::Partition, "Partition/a".into(), Version::new("Partition/a", "u", 2));
        assert_eq!(other, wanted);
        // Exchanged versions are another set, and so is an object that was made anew.
        assert_ne!(digest(&versions(&[("Partition/a", 1), ("Partition/b", 2)])), digest(&wanted));
        let anew = Version::new("Partition/a", "v", 2);
        assert!(other.insert(Kind::Partition, "Partition/a".into(), anew));
        assert_ne!(digest(&other), digest(&wanted));
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let told = digest(&versions(&[("Partition/a", 2)]));
        assert_eq!((SetDigest::read(&told.text()), told.text().len()), (Some(told), 16));
        assert_eq!(SetDigest::read("no digest"), None);
    }
}
