//! Which endpoints take a connection that begins on this node: kube-proxy's choice (`CategorizeEndpoints` of Kubernetes
//! 1.33 and later).
//!
//! Ready ones, the nearest first where the hints of *all* ready endpoints say whom they are for; terminating ones that still
//! serve only where nothing is ready.

use super::Endpoint;

/// Where the question is asked.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Place {
    pub node: String,
    /// `topology.kubernetes.io/zone` of the node.
    pub zone: Option<String>,
}

/// An endpoint, by the port that a service's port is there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    pub endpoint: &'a Endpoint,
    pub port: u16,
}

/// `Cluster`: whoever is ready, the near ones if hints say so.
pub fn anywhere<'a>(endpoints: &[Candidate<'a>], at: &Place) -> Vec<Candidate<'a>> {
    let ready: Vec<_> = endpoints.iter().copied().filter(|c| c.endpoint.ready).collect();
    if ready.is_empty() {
        return terminating(endpoints);
    }
    let near = |hints: fn(&Endpoint) -> &Vec<String>, here: &String| -> Option<Vec<Candidate<'a>>> {
        if ready.iter().any(|c| hints(c.endpoint).is_empty()) {
            return None;
        }
        let near: Vec<_> = ready.iter().copied().filter(|c| hints(c.endpoint).contains(here)).collect();
        (!near.is_empty()).then_some(near)
    };
    near(|e| &e.for_nodes, &at.node).or_else(|| near(|e| &e.for_zones, at.zone.as_ref()?)).unwrap_or(ready)
}

/// `Local`: those on that node, hints or not.
pub fn on_node<'a>(endpoints: &[Candidate<'a>], node: &str) -> Vec<Candidate<'a>> {
    let there: Vec<_> =
        endpoints.iter().copied().filter(|c| c.endpoint.node.as_deref() == Some(node)).collect();
    let ready: Vec<_> = there.iter().copied().filter(|c| c.endpoint.ready).collect();
    if ready.is_empty() { terminating(&there) } else { ready }
}

fn terminating<'a>(endpoints: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
    endpoints.iter().copied().filter(|c| c.endpoint.serving && c.endpoint.terminating).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint {
            address: [10, 0, 0, last].into(),
            node: Some("n1".into()),
            ready: true,
            serving: true,
            terminating: false,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        }
    }

    fn going(last: u8) -> Endpoint {
        Endpoint { ready: false, terminating: true, ..endpoint(last) }
    }

    fn at(node: &str, zone: Option<&str>) -> Place {
        Place { node: node.into(), zone: zone.map(Into::into) }
    }

    fn all<'a, const N: usize>(endpoints: [&'a Endpoint; N]) -> [Candidate<'a>; N] {
        endpoints.map(|endpoint| Candidate { endpoint, port: 80 })
    }

    fn lasts(found: &[Candidate<'_>]) -> Vec<u8> {
        let last = |c: &Candidate<'_>| match c.endpoint.address {
            std::net::IpAddr::V4(a) => a.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        found.iter().map(last).collect()
    }

    #[test]
    fn terminating_endpoints_serve_only_where_nothing_is_ready() {
        let (ready, going, dead) = (endpoint(1), going(2), Endpoint { serving: false, ..going(3) });
        let here = at("n1", None);
        assert_eq!(lasts(&anywhere(&all([&ready, &going, &dead]), &here)), [1]);
        assert_eq!(lasts(&anywhere(&all([&going, &dead]), &here)), [2]);
        assert_eq!(lasts(&anywhere(&all([&dead]), &here)), [0u8; 0]);
        let elsewhere = Endpoint { node: Some("n2".into()), ..endpoint(4) };
        assert_eq!(lasts(&on_node(&all([&elsewhere, &going]), "n1")), [2]);
        assert_eq!(lasts(&on_node(&all([&elsewhere, &going, &ready]), "n1")), [1]);
    }

    #[test]
    fn hints_count_where_all_ready_endpoints_have_them_and_somebody_is_near() {
        let hinted = |last, zone: &str| Endpoint { for_zones: vec![zone.into()], ..endpoint(last) };
        let (a, b, plain) = (hinted(1, "a"), hinted(2, "b"), endpoint(3));
        assert_eq!(lasts(&anywhere(&all([&a, &b]), &at("n1", Some("b")))), [2]);
        assert_eq!(lasts(&anywhere(&all([&a, &b]), &at("n1", Some("c")))), [1, 2]);
        assert_eq!(lasts(&anywhere(&all([&a, &b]), &at("n1", None))), [1, 2]);
        assert_eq!(lasts(&anywhere(&all([&a, &b, &plain]), &at("n1", Some("b")))), [1, 2, 3]);
        // What is not ready has no say.
        let unready = Endpoint { ready: false, serving: false, ..endpoint(4) };
        assert_eq!(lasts(&anywhere(&all([&a, &b, &unready]), &at("n1", Some("b")))), [2]);
    }

    #[test]
    fn the_own_node_is_nearer_than_the_own_zone() {
        let hinted = |last, node: &str| Endpoint {
            for_zones: vec!["a".into()],
            for_nodes: vec![node.into()],
            ..endpoint(last)
        };
        let (first, second) = (hinted(1, "n1"), hinted(2, "n2"));
        assert_eq!(lasts(&anywhere(&all([&first, &second]), &at("n2", Some("a")))), [2]);
        assert_eq!(lasts(&anywhere(&all([&first, &second]), &at("n3", Some("a")))), [1, 2]);
    }
}
