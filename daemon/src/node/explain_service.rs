//! `explain` of a call that a service stands for: each backend's verdict, since packets carry the backend's address.

use super::Node;
use bulkhead_api::messages::{ExplainedBackend, ExplainedService, Explanation};
use bulkhead_policy::{Flow, service::Frontend};
use std::net::SocketAddr;

/// Backends that are looked at.
const MOST: usize = 64;

/// A flow from a pod of this node to an address that a service has.
pub(super) struct Called<'a> {
    flow: Flow,
    frontend: &'a Frontend,
}

impl Node {
    /// What is asked of one address, by a pod whose calls are translated here.
    pub(super) fn called(&self, flows: &[Flow]) -> Option<Called<'_>> {
        let [flow] = flows else { return None };
        let is_local = self.endpoints.iter().any(|e| e.addresses.contains(&flow.from));
        let frontend = self.services.table.find(flow.to, flow.proto, flow.port);
        frontend.filter(|_| is_local).map(|frontend| Called { flow: *flow, frontend })
    }
}

impl Called<'_> {
    /// One for each backend; where there is none, that to the service's own address.
    pub fn flows(&self) -> Vec<Flow> {
        let to = |b: &SocketAddr| Flow { to: b.ip(), port: b.port(), ..self.flow };
        let flows: Vec<_> = self.frontend.backends.iter().take(MOST).map(to).collect();
        if flows.is_empty() { vec![self.flow] } else { flows }
    }

    /// `all`: of [`Self::flows`].
    pub fn explained(&self, all: &[Explanation]) -> ExplainedService {
        let backend = |(address, e): (&SocketAddr, &Explanation)| ExplainedBackend {
            address: *address,
            allowed: e.allowed,
            // The end that says no is the one to know.
            rule: e.decisions.iter().find(|d| !d.allowed).or(e.decisions.last()).map(|d| d.rule.clone()),
        };
        ExplainedService {
            name: self.frontend.service.clone(),
            kind: self.frontend.stands.text().into(),
            called: SocketAddr::new(self.flow.to, self.flow.port),
            backends: self.frontend.backends.iter().zip(all).map(backend).collect(),
        }
    }
}
