//! Labels and selectors, in little room: a cluster has hundreds of thousands of them.
//!
//! They are written and read as upstream's are, by upstream's own types.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as upstream;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// Labels by key, sorted, side by side: of each the lengths of key and value, and then both.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Box<[u8]>);

const LENGTH: usize = size_of::<u32>();

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        // Sorted: most of those that are looked for in vain are given up early.
        let found = self.raw().take_while(|(k, _)| *k <= key.as_bytes()).find(|(k, _)| *k == key.as_bytes());
        found.map(|(_, value)| text(value))
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.raw().map(|(key, value)| (text(key), text(value)))
    }

    /// With one more, or another value of one.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        self.iter().chain([(key, value)]).collect()
    }

    fn raw(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut left = &*self.0;
        std::iter::from_fn(move || {
            let (key, behind) = split_length(left)?;
            let (value, behind) = split_length(behind)?;
            let (key, behind) = behind.split_at_checked(key)?;
            let (value, behind) = behind.split_at_checked(value)?;
            left = behind;
            Some((key, value))
        })
    }
}

fn split_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, behind) = bytes.split_first_chunk::<LENGTH>()?;
    Some((u32::from_le_bytes(*length) as usize, behind))
}

/// What was written from text is text.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// Of two values of a key the later counts.
impl<K: AsRef<str> + Ord, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let sorted: BTreeMap<K, V> = labels.into_iter().collect();
        let mut bytes = Vec::new();
        for (key, value) in &sorted {
            let (key, value) = (key.as_ref().as_bytes(), value.as_ref().as_bytes());
            // Longer than 4 GiB is no label.
            let [Ok(key_length), Ok(value_length)] = [key, value].map(|b| u32::try_from(b.len())) else {
                continue;
            };
            bytes.extend_from_slice(&key_length.to_le_bytes());
            bytes.extend_from_slice(&value_length.to_le_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        Self(bytes.into())
    }
}

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        labels.into_iter().collect()
    }
}

impl From<&Labels> for BTreeMap<String, String> {
    fn from(labels: &Labels) -> Self {
        labels.iter().map(|(key, value)| (key.into(), value.into())).collect()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer).map(Self::from)
    }
}

/// Upstream's LabelSelector. An empty one matches all labels.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "upstream::LabelSelector", into = "upstream::LabelSelector")]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Box<[LabelSelectorRequirement]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelectorRequirement {
    pub key: Box<str>,
    pub operator: Box<str>,
    pub values: Box<[Box<str>]>,
}

impl LabelSelector {
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }
}

impl From<upstream::LabelSelector> for LabelSelector {
    fn from(written: upstream::LabelSelector) -> Self {
        let upstream::LabelSelector { match_labels, match_expressions } = written;
        let requirement = |r: upstream::LabelSelectorRequirement| LabelSelectorRequirement {
            key: r.key.into(),
            operator: r.operator.into(),
            values: r.values.unwrap_or_default().into_iter().map(Into::into).collect(),
        };
        Self {
            match_labels: match_labels.unwrap_or_default().into(),
            match_expressions: match_expressions.unwrap_or_default().into_iter().map(requirement).collect(),
        }
    }
}

impl From<LabelSelector> for upstream::LabelSelector {
    fn from(selector: LabelSelector) -> Self {
        let LabelSelector { match_labels, match_expressions } = selector;
        let requirement = |r: LabelSelectorRequirement| upstream::LabelSelectorRequirement {
            key: r.key.into(),
            operator: r.operator.into(),
            values: (!r.values.is_empty()).then(|| r.values.into_iter().map(Into::into).collect()),
        };
        Self {
            match_labels: (!match_labels.is_empty()).then(|| (&match_labels).into()),
            match_expressions: (!match_expressions.is_empty())
                .then(|| match_expressions.into_iter().map(requirement).collect()),
        }
    }
}

impl JsonSchema for LabelSelector {
    fn inline_schema() -> bool {
        upstream::LabelSelector::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        upstream::LabelSelector::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        upstream::LabelSelector::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        upstream::LabelSelector::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key_and_told_in_order() {
        let labels: Labels = [("b", "2"), ("a", ""), ("", "x"), ("b", "3"), ("ä", "ö")].into_iter().collect();
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("", "x"), ("a", ""), ("b", "3"), ("ä", "ö")]);
        assert_eq!(
            ["", "a", "b", "ä", "aa", "c"].map(|k| labels.get(k)),
            [Some("x"), Some(""), Some("3"), Some("ö"), None, None]
        );
        assert!(Labels::default().is_empty() && !labels.is_empty());
        assert_eq!(labels.with("a", "1").get("a"), Some("1"));
    }

    #[test]
    fn labels_and_selectors_are_written_as_upstream_writes_them() {
        for text in [
            "{}",
            r#"{"matchLabels":{"app":"db","tier":""}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"In","values":["x","y"]},{"key":"b","operator":"Exists"}]}"#,
        ] {
            let selector: LabelSelector = serde_json::from_str(text).unwrap();
            let theirs: upstream::LabelSelector = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&selector).unwrap(), text);
            assert_eq!(upstream::LabelSelector::from(selector), theirs);
        }
    }
}
