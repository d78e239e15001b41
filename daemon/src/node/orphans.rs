//! Backends of UDP that are gone: sockets that are connected to one stay there. Pure.

use bulkhead_api::objects::Protocol;
use bulkhead_policy::{Named, service::EndpointSlice};
use imbl::ordmap::DiffItem;
use std::{collections::BTreeSet, net::SocketAddr};

/// Backends of UDP that slices name.
#[derive(Default)]
pub(super) struct Orphans {
    slices: Option<Named<EndpointSlice>>,
}

/// Backends that slices named, and name no more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Gone {
    #[default]
    Nobody,
    These(BTreeSet<SocketAddr>),
    /// Whatever a daemon before us knew: all but these.
    AllBut(BTreeSet<SocketAddr>),
}

impl Gone {
    pub fn holds(&self, backend: SocketAddr) -> bool {
        match self {
            Self::Nobody => false,
            Self::These(gone) => gone.contains(&backend),
            Self::AllBut(there) => !there.contains(&backend),
        }
    }
}

impl Orphans {
    /// Who is gone since the last time, and of those that are `left` of it. One that terminates stands in its slice until its
    /// pod is gone, and keeps its clients so long.
    pub fn follow(&mut self, slices: &Named<EndpointSlice>, left: Gone) -> Gone {
        let there = || slices.values().flat_map(|slice| udp(slice)).collect::<BTreeSet<_>>();
        let Some(before) = self.slices.replace(slices.clone()) else { return Gone::AllBut(there()) };
        let mut gone = match left {
            Gone::AllBut(_) => return Gone::AllBut(there()),
            Gone::These(gone) => gone,
            Gone::Nobody => BTreeSet::new(),
        };
        gone.extend(before.diff(slices).flat_map(|item| match item {
            DiffItem::Add(..) => Vec::new(),
            DiffItem::Remove(_, old) | DiffItem::Update { old: (_, old), .. } => udp(old).collect(),
        }));
        // Most changes are none of UDP.
        let gone = if gone.is_empty() { gone } else { &gone - &there() };
        if gone.is_empty() { Gone::Nobody } else { Gone::These(gone) }
    }
}

fn udp(slice: &EndpointSlice) -> impl Iterator<Item = SocketAddr> {
    let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::UDP).map(|port| port.port);
    ports.flat_map(|port| slice.endpoints.iter().map(move |e| SocketAddr::new(e.address, port)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn slices(all: &[(&str, &str, &[&str])]) -> Named<EndpointSlice> {
        let slice = |protocol: &str, endpoints: &[&str]| {
            let endpoint = |address: &&str| serde_json::json!({"address": address, "ready": false, "serving": true, "terminating": true});
            let slice = serde_json::json!({
                "service": "shop/web",
                "ports": [{"protocol": protocol, "port": 53}],
                "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            });
            Arc::new(serde_json::from_value(slice).unwrap())
        };
        all.iter()
            .map(|(name, protocol, endpoints)| ((*name).to_owned(), slice(protocol, endpoints)))
            .collect()
    }

    fn at(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 53)
    }

    #[test]
    fn a_backend_is_gone_when_no_slice_names_it_any_more() {
        let mut orphans = Orphans::default();
        let mut seen = |all: &[(&str, &str, &[&str])]| {
            let gone = orphans.follow(&slices(all), Gone::Nobody);
            [at("10.0.0.1"), at("10.0.0.2")].map(|backend| gone.holds(backend))
        };
        // Of a daemon before nobody knows but what is there.
        assert_eq!(seen(&[("a", "UDP", &["10.0.0.2"])]), [true, false]);
        assert_eq!(seen(&[("a", "UDP", &["10.0.0.1", "10.0.0.2"])]), [false, false]);
        // To another slice.
        assert_eq!(seen(&[("a", "UDP", &["10.0.0.1"]), ("b", "UDP", &["10.0.0.2"])]), [false, false]);
        assert_eq!(seen(&[("a", "UDP", &["10.0.0.1"])]), [false, true]);
        assert_eq!(seen(&[]), [true, false]);
        // A connection of TCP is its own matter.
        assert_eq!(seen(&[("c", "TCP", &["10.0.0.2"])]), [false, false]);
        assert_eq!(seen(&[]), [false, false]);
    }

    #[test]
    fn who_is_left_stays_gone_until_a_slice_names_it_again() {
        let mut orphans = Orphans::default();
        let both = slices(&[("a", "UDP", &["10.0.0.1", "10.0.0.2"])]);
        let first = orphans.follow(&slices(&[]), Gone::Nobody);
        assert_eq!(first, Gone::AllBut(BTreeSet::new()));
        assert_eq!(orphans.follow(&both, first), Gone::AllBut([at("10.0.0.1"), at("10.0.0.2")].into()));
        let mut gone = Gone::Nobody;
        for (there, expected) in [
            (&["10.0.0.2"][..], &["10.0.0.1"][..]),
            (&[], &["10.0.0.1", "10.0.0.2"]),
            (&["10.0.0.1"], &["10.0.0.2"]),
        ] {
            gone = orphans.follow(&slices(&[("a", "UDP", there)]), gone);
            assert_eq!(gone, Gone::These(expected.iter().map(|a| at(a)).collect()));
        }
    }
}
