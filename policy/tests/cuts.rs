//! Which live connections a change would cut: entries as the datapath makes them, asked by both tables.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

mod common;

use bulkhead_ebpf_abi::*;
use bulkhead_policy::{
    Compiled, Interner, Local, LocalPod, Objects, compile,
    diff::{Cut, Cuts, Tables},
};
use common::*;
use std::net::IpAddr;

const NODE_ADDRESS: &str = "192.168.0.1";
const FRONT: &str = "10.65.0.1";
const DB: &str = "10.66.0.1";
const PORT: u16 = 80;

/// web/front and pay/db on this node; `ingress`: what pay lets in, `fields`: of pay's spec besides.
fn site(ingress: &str, fields: &str) -> Objects {
    let mut objects = web_with("egress: [{to: [{partition: pay}]}]");
    let pay =
        format!("policyID: 2\nnamespaces: [pay]\npodCIDRs: [10.66.0.0/16]\ningress: {ingress}\n{fields}");
    add(&mut objects, "pay", &pay);
    add_pod(&mut objects, "web/front", FRONT, "labels: {app: front}");
    add_pod(&mut objects, "web/other", "10.65.0.2", "labels: {app: other}");
    add_pod(&mut objects, "pay/db", DB, "labels: {app: db}");
    objects
}

/// Both generations of this node's tables.
struct Change {
    objects: [Objects; 2],
    compiled: [Compiled; 2],
    pods: Vec<LocalPod>,
}

impl Change {
    fn of(before: Objects, after: Objects) -> Self {
        let pods: Vec<LocalPod> =
            ["web/front", "web/other", "pay/db"].iter().map(|key| local(&before, key)).collect();
        let mut interner = Interner::default();
        let old = compile(&before, &mut interner, &Local { pods: &pods, ..HERE }).unwrap();
        interner.switched();
        let local = Local { pods: &pods, former: Some(&old), ..HERE };
        let new = compile(&after, &mut interner, &local).unwrap();
        Self { objects: [before, after], compiled: [old, new], pods }
    }

    /// The initiator that would be cut off, if any.
    fn cut(&self, entry: (FlowKey, Flow)) -> Option<Cut> {
        let tables =
            |n: usize| Tables { compiled: &self.compiled[n], objects: &self.objects[n], local: &self.pods };
        let told = self.objects[0].pods.values().flat_map(|p| p.addresses.clone());
        Cuts::of(tables(0), tables(1), told).cut(&entry.0, &entry.1)
    }

    /// As whom the datapath marks what this pod sends.
    fn mark(&self, pod: usize) -> u16 {
        let placement = self.compiled[0].place(&self.objects[0], &self.pods[pod]).unwrap();
        let identity = self.compiled[0].pod_identity(&placement, self.pods[pod].addresses[0]);
        origin_of(identity) as u16
    }
}

/// A connection from the node's address or the pod's to the database, which both ends here or the called one admitted.
fn connection(from: &str, origin: u16, flags: u8) -> (FlowKey, Flow) {
    let ends = [(Addr::from_ip(ip(from)), 40_000), (Addr::from_ip(ip(DB)), PORT)];
    let low = ends[0] <= ends[1];
    let [(low_end, high_end)] = [if low { (ends[0], ends[1]) } else { (ends[1], ends[0]) }];
    let key = FlowKey {
        low: low_end.0,
        high: high_end.0,
        low_port: low_end.1,
        high_port: high_end.1,
        proto: PROTO_TCP,
        reserved: [0; 3],
    };
    let begun_low = if low { FLOW_INITIATOR_LOW } else { 0 };
    let generations = if from == FRONT { [7, 7] } else { [0, 7] };
    (key, Flow { generations, origin, flags: flags | begun_low, service_port: PORT, ..Flow::default() })
}

fn from(address: &str) -> Option<Cut> {
    let (from, to): (IpAddr, IpAddr) = (ip(address), ip(DB));
    Some(Cut { from, to, proto: PROTO_TCP, port: PORT })
}

const BY_WEB: &str = "[{from: [{partition: web}]}]";
const BY_NODES: &str = "[{from: [{nodes: {}}]}]";

#[test]
fn a_connection_that_the_change_refuses_is_cut_and_one_that_was_refused_before_is_cut_already() {
    let change = Change::of(site(BY_WEB, ""), site("[]", ""));
    assert_eq!(change.cut(connection(FRONT, 0, 0)), from(FRONT));
    assert_eq!(change.cut(connection(FRONT, 0, FLOW_CLOSED)), None);
    let again = Change::of(site("[]", ""), site(BY_NODES, ""));
    assert_eq!(again.cut(connection(FRONT, 0, 0)), None);
    // One end has cut it, and now the other one would.
    let mut lost = site(BY_WEB, "");
    add(&mut lost, "web", "{policyID: 1, namespaces: [web], podCIDRs: [10.65.0.0/16]}");
    let mut both = site("[]", "");
    add(&mut both, "web", "{policyID: 1, namespaces: [web], podCIDRs: [10.65.0.0/16]}");
    assert_eq!(Change::of(lost, both).cut(connection(FRONT, 0, 0)), None);
}

#[test]
fn each_end_that_has_admitted_a_connection_can_cut_it_and_no_other() {
    let mut shut = site(BY_WEB, "");
    add(&mut shut, "web", "{policyID: 1, namespaces: [web], podCIDRs: [10.65.0.0/16]}");
    let change = Change::of(site(BY_WEB, ""), shut);
    let by_both = connection(FRONT, 0, 0);
    assert_eq!(change.cut(by_both), from(FRONT), "the initiator's, though the other end allows it still");
    let by_ingress = Flow { generations: [0, 7], ..by_both.1 };
    assert_eq!(change.cut((by_both.0, by_ingress)), None);
}

#[test]
fn what_a_pod_sends_itself_is_nobodys_to_cut() {
    let change = Change::of(site("[]", "isolation: Open"), site("[]", ""));
    assert_eq!(change.cut(connection(NODE_ADDRESS, ORIGIN_ITSELF as u16, FLOW_UNASKED)), None);
    assert!(change.cut(connection(NODE_ADDRESS, change.mark(0), 0)).is_some());
}

#[test]
fn a_masqueraded_connection_is_judged_by_who_began_it_and_not_by_the_nodes_address() {
    let change = Change::of(site(BY_WEB, ""), site(BY_NODES, ""));
    let (front, other) = (change.mark(0), change.mark(1));
    assert_eq!(front, other, "no rule tells them apart");
    assert_eq!(change.cut(connection(NODE_ADDRESS, front, 0)), from(FRONT));
    let back = Change::of(site(BY_NODES, ""), site(BY_WEB, ""));
    assert_eq!(back.cut(connection(NODE_ADDRESS, back.mark(0), 0)), None, "it is cut already");
    let same = Change::of(site(BY_WEB, ""), site("[{from: [{partition: web}], ports: [{port: 80}]}]", ""));
    assert_eq!(same.cut(connection(NODE_ADDRESS, same.mark(0), 0)), None);
    // The node's own connections are nobody's to cut.
    assert_eq!(change.cut(connection(NODE_ADDRESS, 0, FLOW_UNASKED)), None);
}

#[test]
fn an_initiator_behind_the_nodes_address_who_becomes_somebody_else_begins_anew() {
    let keeping = "[{from: [{partition: web}], established: Keep}]";
    let isolated = |picks: &str| {
        let mut objects = site(BY_WEB, "");
        let peer = format!("{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: {picks}}}}}}}");
        add_network_policy(
            &mut objects,
            "pay/only",
            &format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}"),
        );
        objects
    };
    // One of those who were known by the mark is refused then, and nobody can say which it is.
    let change = Change::of(site(BY_WEB, ""), isolated("front"));
    assert_eq!(change.cut(connection(NODE_ADDRESS, change.mark(0), 0)), from("10.65.0.2"));
    // Keep shields a connection whose initiator is the same to the rules, and no other.
    let kept = |after| {
        let change = Change::of(site(keeping, ""), after);
        change.cut(connection(NODE_ADDRESS, change.mark(0), FLOW_KEEP_INGRESS))
    };
    assert_eq!(kept(site("[]", "")), None);
    let mut told_apart = site("[]", "");
    let peers = "[{podSelector: {matchLabels: {app: db}}, namespaceSelector: {}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}}]";
    add_network_policy(
        &mut told_apart,
        "pay/open",
        &format!("{{podSelector: {{}}, ingress: [{{from: {peers}}}]}}"),
    );
    assert_eq!(kept(told_apart), from(FRONT));
}

#[test]
fn whom_no_mark_can_name_stays_where_everything_is_open_and_nowhere_else() {
    let open = "isolation: Open";
    let unknown = connection(NODE_ADDRESS, ORIGIN_UNKNOWN as u16, 0);
    let change = Change::of(site("[]", open), site("[{}]", ""));
    assert_eq!(change.cut(unknown), from(NODE_ADDRESS));
    assert_eq!(Change::of(site("[]", open), site("[]", "isolation: Audit")).cut(unknown), None);
}

#[test]
fn keep_shields_from_the_partition_tier_and_audit_cuts_nothing() {
    let keeping = "[{from: [{partition: web}], established: Keep}]";
    let kept = connection(FRONT, 0, FLOW_KEEP_INGRESS);
    assert_eq!(Change::of(site(keeping, ""), site("[]", "")).cut(kept), None);
    assert_eq!(
        Change::of(site(BY_WEB, ""), site("[]", "isolation: Audit")).cut(connection(FRONT, 0, 0)),
        None
    );
    let mut denied = site("[]", "");
    add_network_policy(&mut denied, "pay/none", "{podSelector: {}}");
    assert_eq!(Change::of(site(keeping, ""), denied).cut(kept), from(FRONT));
}
