//! Filters of routes, in and out: an ordered list of rules, of which the first that matches decides.
//!
//! What no rule matches is decided by the filter's own default: outward everything that is to be announced
//! passes, inward nothing does (RFC 8212).

use crate::wire::{AsPath, Attributes, LargeCommunity, Segment, SegmentKind};
use ipnetwork::IpNetwork;

/// A network and the lengths of the prefixes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixRange {
    pub network: IpNetwork,
    pub min: u8,
    pub max: u8,
}

impl PrefixRange {
    pub fn holds(&self, prefix: &IpNetwork) -> bool {
        (self.min..=self.max).contains(&prefix.prefix())
            && self.network.prefix() <= prefix.prefix()
            && self.network.contains(prefix.network())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Community {
    Plain(u32),
    Large(LargeCommunity),
}

/// A list that is empty matches everything; of one that is not, one entry must match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    pub prefixes: Vec<PrefixRange>,
    pub communities: Vec<Community>,
    /// AS numbers anywhere in the path.
    pub path_has: Vec<u32>,
    pub accept: bool,
    pub set: Changes,
}

/// What becomes of a route that a rule accepts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changes {
    /// Added to those it has.
    pub communities: Vec<Community>,
    /// Not told to external peers.
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    /// How many times more the first AS number of the path stands in front of it.
    pub prepend: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub rules: Vec<Rule>,
    /// What becomes of a route that no rule matches.
    pub otherwise: bool,
}

impl Filter {
    pub const ACCEPT: Filter = Filter { rules: Vec::new(), otherwise: true };
    pub const REJECT: Filter = Filter { rules: Vec::new(), otherwise: false };

    /// The first rule that matches, by its place in the list.
    pub fn matching(&self, prefix: &IpNetwork, attributes: &Attributes) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(prefix, attributes))
    }

    /// Whether a route passes, given what [`Self::matching`] said.
    pub fn accepts(&self, matching: Option<usize>) -> bool {
        matching.and_then(|index| self.rules.get(index)).map_or(self.otherwise, |rule| rule.accept)
    }

    pub fn accepts_nothing(&self) -> bool {
        !self.otherwise && self.rules.iter().all(|rule| !rule.accept)
    }

    pub fn change(&self, matching: Option<usize>, attributes: &mut Attributes) {
        if let Some(rule) = matching.and_then(|index| self.rules.get(index)) {
            rule.set.apply(attributes);
        }
    }
}

impl Rule {
    fn matches(&self, prefix: &IpNetwork, attributes: &Attributes) -> bool {
        let has = |community: &Community| match community {
            Community::Plain(value) => attributes.communities.contains(value),
            Community::Large(value) => attributes.large_communities.contains(value),
        };
        let any = |empty: bool, matches: bool| empty || matches;
        any(self.prefixes.is_empty(), self.prefixes.iter().any(|range| range.holds(prefix)))
            && any(self.communities.is_empty(), self.communities.iter().any(has))
            && any(
                self.path_has.is_empty(),
                attributes.as_path.asns().any(|asn| self.path_has.contains(&asn)),
            )
    }
}

impl Changes {
    fn apply(&self, attributes: &mut Attributes) {
        for community in &self.communities {
            match community {
                Community::Plain(value) => attributes.communities.push(*value),
                Community::Large(value) => attributes.large_communities.push(*value),
            }
        }
        attributes.communities.sort_unstable();
        attributes.communities.dedup();
        attributes.large_communities.sort_unstable();
        attributes.large_communities.dedup();
        attributes.local_pref = self.local_pref.or(attributes.local_pref);
        attributes.med = self.med.or(attributes.med);
        prepend(&mut attributes.as_path, self.prepend);
    }
}

fn prepend(path: &mut AsPath, times: u8) {
    let Some(Segment { kind: SegmentKind::Sequence, asns }) = path.0.first_mut() else { return };
    if let Some(first) = asns.first().copied() {
        asns.splice(0..0, std::iter::repeat_n(first, times.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(network: &str, min: u8, max: u8) -> PrefixRange {
        PrefixRange { network: network.parse().unwrap(), min, max }
    }

    fn attributes() -> Attributes {
        Attributes {
            as_path: AsPath::sequence([65020, 65030]),
            communities: vec![7],
            large_communities: vec![[1, 2, 3]],
            ..Attributes::default()
        }
    }

    fn passes(filter: &Filter, prefix: &str) -> bool {
        filter.accepts(filter.matching(&prefix.parse().unwrap(), &attributes()))
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_the_default_where_none_does() {
        let accept = |network, min, max| Rule {
            prefixes: vec![range(network, min, max)],
            accept: true,
            ..Rule::default()
        };
        let reject = Rule { prefixes: vec![range("10.1.0.0/16", 16, 32)], ..Rule::default() };
        let filter = Filter { rules: vec![reject, accept("10.0.0.0/8", 8, 24)], otherwise: false };
        for (prefix, expected) in [
            ("10.2.0.0/16", true),
            ("10.1.2.0/24", false),
            ("10.0.0.0/8", true),
            ("10.2.0.0/26", false),
            ("11.0.0.0/8", false),
            ("0.0.0.0/0", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(passes(&filter, prefix), expected, "{prefix}");
        }
        assert!(passes(&Filter::ACCEPT, "10.0.0.0/8") && !passes(&Filter::REJECT, "10.0.0.0/8"));
    }

    #[test]
    fn every_condition_of_a_rule_must_hold() {
        let rule = Rule {
            communities: vec![Community::Plain(9), Community::Large([1, 2, 3])],
            path_has: vec![65030],
            accept: true,
            ..Rule::default()
        };
        let with = |rule: Rule| passes(&Filter { rules: vec![rule], otherwise: false }, "10.0.0.0/8");
        assert!(with(rule.clone()));
        assert!(!with(Rule { path_has: vec![65099], ..rule.clone() }));
        assert!(!with(Rule { communities: vec![Community::Plain(9)], ..rule }));
    }

    #[test]
    fn what_a_rule_sets_is_added_or_put_in_place() {
        let set = Changes {
            communities: vec![Community::Plain(7), Community::Plain(3), Community::Large([1, 1, 1])],
            local_pref: Some(50),
            med: None,
            prepend: 2,
        };
        let filter = Filter { rules: vec![Rule { accept: true, set, ..Rule::default() }], otherwise: false };
        let mut changed = Attributes { med: Some(5), ..attributes() };
        filter.change(Some(0), &mut changed);
        let expected = Attributes {
            as_path: AsPath::sequence([65020, 65020, 65020, 65030]),
            communities: vec![3, 7],
            large_communities: vec![[1, 1, 1], [1, 2, 3]],
            local_pref: Some(50),
            med: Some(5),
            ..Attributes::default()
        };
        assert_eq!(changed, expected);
        filter.change(None, &mut changed);
        assert_eq!(changed, expected);
    }
}
