//! Each reply as text for people. Pure: reply in, text out, always ending in a line break.

mod bgp;
mod diff;
mod drain;
mod explain;
mod node;
mod policy;
mod rules;
mod services;

pub use bgp::{bgp_history, bgp_peers, bgp_routes, bgp_why};
pub use diff::diff;
pub use drain::{drained, draining};
pub use explain::explain;
pub use node::{drops, endpoints, partitions, status};
pub use policy::{generation, generations, generations_in_full};
pub use rules::rules;
pub use services::services;

use std::fmt::Display;

/// `a, b`; a dash for nothing, so that a column never looks forgotten.
fn list<T: Display>(items: &[T]) -> String {
    match items {
        [] => "-".to_string(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn or_dash<T: Display>(item: Option<T>) -> String {
    item.map_or_else(|| "-".to_string(), |i| i.to_string())
}

/// `Partition/web ingress "from-payments"  (web.yaml:14)`
fn rule(rule: &bulkhead_api::messages::RuleInfo) -> String {
    match &rule.file {
        Some(file) => format!("{}  ({file})", rule.name),
        None => rule.name.clone(),
    }
}
