//! Before and after a change, as an operator sees it: the real daemon, the command line, live pods.

#[path = "change/counters.rs"]
mod counters;
#[path = "change/cuts.rs"]
mod cuts;
#[path = "change/explained.rs"]
mod explained;
#[path = "change/policies.rs"]
mod policies;

use bulkhead_api::messages::{DiffRequest, FileText, GenerationInfo, PolicyChange, PolicyDiff, Status};
use bulkhead_lab::{Lab, Node, Pod, Result, enter, unmet, wait::until_true};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const FILE: &str = "payments.yaml";
const BEFORE: &str = "{port: 8000, endPort: 8090}";
const AFTER: &str = "{port: 8081, endPort: 8091}";
const OTHER: &str = "{port: 8000, endPort: 8091}";
/// Allowed before the edit, and not after it.
const LOST: u16 = 8080;
/// Allowed by the edit made while the source is held.
const LATER: u16 = 8091;
const DEADLINE: Duration = Duration::from_secs(10);
/// An answer from a pod of the same machine takes no longer.
const CALL: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    // Each trial finds the lab as the one before left it.
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(None)))).exit();
    }
    let _inside = enter()?;
    let mut lab = Lab::start()?;
    for n in 0..lab.pods.len() {
        let node = lab.pods[n].node;
        lab.pods[n].add(&lab.nodes[node])?;
    }
    let lab = Arc::new(Mutex::new(Some(lab)));
    let conclusion = libtest_mimic::run(&arguments, trials(&lab));
    let lab = lab.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (true, Some(lab)) = (conclusion.has_failed(), &lab) {
        eprintln!("{}", lab.logs(30));
    }
    // Daemons and router end before the process does.
    drop(lab);
    conclusion.exit()
}

type Shared = Arc<Mutex<Option<Lab>>>;
type Run = fn(&mut Lab) -> Result<()>;

fn trials(lab: &Shared) -> Vec<Trial> {
    let all: [(&str, Run); 21] = [
        ("a rule counts what passed under it", counters::rules_count_what_passed),
        ("rules never hit are listed", counters::rules_never_hit_are_listed),
        (
            "a refusal counts at its rule, and the counters outlive the daemon",
            counters::a_refusal_counts_and_all_outlives_the_daemon,
        ),
        (
            "a diff names the flows, the rules and the live connections, and changes nothing",
            a_diff_changes_nothing,
        ),
        ("a diff of a refused change is refused by field", a_diff_is_refused),
        ("a rollback brings former objects back under a new number", a_rollback_brings_back),
        ("while held, an edit in the source is not in force", an_edit_while_held_waits),
        ("a hold outlives the daemon", a_hold_outlives_the_daemon),
        ("a release brings the source into force", a_release_brings_the_source),
        (
            "a kept connection is cut by another tier alone, as the diff told",
            policies::a_kept_connection_is_cut_by_another_tier_alone,
        ),
        (
            "a NetworkPolicy cuts the live connection that the diff told of",
            policies::a_network_policy_cuts_what_the_diff_says,
        ),
        (
            "a relabelled pod is allowed, denied and allowed again, as the diff told",
            policies::a_relabelled_pod_is_allowed_denied_and_allowed_again,
        ),
        (
            "an admin ClusterNetworkPolicy stands over a NetworkPolicy, as the diff told",
            policies::an_admin_policy_stands_over_a_network_policy,
        ),
        (
            "a connection that is cut already is not cut by the next change",
            cuts::what_is_cut_already_is_not_counted_again,
        ),
        (
            "a masqueraded connection is cut as its initiator's, as the diff told",
            cuts::a_masqueraded_connection_is_its_initiators,
        ),
        (
            "a change that the tables cannot hold is refused by the diff in the same words",
            cuts::what_the_tables_cannot_hold_is_refused_by_both,
        ),
        (
            "a change that the tables cannot hold leaves no number, and pods are followed all the same",
            cuts::what_is_refused_leaves_no_trace_and_pods_are_followed,
        ),
        (
            "a ClusterNetworkPolicy with what is not supported is refused by field, and the rest is in force",
            cuts::an_unsupported_cluster_policy_is_refused_by_field_and_the_rest_comes_into_force,
        ),
        ("explain has network groups at either end", explained::groups_at_either_end),
        (
            "explain knows that a node reaches its own pods, and which those are",
            explained::a_node_and_its_own_pods_elsewhere,
        ),
        ("explain tells a policy's rule with its line", explained::a_policys_rule_with_its_line),
    ];
    all.into_iter()
        .map(|(name, run)| {
            let lab = lab.clone();
            Trial::test(name, move || match &mut *lab.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(lab) => run(lab).map_err(Failed::from),
                None => Err("the lab did not start".into()),
            })
        })
        .collect()
}

fn a_diff_changes_nothing(lab: &mut Lab) -> Result<()> {
    let generation = status(node(lab))?.generation;
    let (front, db) = pods(lab)?;
    let address = SocketAddr::new(db.v4.into(), LOST);
    let listener = db.netns.run(|| Ok(TcpListener::bind(address)?))?;
    let live = front.netns.run(|| Ok(TcpStream::connect_timeout(&address, CALL)?))?;
    let accepted = listener.accept()?;
    let text = edited(&lab.objects.read(FILE)?, AFTER)?;
    let diff: PolicyDiff = node(lab).post("/v1/policy/diff", &request(text))?;
    drop((live, accepted, listener));
    let line =
        |c: &PolicyChange| (c.allows, c.from.clone(), c.to.clone(), c.ports.clone(), c.cut_connections);
    let end = |name: &str| vec![format!("partition {name}")];
    let (web, payments) = (end("web"), end("payments"));
    let expected = [
        (false, web.clone(), payments.clone(), "8000-8080".to_string(), 1),
        (true, web, payments, "8091".to_string(), 0),
    ];
    let found: Vec<_> = diff.changes.iter().map(line).collect();
    if found != expected || diff.cut_connections != 1 || diff.changed != ["~Partition/payments"] {
        return unmet(format!("{diff:?}"));
    }
    match status(node(lab))?.generation {
        same if same == generation => now(lab, LOST, true),
        other => unmet(format!("generation {generation} became {other}")),
    }
}

fn a_diff_is_refused(lab: &mut Lab) -> Result<()> {
    let text = edited(&lab.objects.read(FILE)?, "{port: 8090, endPort: 8000}")?;
    match node(lab).post::<_, PolicyDiff>("/v1/policy/diff", &request(text)) {
        Ok(diff) => unmet(format!("{diff:?}")),
        Err(e) if e.to_string().contains("ports[0].endPort") => Ok(()),
        Err(e) => Err(e),
    }
}

fn request(text: String) -> DiffRequest {
    DiffRequest { files: vec![FileText { name: FILE.into(), text }], delete: Vec::new(), prune: false }
}

fn a_rollback_brings_back(lab: &mut Lab) -> Result<()> {
    let original = lab.objects.read(FILE)?;
    eventually(lab, LOST, true)?;
    lab.objects.write(FILE, &edited(&original, AFTER)?)?;
    eventually(lab, LOST, false)?;
    let before = status(node(lab))?.generation;
    let said = node(lab).cli(&["policy", "rollback"])?;
    if !said.contains("the source is held") {
        return unmet(format!("rollback said `{said}`"));
    }
    now(lab, LOST, true)?;
    let list: Vec<GenerationInfo> = node(lab).get("/v1/policy/generations")?;
    match list.as_slice() {
        [now, then, ..]
            if now.rollback_of.is_some() && now.generation > before && then.generation == before =>
        {
            Ok(())
        }
        list => unmet(format!("generations are {list:?}")),
    }
}

fn an_edit_while_held_waits(lab: &mut Lab) -> Result<()> {
    let generation = status(node(lab))?.generation;
    let text = lab.objects.read(FILE)?;
    lab.objects.write(FILE, &edited(&text, OTHER)?)?;
    // The other node follows its source: when it has, ours has read the file too.
    until_true("the other node follows the edit", DEADLINE, || {
        let list: Vec<GenerationInfo> = lab.nodes[1 - ours(lab)].get("/v1/policy/generations")?;
        Ok(list.iter().filter(|g| g.changed == ["~Partition/payments"]).count() >= 2)
    })?;
    now(lab, LATER, false)?;
    let status = status(node(lab))?;
    if status.generation != generation || status.held.is_none() {
        return unmet(format!("generation {generation} became {status:?}"));
    }
    Ok(())
}

fn a_hold_outlives_the_daemon(lab: &mut Lab) -> Result<()> {
    let n = ours(lab);
    lab.nodes[n].kill_daemon()?;
    lab.nodes[n].start_daemon()?;
    lab.nodes[n].wait_ready()?;
    if status(node(lab))?.held.is_none() {
        return unmet("the new daemon follows the source");
    }
    now(lab, LATER, false)?;
    now(lab, LOST, true)
}

fn a_release_brings_the_source(lab: &mut Lab) -> Result<()> {
    node(lab).cli(&["policy", "release"])?;
    now(lab, LATER, true)?;
    match node(lab).cli(&["policy", "release"]) {
        Ok(said) => unmet(format!("a second release said `{said}`")),
        Err(e) if e.to_string().contains("not held") => Ok(()),
        Err(e) => Err(e),
    }
}

/// The file with another set of ports for web's calls.
fn edited(text: &str, ports: &str) -> Result<String> {
    let from = [BEFORE, AFTER].into_iter().find(|p| text.contains(*p));
    match from {
        Some(from) => Ok(text.replacen(from, ports, 1)),
        None => unmet(format!("{FILE} says neither `{BEFORE}` nor `{AFTER}`")),
    }
}

fn pods(lab: &Lab) -> Result<(&Pod, &Pod)> {
    Ok((lab.pod("web/front-0")?, lab.pod("payments/db-0")?))
}

/// The node of the called pod, whose ingress decides.
fn ours(lab: &Lab) -> usize {
    lab.pod("payments/db-0").map_or(0, |p| p.node)
}

fn node(lab: &Lab) -> &Node {
    &lab.nodes[ours(lab)]
}

fn status(node: &Node) -> Result<Status> {
    node.get("/v1/status")
}

fn reaches(lab: &Lab, port: u16) -> Result<bool> {
    let (front, db) = pods(lab)?;
    let address = SocketAddr::new(db.v4.into(), port);
    let _listener = db.netns.run(|| Ok(TcpListener::bind(address)?))?;
    front.netns.run(|| Ok(TcpStream::connect_timeout(&address, CALL).is_ok()))
}

fn now(lab: &Lab, port: u16, expected: bool) -> Result<()> {
    match reaches(lab, port)? {
        reached if reached == expected => Ok(()),
        reached => unmet(format!("port {port}: reached {reached}, expected {expected}")),
    }
}

fn eventually(lab: &Lab, port: u16, expected: bool) -> Result<()> {
    until_true(&format!("port {port} answers: {expected}"), DEADLINE, || Ok(reaches(lab, port)? == expected))
}
