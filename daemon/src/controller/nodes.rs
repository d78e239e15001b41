//! What each node says of each object, from its report and how the objects came. Pure.

use super::{store::Store, summary::Opinion, timeline::Timeline};
use crate::source::{Kind, SetDigest};
use bulkhead_api::objects::{NodeReportSpec, Refusal};
use std::collections::BTreeMap;

#[derive(Default)]
pub struct Nodes(BTreeMap<String, Node>);

#[derive(Default)]
struct Node {
    /// How far it has got with the objects of a kind.
    states: BTreeMap<Kind, u64>,
    /// By object.
    refused: BTreeMap<String, Vec<Refusal>>,
}

impl Node {
    fn refusal(&self, object: &str, generation: i64) -> Option<&Refusal> {
        self.refused.get(object)?.iter().find(|r| r.generation == generation)
    }
}

impl Nodes {
    /// Takes the reports over. A digest of what was not heard of here yet leaves what the node went by before: it only goes on.
    pub fn read(&mut self, reports: &Store<NodeReportSpec>, timelines: &BTreeMap<Kind, Timeline>) {
        let mut former = std::mem::take(&mut self.0);
        for (name, report) in reports.iter() {
            let before = former.remove(name).unwrap_or_default();
            let mut now = Node::default();
            for (kind, digest) in &report.digests {
                let Some(kind) = Kind::named(kind) else { continue };
                let known =
                    timelines.get(&kind).zip(SetDigest::read(digest)).and_then(|(t, d)| t.state_of(d));
                now.states.extend(known.or_else(|| before.states.get(&kind).copied()).map(|s| (kind, s)));
            }
            for refusal in &report.refused {
                now.refused.entry(refusal.object.clone()).or_default().push(refusal.clone());
            }
            self.0.insert(name.clone(), now);
        }
    }

    /// Of this version of an object; `object` as in `Partition/web`.
    pub fn opinions<'a>(
        &'a self,
        kind: Kind,
        object: &'a str,
        generation: i64,
        timeline: &'a Timeline,
    ) -> impl Iterator<Item = (&'a str, Opinion<'a>)> {
        self.0.iter().map(move |(name, node)| {
            let opinion = match (node.refusal(object, generation), node.states.get(&kind)) {
                (Some(refusal), _) => Opinion::Refused(refusal),
                (None, Some(state)) if timeline.holds(object, *state) => Opinion::InForce,
                _ => Opinion::None,
            };
            (name.as_str(), opinion)
        })
    }

    /// Of an object of a kind that no timeline is kept of.
    pub fn refusals<'a>(
        &'a self,
        object: &'a str,
        generation: i64,
    ) -> impl Iterator<Item = (&'a str, Option<&'a Refusal>)> {
        self.0.iter().map(move |(name, node)| (name.as_str(), node.refusal(object, generation)))
    }

    /// Objects of a kind that some node refuses, with the version that it speaks of.
    pub fn refused_of(&self, kind: Kind) -> impl Iterator<Item = (&str, i64)> {
        let prefix = format!("{kind}/");
        let all = self.0.values().flat_map(|n| n.refused.values().flatten());
        all.filter(move |r| r.object.starts_with(&prefix)).map(|r| (r.object.as_str(), r.generation))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::source::{Version, versions};
    use bulkhead_api::objects::NodeReport;
    use kube::runtime::watcher::Event;

    const WEB: &str = "Partition/web";

    struct Cluster {
        timelines: BTreeMap<Kind, Timeline>,
        reports: Store<NodeReportSpec>,
        nodes: Nodes,
    }

    impl Cluster {
        fn new() -> Self {
            let timelines = [(Kind::Partition, Timeline::default())].into();
            Self { timelines, reports: Store::default(), nodes: Nodes::default() }
        }

        fn put(&mut self, object: &str, generation: i64) {
            let version = Version::new(object, "u", generation);
            self.timelines.get_mut(&Kind::Partition).unwrap().put(object, version);
        }

        /// `node` goes by these, but for what it refuses.
        fn report(&mut self, node: &str, of: &[(&str, i64)], refused: &[(&str, i64)]) {
            let digests = versions(of).digests().map(|(kind, d)| (kind.to_string(), d.text())).collect();
            let refusal = |(object, generation): &(&str, i64)| Refusal {
                object: (*object).into(),
                generation: *generation,
                field: None,
                message: "overlaps".into(),
            };
            let refused = refused.iter().map(refusal).collect();
            let spec = NodeReportSpec { digests, refused, ..NodeReportSpec::default() };
            self.reports.handle(Event::Apply(NodeReport::new(node, spec)), |r| r.spec);
        }

        /// `y`: in force, `n`: refused, `-`: nothing, node by node.
        fn said(&mut self, object: &str, generation: i64) -> String {
            self.nodes.read(&self.reports, &self.timelines);
            let timeline = &self.timelines[&Kind::Partition];
            let opinions = self.nodes.opinions(Kind::Partition, object, generation, timeline);
            opinions
                .map(|(_, opinion)| match opinion {
                    Opinion::InForce => 'y',
                    Opinion::Refused(_) => 'n',
                    Opinion::None => '-',
                })
                .collect()
        }
    }

    #[test]
    fn a_node_goes_by_what_its_digest_holds_but_for_what_it_refuses_in_this_version() {
        let mut cluster = Cluster::new();
        cluster.put(WEB, 1);
        cluster.put("Partition/db", 1);
        cluster.report("a", &[(WEB, 1), ("Partition/db", 1)], &[]);
        cluster.report("b", &[(WEB, 1)], &[]);
        cluster.report("c", &[(WEB, 1), ("Partition/db", 1)], &[("Partition/db", 1)]);
        cluster.report("d", &[], &[]);
        assert_eq!((cluster.said(WEB, 1), cluster.said("Partition/db", 1)), ("yyy-".into(), "y-n-".into()));
        // An edit, of which one node has heard: what it refused before says nothing of it.
        cluster.put("Partition/db", 2);
        cluster.report("c", &[(WEB, 1), ("Partition/db", 2)], &[("Partition/db", 1)]);
        assert_eq!((cluster.said(WEB, 1), cluster.said("Partition/db", 2)), ("yyy-".into(), "--y-".into()));
    }

    #[test]
    fn a_node_that_hears_first_is_judged_by_what_it_went_by_until_we_hear_too() {
        let mut cluster = Cluster::new();
        cluster.put(WEB, 1);
        cluster.report("a", &[(WEB, 1)], &[]);
        assert_eq!(cluster.said(WEB, 1), "y");
        cluster.report("a", &[(WEB, 1), ("Partition/new", 1)], &[]);
        assert_eq!(cluster.said(WEB, 1), "y");
        cluster.put("Partition/new", 1);
        assert_eq!(cluster.said("Partition/new", 1), "y");
        // It says nothing of the kind any more, and then goes.
        cluster.report("a", &[], &[]);
        assert_eq!(cluster.said(WEB, 1), "-");
    }
}
