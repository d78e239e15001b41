//! Kubernetes label selectors.

use bulkhead_api::objects::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;

/// Whether the labels satisfy every requirement; an empty selector matches all labels. A requirement that Kubernetes
/// would refuse (unknown operator, missing values) matches nothing.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let label = labels.get(&requirement.key);
    match requirement.operator.as_str() {
        "In" => label.is_some_and(|l| values.contains(l)),
        // Upstream: a label that is not there is in no list.
        "NotIn" => !values.is_empty() && label.is_none_or(|l| !values.contains(l)),
        "Exists" => values.is_empty() && label.is_some(),
        "DoesNotExist" => values.is_empty() && label.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        let values = Some(values.iter().map(|v| v.to_string()).collect());
        let requirement = LabelSelectorRequirement { key: "team".into(), operator: operator.into(), values };
        LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(matches(&LabelSelector::default(), &labels(&[])));
        assert!(matches(&LabelSelector::default(), &labels(&[("team", "web")])));
    }

    #[test]
    fn match_labels_are_all_needed() {
        let selector = LabelSelector {
            match_labels: Some(labels(&[("team", "web"), ("tier", "1")])),
            match_expressions: None,
        };
        assert!(matches(&selector, &labels(&[("team", "web"), ("tier", "1"), ("x", "y")])));
        assert!(!matches(&selector, &labels(&[("team", "web")])));
    }

    #[test]
    fn the_four_operators_mean_what_upstream_means() {
        let (web, db, none) = (labels(&[("team", "web")]), labels(&[("team", "db")]), labels(&[]));
        let table = [
            ("In", vec!["web", "shop"], [true, false, false]),
            ("NotIn", vec!["web", "shop"], [false, true, true]),
            ("Exists", vec![], [true, true, false]),
            ("DoesNotExist", vec![], [false, false, true]),
        ];
        for (operator, values, expected) in table {
            let selector = expression(operator, &values);
            assert_eq!([&web, &db, &none].map(|l| matches(&selector, l)), expected, "{operator}");
        }
    }

    #[test]
    fn a_requirement_that_upstream_refuses_matches_nothing() {
        for (operator, values) in
            [("in", vec!["web"]), ("NotIn", vec![]), ("Exists", vec!["web"]), ("Gt", vec!["1"])]
        {
            let selector = expression(operator, &values);
            assert!(!matches(&selector, &labels(&[("team", "web")])), "{operator}");
            assert!(!matches(&selector, &labels(&[])), "{operator}");
        }
    }
}
