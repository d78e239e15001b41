//! NetworkPolicy and ClusterNetworkPolicy over live pods: what `diff` says beforehand is what then happens.

use super::{CALL, DEADLINE, FILE, LOST, eventually, node, now, pods};
use bulkhead_api::messages::{DiffRequest, FileText, PolicyDiff};
use bulkhead_lab::{Lab, Result, unmet, until, wait::until_true};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

pub const POLICY: &str = "policy.yaml";
/// Only pods called `front` reach payments, on one port.
pub const NETWORK_POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: payments}
spec:
  podSelector: {}
  ingress:
  - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: front}}}]
    ports: [{port: 8080}]
";
const CLUSTER: &str = "admin.yaml";
const CLUSTER_POLICY: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: stop}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: payments}}}
  ingress:
  - {action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: web}}}]}
";
pub const LABELS: &str = "labels.yaml";

pub fn labelled(app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: front-0, namespace: web, labels: {{app: {app}}}}}\n"
    )
}

/// A connection from web/front-0 to payments/db-0, which lives as long as its data arrives.
pub struct Live {
    caller: TcpStream,
    called: TcpStream,
}

impl Live {
    pub fn open(lab: &Lab) -> Result<Self> {
        let (front, db) = pods(lab)?;
        let address = SocketAddr::new(db.v4.into(), LOST);
        let listener = db.netns.run(|| Ok(TcpListener::bind(address)?))?;
        let caller = front.netns.run(|| Ok(TcpStream::connect_timeout(&address, CALL)?))?;
        let (called, _) = listener.accept()?;
        called.set_read_timeout(Some(CALL))?;
        Ok(Self { caller, called })
    }

    pub fn is_alive(&mut self) -> bool {
        self.caller.write_all(b"x").is_ok() && self.called.read_exact(&mut [0]).is_ok()
    }
}

/// One end after the other: the entry is closed once it has seen both, and two processors at once may lose one.
impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.caller.shutdown(Shutdown::Write);
        while matches!(self.called.read(&mut [0; 64]), Ok(1..)) {}
    }
}

pub fn diff(lab: &Lab, file: &str, text: &str) -> Result<PolicyDiff> {
    let files = vec![FileText { name: file.into(), text: text.into() }];
    node(lab).post("/v1/policy/diff", &DiffRequest { files, delete: Vec::new(), prune: false })
}

/// The diff, once those of the connections before that are closing have closed: one is live, and it would cut it.
fn cuts_one(lab: &Lab, file: &str, text: &str) -> Result<PolicyDiff> {
    until("the diff cuts one connection", DEADLINE, || match diff(lab, file, text)? {
        told if told.cut_connections == 1 => Ok(Some(told)),
        told => unmet(format!("{told:?}")),
    })
}

/// Whether the diff has a line that turns web/front-0's calls of payments/db-0.
fn turns(lab: &Lab, diff: &PolicyDiff, allows: bool) -> Result<bool> {
    let (front, db) = pods(lab)?;
    let is = |c: &&bulkhead_api::messages::PolicyChange| {
        let e = c.example;
        c.allows == allows && e.from == front.v4 && e.to == db.v4 && e.protocol == 6
    };
    Ok(diff.changes.iter().any(|c| is(&c)))
}

pub fn a_network_policy_cuts_what_the_diff_says(lab: &mut Lab) -> Result<()> {
    let mut live = Live::open(lab)?;
    let told = cuts_one(lab, POLICY, NETWORK_POLICY)?;
    if told.changed != ["+NetworkPolicy/payments/db"]
        || told.changes.iter().any(|c| c.allows)
        || told.changes.iter().map(|c| c.cut_connections).sum::<usize>() != 1
    {
        return unmet(format!("{told:?}"));
    }
    now(lab, LOST, true)?;
    if !live.is_alive() {
        return unmet("the diff cut the connection");
    }
    lab.objects.write(POLICY, NETWORK_POLICY)?;
    eventually(lab, LOST, false)?;
    match live.is_alive() {
        true => unmet("the connection goes on"),
        false => Ok(()),
    }
}

/// `established: Keep` shields from the partition tier, and from no other: the diff says so, and so it happens.
pub fn a_kept_connection_is_cut_by_another_tier_alone(lab: &mut Lab) -> Result<()> {
    const CALLS: &str = "    - name: calls-from-web\n";
    let original = lab.objects.read(FILE)?;
    let keeping = original.replacen(CALLS, &format!("{CALLS}      established: Keep\n"), 1);
    let without = keeping.replacen("port: 8000,", "port: 8085,", 1);
    if keeping == original || without == keeping {
        return unmet(format!("{FILE} is not what it was"));
    }
    lab.objects.write(FILE, &keeping)?;
    let mut live = Live::open(lab)?;
    // Until the rule is in force connections are not kept.
    until_true("a connection is kept", DEADLINE, || {
        live = Live::open(lab)?;
        let told = diff(lab, FILE, &without)?;
        Ok(turns(lab, &told, false)? && told.cut_connections == 0)
    })?;
    lab.objects.write(FILE, &without)?;
    eventually(lab, LOST, false)?;
    if !live.is_alive() {
        return unmet("the diff told of no cut, and the connection is gone");
    }
    cuts_one(lab, CLUSTER, CLUSTER_POLICY)?;
    lab.objects.write(CLUSTER, CLUSTER_POLICY)?;
    until_true("the connection is cut", DEADLINE, || Ok(!live.is_alive()))?;
    lab.objects.remove(CLUSTER)?;
    lab.objects.write(FILE, &original)?;
    eventually(lab, LOST, true)
}

pub fn a_relabelled_pod_is_allowed_denied_and_allowed_again(lab: &mut Lab) -> Result<()> {
    for (app, allowed) in [("front", true), ("other", false), ("front", true)] {
        let told = diff(lab, LABELS, &labelled(app))?;
        if !turns(lab, &told, allowed)? {
            return unmet(format!("{app}: {told:?}"));
        }
        now(lab, LOST, !allowed)?;
        lab.objects.write(LABELS, &labelled(app))?;
        eventually(lab, LOST, allowed)?;
    }
    Ok(())
}

pub fn an_admin_policy_stands_over_a_network_policy(lab: &mut Lab) -> Result<()> {
    let mut live = Live::open(lab)?;
    let told = cuts_one(lab, CLUSTER, CLUSTER_POLICY)?;
    if !turns(lab, &told, false)? {
        return unmet(format!("{told:?}"));
    }
    lab.objects.write(CLUSTER, CLUSTER_POLICY)?;
    eventually(lab, LOST, false)?;
    if live.is_alive() {
        return unmet("the connection goes on");
    }
    for file in [CLUSTER, POLICY, LABELS] {
        lab.objects.remove(file)?;
    }
    until_true("without policies it reaches again", DEADLINE, || super::reaches(lab, LOST))
}
