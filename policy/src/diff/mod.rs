//! What a change newly allows and newly denies.
//!
//! ```text
//! pods and prefixes of both sides ─▶ groups: addresses that neither side tells apart
//! groups × groups ─▶ what each end decides, before and after, by protocol and port ─▶ sets of groups ─▶ words
//! ```
//! Exact, and not a guess from the objects' text: two rules may cancel out, and one edit may reach far.
//!
//! A node reaches its own pods, whatever rules say: of a pod that is told to be on a node before and after, flows from that node's
//! addresses are none of this. One that comes to the node in the change, or leaves it, is told by itself.

mod cuts;
mod functions;
mod groups;
mod names;
mod outcome;
mod own;
mod ports;
mod side;
mod turned;

use bulkhead_api::messages::{ExampleFlow, PolicyChange};
use bulkhead_ebpf_abi::{Addr, port_slot};
pub use cuts::{Cut, Cuts, Tables};
use groups::{Group, Groups};
use names::Names;
use outcome::Part;
pub use side::{FlowVerdict, Side};
use std::{collections::BTreeMap, net::IpAddr};
use turned::{Search, Set, turned};

pub struct Diff<'a> {
    sides: [&'a Side; 2],
    groups: Groups,
    /// Groups stand by IP version: the first of IPv6.
    v6_from: usize,
    /// Every (who, to whom, protocol, ports) whose verdict turns; `cut_connections` is left 0.
    pub changes: Vec<PolicyChange>,
    /// With the change that each is shown as.
    found: Vec<(Flows, usize)>,
    /// Of those of a node to a pod that is its own on one side.
    found_own: BTreeMap<(IpAddr, IpAddr), Vec<Found>>,
}

/// What turns, and the change that it is shown as.
type Found = (Vec<Part>, usize);

/// Changes by all that is said of them: those of the two IP versions are one.
type Shown = BTreeMap<(bool, Vec<String>, Vec<String>, String, String), usize>;

/// Flows between groups of one IP version that turn one way.
struct Flows {
    v6: bool,
    from: Set,
    to: Set,
    parts: Vec<Part>,
}

impl<'a> Diff<'a> {
    pub fn of(before: &'a Side, after: &'a Side) -> Self {
        let sides = [before, after];
        let groups = Groups::of(sides);
        let v6_from = groups.all.iter().take_while(|g| g.addresses.iter().all(IpAddr::is_ipv4)).count();
        let mut diff = Self {
            sides,
            groups,
            v6_from,
            changes: Vec::new(),
            found: Vec::new(),
            found_own: BTreeMap::new(),
        };
        let mut shown = Shown::new();
        for v6 in [false, true] {
            diff.add(v6, &mut shown);
            diff.add_own(v6, &mut shown);
        }
        diff
    }

    /// An address or more for everybody whom either side tells from others.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.groups.all.iter().flat_map(|group| group.addresses.iter().copied())
    }

    /// The change that speaks of a flow.
    pub fn find(&self, from: IpAddr, to: IpAddr, proto: u8, port: u16) -> Option<usize> {
        if from == to || from.is_ipv4() != to.is_ipv4() {
            return None;
        }
        let (slot, port) = port_slot(proto, port);
        let speaks = |part: &Part| {
            part.slot == slot && part.ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
        };
        if is_own(self.sides, from, to) {
            let found = self.found_own.get(&(from, to)).into_iter().flatten();
            return found.into_iter().find(|(parts, _)| parts.iter().any(speaks)).map(|(_, change)| *change);
        }
        let v6 = from.is_ipv6();
        let place = |address| Some((self.groups.number(self.sides, address)? - self.first(v6)) as u32);
        let (from, to) = (place(from)?, place(to)?);
        let holds = |set: &Set, n: u32| set.iter().any(|(first, last)| (*first..=*last).contains(&n));
        let found = self.found.iter().find(|(flows, _)| {
            flows.v6 == v6
                && flows.parts.iter().any(speaks)
                && holds(&flows.from, from)
                && holds(&flows.to, to)
        });
        found.map(|(_, change)| *change)
    }

    fn first(&self, v6: bool) -> usize {
        if v6 { self.v6_from } else { 0 }
    }

    fn add(&mut self, v6: bool, shown: &mut Shown) {
        let groups = match v6 {
            false => &self.groups.all[..self.v6_from],
            true => &self.groups.all[self.v6_from..],
        };
        let mut by_ends: BTreeMap<(Set, Set, bool), Vec<Part>> = BTreeMap::new();
        for turned in turned(self.sides, groups, v6) {
            by_ends.entry((turned.from, turned.to, turned.part.allows)).or_default().push(turned.part);
        }
        if by_ends.is_empty() {
            return;
        }
        let names = Names::of(self.sides, groups);
        for ((from, to, allows), parts) in by_ends {
            // A group of one address has no flows to itself.
            let Some(ends) = example(self.sides, groups, &from, &to) else { continue };
            let [who, to_whom] = [&from, &to].map(|set| names.say(set));
            for parts in lines(parts) {
                let change =
                    show(self.sides, &mut self.changes, shown, allows, [&who, &to_whom], ends, &parts);
                self.found.push((Flows { v6, from: from.clone(), to: to.clone(), parts }, change));
            }
        }
    }

    fn add_own(&mut self, v6: bool, shown: &mut Shown) {
        let mut found = own::own_on_one_side(self.sides);
        found.retain(|own| own.from.is_ipv6() == v6);
        if found.is_empty() {
            return;
        }
        let first = self.first(v6);
        let place = |address| Some(self.groups.number(self.sides, address)? - first);
        let groups = if v6 { &self.groups.all[first..] } else { &self.groups.all[..self.v6_from] };
        let mut search = Search::new(self.sides, groups, v6);
        let placed = found.into_iter().filter_map(|own| Some((place(own.from)?, place(own.to)?, own)));
        let turned: Vec<_> =
            placed.map(|(from, to, own)| (search.own(from, to, own.own).to_vec(), own)).collect();
        for (parts, own) in turned {
            let names = [vec![format!("node {}", own.node)], vec![format!("its pod {}", own.pod)]];
            let (allows, denies): (Vec<_>, Vec<_>) = parts.into_iter().partition(|part| part.allows);
            for parts in [allows, denies].into_iter().flat_map(lines) {
                let ends = (own.from, own.to);
                let change = show(
                    self.sides,
                    &mut self.changes,
                    shown,
                    parts[0].allows,
                    [&names[0], &names[1]],
                    ends,
                    &parts,
                );
                self.found_own.entry(ends).or_default().push((parts, change));
            }
        }
    }
}

/// The number of the change that says this of these.
fn show(
    sides: [&Side; 2],
    changes: &mut Vec<PolicyChange>,
    shown: &mut Shown,
    allows: bool,
    [from, to]: [&Vec<String>; 2],
    ends: (IpAddr, IpAddr),
    parts: &[Part],
) -> usize {
    let (protocol, ports) = words(parts, ends.0.is_ipv6());
    let key = (allows, from.clone(), to.clone(), protocol.replace("icmpv6", "icmp"), ports.clone());
    *shown.entry(key).or_insert_with(|| {
        let example = flow(ends, &parts[0]);
        let [before, after] = sides.map(|side| {
            let ExampleFlow { from, to, protocol, port } = example;
            side.rule(side.verdict(from, to, protocol, port).rule)
        });
        let (from, to, cut_connections) = (from.clone(), to.clone(), 0);
        changes.push(PolicyChange {
            allows,
            from,
            to,
            protocol,
            ports,
            example,
            before,
            after,
            cut_connections,
        });
        changes.len() - 1
    })
}

/// A line for the protocols of which all turns, and one for each other.
fn lines(mut parts: Vec<Part>) -> Vec<Vec<Part>> {
    parts.sort_unstable();
    let (whole, some): (Vec<_>, Vec<_>) = parts.into_iter().partition(|p| ports::is_all(p.slot, &p.ranges));
    let whole = (!whole.is_empty()).then_some(whole);
    some.into_iter().map(|part| vec![part]).chain(whole).collect()
}

/// Protocols and ports.
fn words(parts: &[Part], v6: bool) -> (String, String) {
    match parts {
        [part] => (ports::protocol(part.slot, &part.ranges), ports::text(part.slot, &part.ranges)),
        all if all.len() == ports::slots(v6).count() => ("any".into(), "all".into()),
        several => {
            let protocols: Vec<_> = several.iter().map(|p| ports::protocol(p.slot, &p.ranges)).collect();
            (protocols.join(", "), "all".into())
        }
    }
}

/// Two addresses that are not one, nor a node and its own pod.
fn example(sides: [&Side; 2], groups: &[Group], from: &Set, to: &Set) -> Option<(IpAddr, IpAddr)> {
    let addresses = |set: &Set| {
        let numbers = set.clone().into_iter().flat_map(|(first, last)| first..=last);
        numbers.filter_map(|n| groups.get(n as usize)).flat_map(|g| g.addresses.iter().copied())
    };
    let other = |from: IpAddr| addresses(to).find(|to| *to != from && !is_own(sides, from, *to));
    addresses(from).find_map(|from| Some((from, other(from)?)))
}

/// A node reaches its own pods: no rule is asked, on one side at least.
fn is_own(sides: [&Side; 2], from: IpAddr, to: IpAddr) -> bool {
    sides.iter().any(|side| side.is_own(Addr::from_ip(from), Addr::from_ip(to)))
}

fn flow((from, to): (IpAddr, IpAddr), part: &Part) -> ExampleFlow {
    let (protocol, port) = ports::example(part.slot, ports::known(part.slot, &part.ranges));
    ExampleFlow { from, to, protocol, port }
}
