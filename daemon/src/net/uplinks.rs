//! Which interfaces lead out of the node. Pure: [`super::node`] asks the kernel.
//!
//! The ports of a bond or a team are never uplinks: packets come in and leave by the bond, which has the addresses, the MAC
//! and the MTU. Other interfaces that are somebody's ports count only where they are named in full; so do those that hold
//! addresses of services or of containers, by which nothing leaves.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// One entry of `uplinks` in the configuration. An interface that meets any of them is an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "an uplink is the name of an interface, as `eth0` or `bond*`, or a range of its addresses, as `{cidr: 10.0.0.0/8}`"
)]
pub enum UplinkRule {
    /// In full, or with `*` for any characters.
    Name(String),
    Range(AddressRange),
}

/// Interfaces with an address in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRange {
    pub cidr: IpNetwork,
}

impl fmt::Display for UplinkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Range(range) => write!(f, "an address in {}", range.cidr),
        }
    }
}

/// An interface that is not ours, and not the loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    pub port: Port,
    /// A dummy, a bridge or a tunnel.
    pub is_inner: bool,
    /// Global ones that can be a source, in the kernel's order.
    pub addresses: Vec<IpAddr>,
    pub is_default_route: bool,
}

/// Whose port an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Port {
    #[default]
    No,
    /// Of a bond or a team: its index.
    OfBond(u32),
    /// Of a bridge, say.
    Other,
}

/// An interface towards the routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mtu: u32,
    /// First global address of each family; of the loopback where the uplink has none (unnumbered).
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// What of the configuration made it one.
    pub chosen_by: String,
}

/// `loopback`: its global addresses.
///
/// # Errors
/// What is wrong with the configuration, or what it does not find.
pub fn choose(
    rules: &[UplinkRule],
    candidates: &[Candidate],
    loopback: &[IpAddr],
) -> Result<Vec<Uplink>, String> {
    for rule in rules {
        if let UplinkRule::Name(name) = rule
            && !name.contains('*')
        {
            check_named(name, candidates)?;
        }
    }
    let uplink = |c: &Candidate| Some(uplink(c, loopback, chosen_by(rules, c)?));
    let chosen: Vec<_> = candidates.iter().filter_map(uplink).collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    Err(if rules.is_empty() {
        "no uplink: there is no default route, and the configuration names no interface in `uplinks`".into()
    } else {
        let rules: Vec<_> = rules.iter().map(ToString::to_string).collect();
        format!("no uplink: no interface has {}; see `uplinks` in the configuration", rules.join(" or "))
    })
}

/// What is named in full has to be there.
fn check_named(name: &str, candidates: &[Candidate]) -> Result<(), String> {
    let found = candidates.iter().find(|c| c.name == name).ok_or_else(|| {
        format!("uplink {name}: there is no such interface; see `uplinks` in the configuration")
    })?;
    let Port::OfBond(index) = found.port else { return Ok(()) };
    let bond = candidates.iter().find(|c| c.ifindex == index).map_or("its bond", |c| c.name.as_str());
    Err(format!(
        "uplink {name}: it is a port of {bond}, by which packets come and go: name {bond} in `uplinks`"
    ))
}

fn chosen_by(rules: &[UplinkRule], candidate: &Candidate) -> Option<String> {
    if rules.is_empty() {
        return candidate.is_default_route.then(|| "default route".into());
    }
    rules.iter().find_map(|rule| match rule {
        UplinkRule::Name(name) if *name == candidate.name => Some("by name".into()),
        _ if candidate.port != Port::No || candidate.is_inner => None,
        UplinkRule::Name(pattern) => matches(pattern, &candidate.name).then(|| format!("by `{pattern}`")),
        UplinkRule::Range(AddressRange { cidr }) => {
            let address = candidate.addresses.iter().find(|a| cidr.contains(**a))?;
            Some(format!("{address} in {cidr}"))
        }
    })
}

/// `*` stands for any characters, also for none.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(tail, &rest[at..]))
}

fn uplink(candidate: &Candidate, loopback: &[IpAddr], chosen_by: String) -> Uplink {
    let addresses = || candidate.addresses.iter().chain(loopback);
    let v4 = addresses().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None });
    let v6 = addresses().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None });
    let Candidate { name, ifindex, mtu, .. } = candidate;
    Uplink { name: name.clone(), ifindex: *ifindex, mtu: *mtu, v4, v6, chosen_by }
}

/// Whether an interface that was an uplink may be one again by these rules: all that it lacks is an address, or a default
/// route.
pub fn could_choose(rules: &[UplinkRule], candidate: &Candidate) -> bool {
    let by_range = !candidate.is_inner && rules.iter().any(|rule| matches!(rule, UplinkRule::Range(_)));
    let could_be = candidate.port == Port::No && (rules.is_empty() || by_range);
    could_be || chosen_by(rules, candidate).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, ifindex: u32, addresses: &[&str]) -> Candidate {
        Candidate {
            name: name.into(),
            ifindex,
            mtu: 1500,
            port: Port::No,
            is_inner: false,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            is_default_route: false,
        }
    }

    fn rules(yaml: &str) -> Vec<UplinkRule> {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// A bond of two ports, an interface of management, another one, a bridge with a port and a dummy.
    fn machine() -> Vec<Candidate> {
        let port = |name: &str, index, port| Candidate { port, ..candidate(name, index, &[]) };
        vec![
            Candidate { is_default_route: true, ..candidate("mgmt0", 2, &["192.0.2.5", "fd00:5::5"]) },
            port("eth0", 3, Port::OfBond(5)),
            port("eth1", 4, Port::OfBond(5)),
            Candidate { mtu: 9000, ..candidate("bond0", 5, &["10.1.0.5"]) },
            candidate("bare0", 6, &["10.2.0.5"]),
            port("eth2", 7, Port::Other),
            Candidate { is_inner: true, ..candidate("br0", 8, &["10.3.0.5"]) },
            Candidate { is_inner: true, ..candidate("kube-ipvs0", 9, &["10.96.0.1"]) },
        ]
    }

    fn chosen(yaml: &str) -> Result<Vec<String>, String> {
        let uplinks = choose(&rules(yaml), &machine(), &[])?;
        Ok(uplinks.iter().map(|u| format!("{} {} {}", u.name, u.mtu, u.chosen_by)).collect())
    }

    #[test]
    fn interfaces_are_chosen_by_name_by_pattern_and_by_address() {
        for (yaml, expected) in [
            ("[]", vec!["mgmt0 1500 default route"]),
            ("[bond0]", vec!["bond0 9000 by name"]),
            ("['bond*']", vec!["bond0 9000 by `bond*`"]),
            // Of a bond, and of anything else: by a pattern a port is none.
            ("['eth*', 'ba*']", vec!["bare0 1500 by `ba*`"]),
            ("['br*', bare0]", vec!["bare0 1500 by name"]),
            ("[br0]", vec!["br0 1500 by name"]),
            ("[eth2]", vec!["eth2 1500 by name"]),
            (
                "[{cidr: 10.0.0.0/8}]",
                vec!["bond0 9000 10.1.0.5 in 10.0.0.0/8", "bare0 1500 10.2.0.5 in 10.0.0.0/8"],
            ),
            ("[{cidr: 'fd00::/16'}]", vec!["mgmt0 1500 fd00:5::5 in fd00::/16"]),
            // Two by two rules; the first that fits says why.
            (
                "[mgmt0, {cidr: 10.1.0.0/16}, 'b*0']",
                vec!["mgmt0 1500 by name", "bond0 9000 10.1.0.5 in 10.1.0.0/16", "bare0 1500 by `b*0`"],
            ),
        ] {
            let expected = expected.into_iter().map(String::from).collect();
            assert_eq!(chosen(yaml), Ok(expected), "{yaml}");
        }
    }

    #[test]
    fn what_only_lost_its_address_or_route_may_be_chosen_again() {
        let bare = candidate("eth7", 7, &[]);
        let port = Candidate { port: Port::OfBond(5), ..bare.clone() };
        let inner = Candidate { is_inner: true, ..bare.clone() };
        for (yaml, expected) in [
            ("[]", [true, false, true]),
            ("[{cidr: 10.0.0.0/8}]", [true, false, false]),
            ("['eth*']", [true, false, false]),
            ("['ens*']", [false; 3]),
            ("[eth8]", [false; 3]),
            ("[eth8, {cidr: 10.0.0.0/8}]", [true, false, false]),
        ] {
            let found = [&bare, &port, &inner].map(|c| could_choose(&rules(yaml), c));
            assert_eq!(found, expected, "{yaml}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_says_what_to_do() {
        for (yaml, words) in [
            ("[eth9]", &["eth9", "no such interface", "`uplinks`"][..]),
            ("[bond0, eth9]", &["eth9"]),
            ("[eth1]", &["eth1", "port of bond0", "name bond0"]),
            ("['ens*', {cidr: 10.9.0.0/16}]", &["`ens*`", "10.9.0.0/16"]),
        ] {
            let error = chosen(yaml).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{yaml}: {error}");
        }
        let error = choose(&[], &machine()[1..], &[]).unwrap_err();
        assert!(error.contains("no default route"), "{error}");
    }

    #[test]
    fn an_entry_that_is_neither_says_what_it_could_be() {
        for yaml in ["[{name: eth0}]", "[{cidr: 10.0.0.0/33}]", "[[eth0]]", "[{cidr: 10.0.0.0/8, mtu: 9000}]"]
        {
            let error = serde_saphyr::from_str::<Vec<UplinkRule>>(yaml).unwrap_err().to_string();
            assert!(error.contains("`bond*`") && error.contains("{cidr: 10.0.0.0/8}"), "{yaml}: {error}");
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, fits) in [
            ("eth*", "eth0", true),
            ("eth*", "eth", true),
            ("eth*", "veth0", false),
            ("*", "anything", true),
            ("en*s*", "enp1s0", true),
            ("en*s*0", "enp1s01", false),
            ("eth0", "eth01", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn an_uplink_without_an_address_speaks_with_the_loopbacks() {
        let loopback = ["192.0.2.9".parse().unwrap(), "fd00:9::9".parse().unwrap()];
        let uplinks = choose(&rules("[bond0]"), &machine(), &loopback).unwrap();
        assert_eq!((uplinks[0].v4, uplinks[0].v6), ("10.1.0.5".parse().ok(), "fd00:9::9".parse().ok()));
    }
}
