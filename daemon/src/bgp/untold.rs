//! Routers that tell this node of no other node's fixed address, though there are some, and addresses that none tells, though they
//! tell others: the quarantine would hear nothing of a former owner. Pure.

use super::quarantine::AtRouter;
use crate::ipam::is_fixed;
use ipnetwork::IpNetwork;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// For which a claim must have been there, and a session. What is claimed may be in quarantine itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Addresses that are asked for, each of another node: one that is down announces none of its own.
const MOST: usize = 8;

#[derive(Debug, Default)]
pub struct Untold {
    /// Of other nodes, since when they are known.
    claimed: BTreeMap<IpNetwork, (String, Instant)>,
    silent: BTreeMap<String, String>,
    /// That no router tells, though one tells others of that IP version.
    held_back: Vec<IpNetwork>,
}

impl Untold {
    /// What all nodes have claimed. Those to ask the routers for.
    pub fn follow<'a>(
        &mut self,
        now: Instant,
        node: &str,
        claims: impl Iterator<Item = (IpNetwork, &'a str)>,
    ) -> Vec<IpNetwork> {
        let mut before = std::mem::take(&mut self.claimed);
        for (address, owner) in claims.filter(|(address, owner)| is_fixed(address) && *owner != node) {
            let known = before.remove(&address).filter(|(known, _)| known == owner);
            self.claimed.insert(address, known.unwrap_or_else(|| (owner.to_owned(), now)));
        }
        let mut of_nodes: BTreeMap<(&str, bool), IpNetwork> = BTreeMap::new();
        for (address, (owner, since)) in &self.claimed {
            if now.saturating_duration_since(*since) >= PATIENCE {
                of_nodes.entry((owner, address.is_ipv4())).or_insert(*address);
            }
        }
        of_nodes.into_values().take(MOST).collect()
    }

    /// What the routers that carry that IP version said of each.
    pub fn heard(&mut self, answers: &[(IpNetwork, Vec<AtRouter>)]) {
        let mut told: BTreeMap<&str, (bool, Vec<IpNetwork>)> = BTreeMap::new();
        for (address, routers) in answers {
            for at in routers.iter().filter(|at| at.established.is_some_and(|since| since >= PATIENCE)) {
                let (tells, asked) = told.entry(&at.name).or_default();
                *tells |= at.way.is_some();
                asked.push(*address);
            }
        }
        self.held_back = held_back(answers);
        let silent = told.into_iter().filter(|(_, (tells, _))| !tells);
        self.silent = silent.map(|(name, (_, asked))| (name.to_owned(), self.words(&asked))).collect();
    }

    fn words(&self, asked: &[IpNetwork]) -> String {
        let owned = |address: &IpNetwork| {
            let (owner, _) = self.claimed.get(address)?;
            Some(format!("{} of node {owner}", address.ip()))
        };
        let named: Vec<String> = asked.iter().filter_map(owned).collect();
        format!(
            "tells this node of no fixed address that another node has ({}): one that moves to this node would be announced \
             while its former node has it still. Let the router tell the nodes these host routes",
            named.join(", ")
        )
    }

    /// And why that matters.
    pub fn addresses(&self) -> impl Iterator<Item = (IpNetwork, String)> {
        self.held_back.iter().filter_map(|address| {
            let (owner, _) = self.claimed.get(address)?;
            let words = format!(
                "no router tells this node of {}, which node {owner} has claimed, though they tell of others' fixed addresses: that \
                 node does not announce it, or a router on the way holds it back (one of another rack, or between racks); then one \
                 that moves from there to this node would be announced while {owner} has it still",
                address.ip()
            );
            Some((*address, words))
        })
    }

    /// By their names, and why that matters.
    pub fn routers(&self) -> impl Iterator<Item = (&String, &String)> {
        self.silent.iter()
    }
}

fn held_back(answers: &[(IpNetwork, Vec<AtRouter>)]) -> Vec<IpNetwork> {
    let have_stood = |routers: &[AtRouter]| {
        let mut since = routers.iter().filter_map(|at| at.established).peekable();
        since.peek().is_some() && since.all(|since| since >= PATIENCE)
    };
    let is_told = |routers: &[AtRouter]| routers.iter().any(|at| at.way.is_some());
    let others_told = |asked: &IpNetwork| {
        answers.iter().any(|(other, routers)| other.is_ipv4() == asked.is_ipv4() && is_told(routers))
    };
    let untold = |(address, routers): &&(IpNetwork, Vec<AtRouter>)| {
        have_stood(routers) && !is_told(routers) && others_told(address)
    };
    answers.iter().filter(untold).map(|(address, _)| *address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpNetwork {
        format!("10.65.15.{n}/32").parse().unwrap()
    }

    fn at(name: &str, established: Option<Duration>, way: bool) -> AtRouter {
        let way = way.then(|| "a way".into());
        AtRouter { name: name.into(), established, heard: true, way, ..AtRouter::default() }
    }

    #[test]
    fn those_are_asked_for_that_others_have_had_for_a_while_one_of_each_node() {
        let (mut untold, start) = (Untold::default(), Instant::now());
        let block: IpNetwork = "10.65.0.0/26".parse().unwrap();
        let claims =
            [(address(1), "n1"), (address(2), "n2"), (address(3), "n2"), (address(4), "here"), (block, "n1")];
        let later = start + PATIENCE;
        assert_eq!(untold.follow(start, "here", claims.into_iter()), []);
        assert_eq!(untold.follow(later, "here", claims.into_iter()), [address(1), address(2)]);
        let moved = [(address(1), "n3"), (address(3), "n2")];
        assert_eq!(
            untold.follow(later, "here", moved.into_iter()),
            [address(3)],
            "what has moved may be in quarantine"
        );
    }

    #[test]
    fn an_address_is_held_back_that_no_router_tells_while_they_tell_others_of_its_version() {
        let mut untold = Untold::default();
        let v6: IpNetwork = "fd00:65::f07/128".parse().unwrap();
        let claims = [(address(1), "n1"), (address(2), "n2"), (v6, "n2")];
        untold.follow(Instant::now(), "here", claims.into_iter());
        let long = Some(PATIENCE);
        let mut heard = |second: Vec<AtRouter>| {
            untold.heard(&[
                (address(1), vec![at("leaf", long, true), at("spine", long, false)]),
                (address(2), second),
                (v6, vec![at("leaf", long, false)]),
            ]);
            untold.addresses().map(|(address, _)| address).collect::<Vec<_>>()
        };
        assert_eq!(heard(vec![at("leaf", long, false), at("spine", long, false)]), [address(2)]);
        assert_eq!(heard(vec![at("leaf", long, false), at("spine", long, true)]), []);
        let young = at("spine", Some(PATIENCE / 2), false);
        assert_eq!(heard(vec![at("leaf", long, false), young]), [], "it may not have said it yet");
    }

    #[test]
    fn a_router_is_silent_that_has_stood_for_a_while_and_tells_none() {
        let start = Instant::now();
        let silent = |answers: &[(IpNetwork, Vec<AtRouter>)]| {
            let mut untold = Untold::default();
            untold.follow(start, "here", [(address(1), "n1"), (address(2), "n2")].into_iter());
            untold.heard(answers);
            untold.routers().map(|(name, words)| format!("{name} {words}")).collect::<Vec<_>>()
        };
        let long = Some(PATIENCE);
        let told = silent(&[
            (address(1), vec![at("deaf", long, false), at("leaf", long, true)]),
            (address(2), vec![at("deaf", long, false), at("leaf", long, false)]),
        ]);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("deaf tells this node of no fixed address that another node has (10.65.15.1 of node n1, 10.65.15.2"));
        for young in [None, Some(PATIENCE / 2)] {
            assert_eq!(silent(&[(address(1), vec![at("deaf", young, false)])]), [""; 0]);
        }
        assert_eq!(silent(&[]), [""; 0]);
    }
}
