//! Who must reach whom, written down by hand beside the rules of `lab/objects`; nothing of the product is asked.

use crate::{
    Lab, Result,
    probe::{Cell, Service},
    unmet,
};

use Party::{Default, Node, OtherNode, OwnNode, Payments, Vm, Web};
use Service::{Ping, Tcp, Udp};

/// An end, in relation to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Payments,
    Web,
    Default,
    Vm,
    /// A node, towards whom no pod is its own: the vm or another node.
    Node,
    /// The node that the other end, a pod, runs on.
    OwnNode,
    OtherNode,
}

/// Everything that is asked of each pair.
#[rustfmt::skip]
pub(super) const SERVICES: [Service; 11] = [
    Tcp(20880), Tcp(8000), Tcp(8080), Tcp(8088), Tcp(8090), Tcp(8091), Tcp(9100), Tcp(3306), Udp(9125), Udp(5140), Ping,
];

enum Passes {
    All,
    Nothing,
    Only(&'static [Service]),
}

use Passes::{All, Nothing, Only};

/// From, to, what passes, and the rule that says so.
#[rustfmt::skip]
const TABLE: &[(Party, Party, Passes, &str)] = &[
    (Payments, Payments, All, "one partition"),
    (Payments, Web, Nothing, "payments has no egress rule to web"),
    (Payments, Default, Nothing, "payments has no egress rule to default, open as that is"),
    (Payments, Vm, Only(&[Udp(5140)]), "payments egress syslog-to-legacy; legacy has no policy"),
    (Payments, OwnNode, Nothing, "payments has no egress rule to nodes"),
    (Payments, OtherNode, Nothing, "payments has no egress rule to nodes"),
    // web egress to-payments: TCP 8000-8091, UDP 9125, ICMP. payments ingress calls-from-web: TCP 8000-8090, UDP 9125,
    // ICMP; no-debug-port denies 8088.
    (Web, Payments, Only(&[Tcp(8000), Tcp(8080), Tcp(8090), Udp(9125), Ping]), "to-payments and calls-from-web"),
    (Web, Web, All, "one partition"),
    (Web, Default, Nothing, "web has no egress rule to default"),
    (Web, Vm, Only(&[Tcp(3306)]), "web egress database"),
    (Web, OwnNode, Nothing, "web has no egress rule to nodes"),
    (Web, OtherNode, Nothing, "web has no egress rule to nodes"),
    (Default, Payments, Nothing, "payments admits nobody of default"),
    (Default, Web, Only(&[Tcp(8080)]), "web ingress pages"),
    (Default, Default, All, "one partition, and open"),
    (Default, Vm, All, "default is open"),
    (Default, OwnNode, All, "default is open"),
    (Default, OtherNode, All, "default is open"),
    (Vm, Payments, Only(&[Tcp(20880)]), "payments ingress dubbo-from-legacy"),
    (Vm, Web, Only(&[Tcp(8080)]), "web ingress pages"),
    (Vm, Default, All, "default is open"),
    (Vm, Node, All, "nodes have no policy"),
    (OwnNode, Payments, All, "a node reaches its own pods"),
    (OwnNode, Web, All, "a node reaches its own pods"),
    (OwnNode, Default, All, "a node reaches its own pods"),
    (OtherNode, Payments, Only(&[Tcp(9100)]), "payments ingress metrics-by-nodes"),
    (OtherNode, Web, Nothing, "web admits no nodes"),
    (OtherNode, Default, All, "default is open"),
    (Node, Vm, All, "nodes have no policy"),
    (Node, Node, All, "nodes have no policy"),
];

/// What the table says of a cell, and why.
pub(super) fn expected(lab: &Lab, cell: &Cell) -> Result<(bool, &'static str)> {
    let (from, to) = (party(lab, cell.from, cell.to), party(lab, cell.to, cell.from));
    let Some((_, _, passes, why)) = TABLE.iter().find(|(f, t, ..)| *f == from && *t == to) else {
        return unmet(format!("the table says nothing of {from:?} → {to:?}"));
    };
    let allowed = match passes {
        All => true,
        Nothing => false,
        Only(services) => services.contains(&cell.service),
    };
    Ok((allowed, why))
}

/// Sites are the pods, then the vm, then the nodes (`Lab::sites`).
fn party(lab: &Lab, site: usize, other: usize) -> Party {
    let pods = lab.pods.len();
    if let Some(pod) = lab.pods.get(site) {
        return match pod.namespace.as_str() {
            "payments" => Payments,
            "web" => Web,
            _ => Default,
        };
    }
    if site == pods {
        return Vm;
    }
    match lab.pods.get(other) {
        None => Node,
        Some(pod) if pods + 1 + pod.node == site => OwnNode,
        Some(_) => OtherNode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_one_thing_of_each_pair() {
        for (n, (from, to, ..)) in TABLE.iter().enumerate() {
            assert!(
                !TABLE[..n].iter().any(|(f, t, ..)| f == from && t == to),
                "{from:?} → {to:?} stands twice"
            );
        }
    }

    #[test]
    fn every_service_of_the_table_is_asked() {
        for (from, to, passes, _) in TABLE {
            if let Only(services) = passes {
                assert!(services.iter().all(|s| SERVICES.contains(s)), "{from:?} → {to:?}");
            }
        }
    }
}
