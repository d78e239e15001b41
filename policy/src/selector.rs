//! Kubernetes label selectors.

use bulkhead_api::objects::{LabelSelector, LabelSelectorRequirement, Labels};

/// Whether the labels satisfy every requirement; an empty selector matches all labels. A requirement that Kubernetes
/// would refuse (unknown operator, missing values) matches nothing.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let values = &requirement.values;
    let listed = |label: &str| values.iter().any(|v| **v == *label);
    let label = labels.get(&requirement.key);
    match &*requirement.operator {
        "In" => label.is_some_and(listed),
        // Upstream: a label that is not there is in no list.
        "NotIn" => !values.is_empty() && label.is_none_or(|l| !listed(l)),
        "Exists" => values.is_empty() && label.is_some(),
        "DoesNotExist" => values.is_empty() && label.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().copied().collect()
    }

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        let values = values.iter().map(|v| (*v).into()).collect();
        let requirement = LabelSelectorRequirement { key: "team".into(), operator: operator.into(), values };
        LabelSelector { match_expressions: [requirement].into(), ..LabelSelector::default() }
    }

    #[test]
    fn an_empty_selector_matches_everything() {
        assert!(matches(&LabelSelector::default(), &labels(&[])));
        assert!(matches(&LabelSelector::default(), &labels(&[("team", "web")])));
    }

    #[test]
    fn match_labels_are_all_needed() {
        let selector = LabelSelector {
            match_labels: labels(&[("team", "web"), ("tier", "1")]),
            ..LabelSelector::default()
        };
        assert!(matches(&selector, &labels(&[("team", "web"), ("tier", "1"), ("x", "y")])));
        assert!(!matches(&selector, &labels(&[("team", "web")])));
    }

    #[test]
    fn expressions_are_all_needed_beside_labels_and_each_other() {
        let expressions = [("tier", "Exists"), ("old", "DoesNotExist")];
        let requirement = |(key, operator): (&str, &str)| LabelSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: [].into(),
        };
        let selector = LabelSelector {
            match_labels: labels(&[("team", "web")]),
            match_expressions: expressions.into_iter().map(requirement).collect(),
        };
        assert!(matches(&selector, &labels(&[("team", "web"), ("tier", "1")])));
        for lacking in
            [&[("team", "web")][..], &[("tier", "1")], &[("team", "web"), ("tier", "1"), ("old", "")]]
        {
            assert!(!matches(&selector, &labels(lacking)), "{lacking:?}");
        }
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
        for (operator, values) in [
            ("in", vec!["web"]),
            ("NotIn", vec![]),
            ("Exists", vec!["web"]),
            ("DoesNotExist", vec!["web"]),
            ("Gt", vec!["1"]),
        ] {
            let selector = expression(operator, &values);
            assert!(!matches(&selector, &labels(&[("team", "web")])), "{operator}");
            assert!(!matches(&selector, &labels(&[])), "{operator}");
        }
    }
}
