//! Why a prefix is announced or not: what this node has of it, and what becomes of it at a peer. Pure.

use super::Quarantine;
use crate::{announce::Routes, ipam::is_fixed};
use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPPeerSpec, DEFAULT_PARTITION},
};
use bulkhead_bgp::{
    PrefixAtPeer,
    neighbour::{Fate, Leaving},
};
use bulkhead_policy::{Objects, Sourced};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;

/// Blocks that are named, of those that lie in what was asked for.
const MOST_BLOCKS: usize = 8;

/// What the node knows.
pub struct Facts<'a> {
    pub objects: &'a Objects,
    pub peers: &'a BTreeMap<String, Sourced<BGPPeerSpec>>,
    pub configuration: Option<&'a Sourced<BGPConfigurationSpec>>,
    /// Its own, with their partitions.
    pub blocks: &'a BTreeMap<IpNetwork, String>,
    pub announced: &'a Routes,
    /// Service ranges that are to be announced.
    pub services: &'a Routes,
    /// Ranges of partitions that this node is named for to announce whole; they are drained as services.
    pub aggregates: &'a Routes,
    /// What comes of services and of blocks.
    pub leaving: (Leaving, Leaving),
    pub quarantine: &'a Quarantine,
    /// There is nobody to peer with any more, and routers keep what they heard.
    pub interrupted: Option<&'a str>,
    /// Why there is no speaker.
    pub errors: &'a [ObjectError],
}

/// Why this node has a route for a prefix, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The block that the prefix is, or is a part of.
    pub route: Option<IpNetwork>,
    pub announced: bool,
    pub words: String,
    /// Where the export rules of each peer stand.
    export_rules: BTreeMap<String, String>,
}

impl Origin {
    pub fn of(prefix: &IpNetwork, facts: &Facts<'_>) -> Self {
        let rules = |(name, peer): (&String, &Sourced<BGPPeerSpec>)| (name.clone(), export_rules(name, peer));
        let none = |words: String| Self {
            route: None,
            announced: false,
            words,
            export_rules: facts.peers.iter().map(rules).collect(),
        };
        let Some((block, partition)) = facts.blocks.iter().find(|(block, _)| holds(block, prefix)) else {
            let holding = |ranges: &Routes| ranges.keys().find(|range| holds(range, prefix)).copied();
            let (route, what) = if let Some(range) = holding(facts.services) {
                (range, of_services(prefix, &range))
            } else if let Some(range) = holding(facts.aggregates) {
                (range, of_aggregate(prefix, &range, facts))
            } else if let (Some(why), Some(range)) = (facts.interrupted, holding(facts.announced)) {
                let words = format!("{}{range} is not announced now: {why}", part(prefix, &range));
                return Self { route: Some(range), ..none(words) };
            } else {
                return none(not_ours(prefix, facts));
            };
            return Self { route: Some(route), ..none(what) }.shared(route, facts);
        };
        let what = match block == prefix {
            true => format!("this node's own block, of partition {partition}"),
            false => format!(
                "a part of this node's own block {block}, of partition {partition}, which is announced whole"
            ),
        };
        let own = Self { route: Some(*block), ..none(what.clone()) };
        match withheld(block, partition, facts) {
            None => Self { announced: true, words: own.words.clone() + marked(facts.leaving.1), ..own },
            Some(why) => Self { words: format!("{what}; it is not announced: {why}"), ..own },
        }
    }

    /// What other nodes may announce too.
    fn shared(self, route: IpNetwork, facts: &Facts<'_>) -> Self {
        let what = self.words;
        if let Some(why) = facts.interrupted {
            return Self { words: format!("{what}; it is not announced: {why}"), ..self };
        }
        let announced = facts.announced.contains_key(&route);
        let words = match (announced, facts.leaving.0) {
            (true, leaving) => what + marked(leaving),
            (false, Leaving::Withdrawn) => format!("{what}; it is not announced: {DRAINED}"),
            (false, _) => format!("{what}; it is not announced: {}", not_yet(facts)),
        };
        Self { announced, words, ..self }
    }
}

fn of_services(prefix: &IpNetwork, range: &IpNetwork) -> String {
    if is_fixed(range) {
        return format!(
            "{range} is an address of a service, and this node is one of those that its traffic policy wants"
        );
    }
    format!("{}the service range {range}, which every node announces", part(prefix, range))
}

fn of_aggregate(prefix: &IpNetwork, range: &IpNetwork, facts: &Facts<'_>) -> String {
    let of = facts.objects.own_ranges().find(|(_, own)| *own == range).map_or("", |(partition, _)| partition);
    format!(
        "{}the range {range} of partition {of}, which this node is named for to announce whole (`bgp.aggregateFrom`)",
        part(prefix, range)
    )
}

fn part(prefix: &IpNetwork, range: &IpNetwork) -> &'static str {
    if prefix == range { "" } else { "a part of " }
}

const DRAINED: &str = "this node's routes were drained: `bulkhead node drain-routes --undo` ends that";

fn marked(leaving: Leaving) -> &'static str {
    if leaving == Leaving::Marked { "; it is being drained: announced as the last choice" } else { "" }
}

fn not_yet(facts: &Facts<'_>) -> String {
    let error = facts.errors.first().map(ToString::to_string);
    error.unwrap_or_else(|| "no generation that covers it is in force yet".into())
}

/// Why a block of this node is not announced to anybody.
fn withheld(block: &IpNetwork, partition: &str, facts: &Facts<'_>) -> Option<String> {
    let advertised = facts.objects.partitions.get(partition).and_then(|p| p.spec.bgp.as_ref());
    if let Some(why) = facts.interrupted {
        return Some(why.into());
    }
    if facts.configuration.is_none() {
        return Some("there is no BGPConfiguration".into());
    }
    if facts.leaving.1 == Leaving::Withdrawn {
        return Some(DRAINED.into());
    }
    if advertised.is_some_and(|bgp| !bgp.advertise) {
        return Some(format!("Partition/{partition} has `bgp.advertise: false`"));
    }
    if facts.announced.contains_key(block) {
        return None;
    }
    Some(facts.quarantine.why(block).map_or_else(|| not_yet(facts), ToString::to_string))
}

fn not_ours(prefix: &IpNetwork, facts: &Facts<'_>) -> String {
    let inside: Vec<&IpNetwork> = facts.blocks.keys().filter(|block| holds(prefix, block)).collect();
    if !inside.is_empty() {
        let named: Vec<String> = inside.iter().take(MOST_BLOCKS).map(ToString::to_string).collect();
        let more = inside.len().saturating_sub(MOST_BLOCKS);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        return format!(
            "not announced: a node announces its own blocks only, here {}{more}; aggregates are made on the routers",
            named.join(", ")
        );
    }
    let range =
        facts.objects.ranges().filter(|(_, range)| holds(range, prefix)).max_by_key(|(_, r)| r.prefix());
    match range {
        Some((partition, range)) => format!(
            "not announced from here: it lies in {range} of partition {partition}, of which this node has no such block; the \
             node that has one announces it"
        ),
        None => "not announced: nothing of this node covers it, neither a block nor the range of a partition"
            .into(),
    }
}

fn holds(network: &IpNetwork, other: &IpNetwork) -> bool {
    network.is_ipv4() == other.is_ipv4()
        && network.prefix() <= other.prefix()
        && network.contains(other.network())
}

/// `BGPPeer/leaf session.export  (bgp.yaml:12)`, or those of its group.
fn export_rules(name: &str, peer: &Sourced<BGPPeerSpec>) -> String {
    match (&peer.spec.session.export, &peer.spec.group) {
        (None, Some(group)) => {
            format!("BGPConfiguration/{DEFAULT_PARTITION} peerGroups[{group}].export")
        }
        _ => match &peer.file {
            Some(file) => format!("BGPPeer/{name} ({file}) session.export"),
            None => format!("BGPPeer/{name} session.export"),
        },
    }
}

/// What becomes of the node's route at this peer, and by which rule.
pub fn reason(at: &PrefixAtPeer, origin: &Origin) -> String {
    let rule = |index: usize| {
        // One out of a range is known by the range's name and its address.
        let name = at.peer.name.split('[').next().unwrap_or_default();
        let rules = origin.export_rules.get(name).map_or("export", String::as_str);
        format!("{rules}[{index}]")
    };
    match &at.fate {
        Fate::Announced { rule: Some(index), .. } => format!("accepted by {}", rule(*index)),
        Fate::Announced { rule: None, .. } => "no export rule matches it: announced".into(),
        Fate::Filtered(Some(index)) => format!("rejected by {}", rule(*index)),
        Fate::Unverified => "this session has just begun: whose the address is, is being asked".into(),
        Fate::Left => format!("{} is being left, and has been long enough: {DRAINED}", at.peer.name),
        Fate::Filtered(None) => "no export rule accepts it".into(),
        Fate::Withheld(why) => why.to_string(),
        Fate::FamilyNotAgreed => "its IP version is not among the families of this session".into(),
        Fate::NoSession => match &at.peer.last_error {
            Some(error) => format!("no session ({}): {error}", at.peer.state),
            None => format!("no session ({})", at.peer.state),
        },
        Fate::NotOurs => "it is being withdrawn, or about to be announced".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bgp::RouteAttributes;

    const OWN: &str = "10.66.0.0/26";

    struct World {
        objects: Objects,
        blocks: BTreeMap<IpNetwork, String>,
        announced: Routes,
        configuration: Option<Sourced<BGPConfigurationSpec>>,
        services: Routes,
        aggregates: Routes,
        leaving: (Leaving, Leaving),
        quarantine: Quarantine,
        interrupted: Option<&'static str>,
    }

    fn world() -> World {
        let text = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: web}\n\
                    spec: {policyID: 20, namespaces: [web], podCIDRs: [10.66.0.0/16]}\n---\n\
                    apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {asn: 65010}\n";
        let mut snapshot = bulkhead_policy::files::Snapshot::default();
        for object in bulkhead_policy::files::parse("web.yaml", text).unwrap() {
            snapshot.insert(object);
        }
        let own: IpNetwork = OWN.parse().unwrap();
        World {
            objects: snapshot.policy,
            blocks: BTreeMap::from([(own, "web".into())]),
            announced: Routes::from([(own, RouteAttributes::default())]),
            configuration: snapshot.bgp,
            services: Routes::new(),
            aggregates: Routes::new(),
            leaving: (Leaving::No, Leaving::No),
            quarantine: Quarantine::default(),
            interrupted: None,
        }
    }

    impl World {
        fn origin(&self, prefix: &str) -> Origin {
            let facts = Facts {
                objects: &self.objects,
                peers: &BTreeMap::new(),
                configuration: self.configuration.as_ref(),
                blocks: &self.blocks,
                announced: &self.announced,
                services: &self.services,
                aggregates: &self.aggregates,
                leaving: self.leaving,
                quarantine: &self.quarantine,
                interrupted: self.interrupted,
                errors: &[],
            };
            Origin::of(&prefix.parse().unwrap(), &facts)
        }
    }

    #[test]
    fn a_block_and_an_address_in_it_are_announced_as_the_block() {
        let world = world();
        for (prefix, words) in
            [(OWN, "own block, of partition web"), ("10.66.0.7/32", "a part of this node's own block")]
        {
            let origin = world.origin(prefix);
            assert!(origin.announced && origin.words.contains(words), "{origin:?}");
            assert_eq!(origin.route, Some(OWN.parse().unwrap()));
        }
    }

    #[test]
    fn while_there_is_nobody_to_peer_with_nothing_is_announced_and_the_reason_is_that_of_the_status() {
        let why = "BGPConfiguration/default is gone: routers keep what they heard";
        let (range, own): (IpNetwork, IpNetwork) = ("10.96.0.0/16".parse().unwrap(), OWN.parse().unwrap());
        let announced = [own, range].map(|route| (route, RouteAttributes::default()));
        let kept = || World { announced: announced.clone().into(), interrupted: Some(why), ..world() };
        let gone = World { configuration: None, ..kept() };
        let services = Routes::from([(range, RouteAttributes::default())]);
        let (kept, told) = (kept(), World { services, ..kept() });
        for (world, prefix, route) in [
            (&gone, "10.66.0.7/32", own),
            (&kept, OWN, own),
            (&gone, "10.96.0.1/32", range),
            (&told, "10.96.0.1/32", range),
        ] {
            let origin = world.origin(prefix);
            assert!(!origin.announced && origin.words.ends_with(why), "{origin:?}");
            assert_eq!(origin.route, Some(route));
        }
    }

    #[test]
    fn a_service_range_is_everybodys_and_says_when_it_is_drained() {
        let range: IpNetwork = "10.96.0.0/16".parse().unwrap();
        let services = Routes::from([(range, RouteAttributes::default())]);
        let with = |leaving, announced: &Routes| World {
            services: services.clone(),
            announced: announced.clone(),
            leaving: (leaving, Leaving::No),
            ..world()
        };
        let origin = with(Leaving::Marked, &services).origin("10.96.0.1/32");
        assert_eq!((origin.announced, origin.route), (true, Some(range)));
        assert_eq!(
            origin.words,
            "a part of the service range 10.96.0.0/16, which every node announces; it is being drained: announced as the last \
             choice"
        );
        let origin = with(Leaving::Withdrawn, &Routes::new()).origin("10.96.0.0/16");
        assert!(!origin.announced && origin.words.contains("were drained"), "{origin:?}");
    }

    #[test]
    fn a_range_that_this_node_announces_whole_says_so_and_its_blocks_are_blocks_still() {
        let range: IpNetwork = "10.66.0.0/16".parse().unwrap();
        let aggregates = Routes::from([(range, RouteAttributes::default())]);
        let mut announced = aggregates.clone();
        announced.extend(world().announced);
        let named = World { aggregates: aggregates.clone(), announced, ..world() };
        let whole = "the range 10.66.0.0/16 of partition web, which this node is named for to announce whole (`bgp.aggregateFrom`)";
        for (prefix, words) in [
            ("10.66.0.0/16", whole.to_owned()),
            ("10.66.9.0/26", format!("a part of {whole}")),
            ("10.66.0.0/20", format!("a part of {whole}")),
        ] {
            let origin = named.origin(prefix);
            assert_eq!(
                (origin.announced, origin.route, origin.words),
                (true, Some(range), words),
                "{prefix}"
            );
        }
        assert!(named.origin(OWN).words.contains("own block"));
        let left = World { aggregates, leaving: (Leaving::Withdrawn, Leaving::No), ..world() };
        let origin = left.origin("10.66.0.0/16");
        assert!(!origin.announced && origin.words.contains("were drained"), "{origin:?}");
    }

    #[test]
    fn what_is_not_announced_says_why() {
        let said = |world: &World, prefix: &str, words: &str| {
            let origin = world.origin(prefix);
            assert!(!origin.announced && origin.words.contains(words), "{words} not in {origin:?}");
        };
        let plain = world();
        said(
            &plain,
            "10.66.0.0/16",
            "its own blocks only, here 10.66.0.0/26; aggregates are made on the routers",
        );
        said(
            &plain,
            "10.66.9.0/26",
            "in 10.66.0.0/16 of partition web, of which this node has no such block",
        );
        said(&plain, "192.0.2.0/24", "nothing of this node covers it");
        said(&plain, "2001:db8::/64", "nothing of this node covers it");
        said(&World { leaving: (Leaving::No, Leaving::Withdrawn), ..world() }, OWN, "were drained");
        said(&World { configuration: None, ..world() }, OWN, "there is no BGPConfiguration");
        said(&World { announced: Routes::new(), ..world() }, OWN, "no generation that covers it");
    }

    #[test]
    fn an_address_in_quarantine_says_what_it_waits_for() {
        let own: IpNetwork = "10.66.15.7/32".parse().unwrap();
        let mut quarantine = Quarantine::default();
        quarantine.follow([own].iter());
        let blocks = BTreeMap::from([(own, "web".to_owned())]);
        let origin = World { blocks, quarantine, ..world() }.origin("10.66.15.7/32");
        assert!(
            !origin.announced
                && origin.words.contains("in quarantine")
                && origin.words.contains("no router can be heard"),
            "{origin:?}"
        );
    }
}
