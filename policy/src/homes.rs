//! The partitions that namespaces are of: those of one set of objects, found by what differs from another.

use crate::{Labels, Named, Objects, Sourced};
use bulkhead_api::objects::PartitionSpec;
use imbl::{OrdMap, ordmap::DiffItem};

/// By namespace, of those that are told of.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    homes: OrdMap<String, String>,
    /// What they were found by.
    partitions: Named<Sourced<PartitionSpec>>,
    namespaces: Named<Labels>,
}

impl Homes {
    pub fn of(objects: &Objects) -> Self {
        Self::default().follow(objects)
    }

    /// Those of these objects: only namespaces that differ are asked about, unless partitions ask for others.
    #[must_use]
    pub fn follow(&self, objects: &Objects) -> Self {
        let Objects { partitions, namespaces, .. } = objects;
        let mut next = if self.partitions.diff(partitions).all(|item| asks_for_the_same(&item)) {
            self.clone()
        } else {
            Self::default()
        };
        for item in next.namespaces.diff(namespaces) {
            match item {
                DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } => {
                    next.homes.insert(name.clone(), objects.partition_of_namespace(name).into());
                }
                DiffItem::Remove(name, _) => drop(next.homes.remove(name)),
            }
        }
        Self { homes: next.homes, partitions: partitions.clone(), namespaces: namespaces.clone() }
    }

    /// None: the namespace is not told of, which says nothing of its labels.
    pub fn of_namespace(&self, namespace: &str) -> Option<&str> {
        self.homes.get(namespace).map(String::as_str)
    }

    /// By `namespace/name`.
    pub(crate) fn of_pod(&self, key: &str) -> Option<&str> {
        self.of_namespace(key.split_once('/').map_or("", |(namespace, _)| namespace))
    }

    /// Namespaces whose home is another one here than there, or told in one of the two alone.
    pub(crate) fn unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.homes.diff(&other.homes).map(|item| match item {
            DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.as_str(),
            DiffItem::Update { new: (name, _), .. } => name.as_str(),
        })
    }
}

fn asks_for_the_same(item: &DiffItem<'_, '_, String, std::sync::Arc<Sourced<PartitionSpec>>>) -> bool {
    match item {
        DiffItem::Update { old: (_, old), new: (_, new) } => {
            old.spec.namespaces == new.spec.namespaces
                && old.spec.namespace_selector == new.spec.namespace_selector
        }
        DiffItem::Add(..) | DiffItem::Remove(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn partition(fields: Value) -> Arc<Sourced<PartitionSpec>> {
        let mut spec = json!({"policyID": 1});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Arc::new(Sourced::new(serde_json::from_value(spec).unwrap(), None))
    }

    /// A partition of these fields, and namespaces by the value of their label.
    fn objects(web: Value, namespaces: &[(&str, &str)]) -> Objects {
        let labels = |tier: &str| Arc::new([("tier".to_owned(), tier.to_owned())].into_iter().collect());
        Objects {
            partitions: [("web".to_owned(), partition(web))].into_iter().collect(),
            namespaces: namespaces.iter().map(|(name, tier)| ((*name).to_owned(), labels(tier))).collect(),
            ..Objects::default()
        }
    }

    fn by_label() -> Value {
        json!({"namespaceSelector": {"matchLabels": {"tier": "web"}}})
    }

    #[test]
    fn homes_that_follow_are_those_that_are_found_anew() {
        let states = [
            objects(by_label(), &[("shop", "web"), ("till", "db")]),
            objects(by_label(), &[("shop", "db"), ("till", "db"), ("new", "web")]),
            objects(json!({"namespaces": ["till"]}), &[("shop", "db"), ("till", "db")]),
            objects(json!({"namespaces": ["till"]}), &[("shop", "web")]),
            Objects::default(),
        ];
        for before in &states {
            for now in &states {
                let (followed, anew) = (Homes::of(before).follow(now), Homes::of(now));
                assert_eq!(followed.homes, anew.homes);
                let moved: Vec<_> = Homes::of(before).unlike(&anew).map(str::to_owned).collect();
                let home =
                    |objects: &Objects, name: &str| Homes::of(objects).of_namespace(name).map(str::to_owned);
                let all = ["new", "shop", "till"];
                let expected: Vec<_> = all.into_iter().filter(|n| home(before, n) != home(now, n)).collect();
                assert_eq!(moved, expected);
            }
        }
        let homes = Homes::of(&states[0]);
        assert_eq!(
            ["shop", "till", "unknown"].map(|n| homes.of_namespace(n)),
            [Some("web"), Some("default"), None]
        );
    }

    #[test]
    fn where_nothing_differs_that_they_depend_on_nobody_is_asked_about() {
        let before = objects(by_label(), &[("shop", "web"), ("till", "db")]);
        let mut now = before.clone();
        now.pods.insert("shop/a".into(), Arc::default());
        let mut fields = by_label();
        fields.as_object_mut().unwrap().insert("ingress".into(), json!([{}]));
        now.partitions.insert("web".into(), partition(fields));
        let homes = Homes::of(&before);
        assert!(homes.follow(&now).homes.ptr_eq(&homes.homes));
    }
}
