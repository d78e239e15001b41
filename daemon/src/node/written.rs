//! What ranges in the kernel were written by: where none of it has changed they are as they should be.

use bulkhead_policy::Objects;
use std::collections::BTreeMap;

/// Written by this, as far as it is known.
#[derive(Debug)]
pub struct Written<T>(Option<T>);

impl<T> Default for Written<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Written<T> {
    /// Writes, unless the last time went well and was by the same.
    pub fn unless_by<E>(&mut self, by: T, write: impl FnOnce(&T) -> Result<(), E>) -> Result<(), E> {
        if self.0.as_ref() == Some(&by) {
            return Ok(());
        }
        self.0 = None;
        write(&by)?;
        self.0 = Some(by);
        Ok(())
    }
}

/// All that the ranges of pods depend on, besides the configuration: they are written by this alone. Maps are shared with the objects
/// in force, so that what is the same is seen to be without a look at it.
#[derive(Debug, PartialEq)]
pub struct RangesBy {
    /// Partitions, their ranges and strays; nothing else.
    pub objects: Objects,
    /// None: nothing is compiled yet.
    pub policies: Option<BTreeMap<String, u32>>,
}

impl RangesBy {
    pub fn of(objects: &Objects, policies: Option<&BTreeMap<String, u32>>) -> Self {
        let objects = Objects {
            partitions: objects.partitions.clone(),
            default_pod_cidrs: objects.default_pod_cidrs.clone(),
            strays: objects.strays.clone(),
            ..Objects::default()
        };
        Self { objects, policies: policies.cloned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_api::objects::PartitionSpec;
    use bulkhead_policy::Sourced;
    use std::sync::Arc;

    #[test]
    fn ranges_are_written_again_only_where_something_of_them_has_changed_or_could_not_be_written() {
        let (mut written, mut writes) = (Written::default(), 0);
        let mut write = |objects: &Objects, policies: &BTreeMap<String, u32>, done: Result<(), ()>| {
            let _ = written.unless_by(RangesBy::of(objects, Some(policies)), |_| {
                writes += 1;
                done
            });
            writes
        };
        let (mut objects, mut policies) = (Objects::default(), BTreeMap::new());
        assert_eq!(write(&objects, &policies, Ok(())), 1);
        objects.pods.insert("web/a".into(), Arc::default());
        objects.namespaces.insert("web".into(), Arc::default());
        objects.nodes.insert("n1".into(), Arc::default());
        assert_eq!(write(&objects, &policies, Ok(())), 1);
        let partition = Sourced::new(PartitionSpec::default(), None);
        objects.partitions.insert("web".into(), Arc::new(partition));
        assert_eq!(write(&objects, &policies, Ok(())), 2);
        objects.strays.insert("10.0.0.1/32".parse().unwrap(), "web".into());
        assert_eq!(write(&objects, &policies, Ok(())), 3);
        objects.default_pod_cidrs.push("10.0.0.0/8".parse().unwrap());
        assert_eq!(write(&objects, &policies, Ok(())), 4);
        policies.insert("web".into(), 1);
        assert_eq!(write(&objects, &policies, Err(())), 5);
        assert_eq!(write(&objects, &policies, Ok(())), 6);
        assert_eq!(write(&objects, &policies, Ok(())), 6);
    }
}
