//! The API server is away while life on the node goes on, and watches that go on while others do not: what one tells may be older
//! than what another does.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Error, Pod, Result, unmet, until};

pub const CASES: &[(&str, Case)] = &[
    ("while the API server is away pods that are known come and go, and no other", away),
    ("a pod that is known before its namespace is let in nowhere, and wired by nobody", namespaces_late),
    ("pods are who they were last known to be while their own watch is late", pods_late),
];

fn pod(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n---\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n")
}

fn wired(site: &Site, pod: &mut Pod) -> Result<()> {
    until(&format!("{} is wired", pod.reference()), SOON, || pod.add(&site.node).map(|_| Some(())))
}

fn refused(site: &Site, pod: &mut Pod) -> Result<()> {
    let expected = format!("{} is not known yet", pod.reference());
    match pod.add(&site.node) {
        Err(Error::Command { stderr, .. }) if stderr.contains(&expected) => Ok(()),
        other => unmet(format!("a pod that is not known: {other:?}")),
    }
}

fn removed(site: &Site, namespaces: &[&str]) -> Result<()> {
    for namespace in namespaces {
        let all = ["-n", namespace, "delete", "networkpolicy,pod", "--all", "--force", "--grace-period=0"];
        site.control.kubectl(&all)?;
    }
    Ok(())
}

fn away(site: &mut Site) -> Result<()> {
    let pods = [pod("dock", "front", "role: front"), pod("dock", "crane", "role: crane")].concat();
    site.control.apply(&(namespace("dock", "") + &pods))?;
    site.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: crane, namespace: dock}\n\
         spec:\n  podSelector: {matchLabels: {role: crane}}\n  ingress: [{from: [{podSelector: {matchLabels: {role: front}}}]}]\n",
    )?;
    let mut crane = Pod::create(0, "dock", "crane")?;
    wired(site, &mut crane)?;
    let address = crane.v4.to_string();
    site.wait_allowed("10.64.99.9", &address, 80, false)?;
    site.control.kill_apiserver()?;
    site.wait_told("cannot watch NetworkPolicy objects")?;
    let mut front = Pod::create(0, "dock", "front")?;
    // Its block was claimed by the pod before it.
    wired(site, &mut front)?;
    refused(site, &mut Pod::create(0, "dock", "stranger")?)?;
    crane.check(&site.node)?;
    for (from, allowed) in [(front.v4.to_string(), true), ("10.64.99.9".to_string(), false)] {
        let explanation = site.explain(&from, &address, 80)?;
        if explanation.allowed != allowed {
            return unmet(format!("without the API server: {explanation:?}"));
        }
    }
    front.del(&site.node)?;
    // What was started before knows its pods still.
    site.node.kill_daemon()?;
    site.node.start_daemon_unready()?;
    site.wait_told("waiting for the API server to list")?;
    crane.check(&site.node)?;
    site.control.compact()?;
    site.control.start_apiserver()?;
    wired(site, &mut front)?;
    site.wait_sound()?;
    site.wait_allowed("10.64.99.9", &address, 80, false)?;
    front.del(&site.node)?;
    crane.del(&site.node)?;
    removed(site, &["dock"])
}

/// The daemon's right to watch these; with a new API server, which knows no watch of before.
fn may_watch(site: &mut Site, resources: &str) -> Result<()> {
    let find =
        ["get", "clusterrole", "bulkheadd", "-o", "jsonpath={range .rules[*]}{.resources}{\"\\n\"}{end}"];
    let rules = site.control.kubectl(&find)?;
    let Some(index) = rules.lines().position(|rule| rule.contains("services") || rule.contains("\"pods\""))
    else {
        return unmet(format!("no rule is of services: {rules}"));
    };
    let patch =
        format!(r#"[{{"op": "replace", "path": "/rules/{index}/resources", "value": [{resources}]}}]"#);
    site.control.kubectl(&["patch", "clusterrole", "bulkheadd", "--type=json", "-p", &patch])?;
    site.control.kill_apiserver()?;
    site.control.start_apiserver()
}

const ALL: &str = r#""namespaces", "pods", "services""#;
const GUARDED: &str = "10.64.21.1";
const FRIEND: &str = "10.64.21.2";
const NEWCOMER: &str = "10.64.21.3";

/// A pod that friendly namespaces may call, one of those, and who lives there.
fn guarded(site: &Site) -> Result<()> {
    let objects = [
        namespace("guard", ""),
        pod("guard", "guarded", "role: guarded"),
        namespace("friends", "team: friends"),
        pod("friends", "friend", ""),
    ];
    site.control.apply(&objects.concat())?;
    site.has_address("guard", "guarded", GUARDED)?;
    site.has_address("friends", "friend", FRIEND)?;
    site.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: guarded, namespace: guard}\n\
         spec:\n  podSelector: {matchLabels: {role: guarded}}\n  \
         ingress: [{from: [{namespaceSelector: {matchLabels: {team: friends}}}]}]\n",
    )?;
    site.wait_allowed(NEWCOMER, GUARDED, 80, false)?;
    site.wait_allowed(FRIEND, GUARDED, 80, true)
}

fn namespaces_late(site: &mut Site) -> Result<()> {
    guarded(site)?;
    may_watch(site, r#""pods", "services""#)?;
    site.wait_told("cannot watch Namespace objects")?;
    site.control.apply(&[namespace("new", "team: friends"), pod("new", "newcomer", "")].concat())?;
    site.has_address("new", "newcomer", NEWCOMER)?;
    // Moved to another team, of which nobody tells; that its pod is there is told.
    site.control.kubectl(&["label", "namespace", "friends", "team=strangers", "--overwrite"])?;
    site.control.apply(&pod("guard", "marker", "role: marker"))?;
    let mut marker = Pod::create(0, "guard", "marker")?;
    wired(site, &mut marker)?;
    let explanation = site.explain(NEWCOMER, GUARDED, 80)?;
    if explanation.allowed {
        return unmet(format!("of a namespace that nobody has told of: {explanation:?}"));
    }
    refused(site, &mut Pod::create(0, "new", "newcomer")?)?;
    may_watch(site, ALL)?;
    site.wait_allowed(NEWCOMER, GUARDED, 80, true)?;
    site.wait_allowed(FRIEND, GUARDED, 80, false)?;
    let mut newcomer = Pod::create_as(0, "new", "newcomer", "newcomer-again")?;
    wired(site, &mut newcomer)?;
    newcomer.del(&site.node)?;
    marker.del(&site.node)?;
    removed(site, &["guard", "friends", "new"])
}

fn pods_late(site: &mut Site) -> Result<()> {
    guarded(site)?;
    // As the case before left it.
    site.control.kubectl(&["label", "namespace", "friends", "team=friends", "--overwrite"])?;
    site.wait_allowed(FRIEND, GUARDED, 80, true)?;
    may_watch(site, r#""namespaces", "services""#)?;
    site.wait_told("cannot watch Pod objects")?;
    site.control.apply(&pod("friends", "another", ""))?;
    site.has_address("friends", "another", NEWCOMER)?;
    site.control.kubectl(&["-n", "guard", "label", "pod", "guarded", "role=open", "--overwrite"])?;
    // The namespace is told of, and judged with the pods that are known: none of them is let in by what is not known.
    site.control.kubectl(&["label", "namespace", "friends", "team=strangers", "--overwrite"])?;
    site.wait_allowed(FRIEND, GUARDED, 80, false)?;
    let explanation = site.explain(NEWCOMER, GUARDED, 80)?;
    if explanation.allowed {
        return unmet(format!("a pod that nobody has told of: {explanation:?}"));
    }
    refused(site, &mut Pod::create(0, "friends", "another")?)?;
    may_watch(site, ALL)?;
    site.wait_allowed(FRIEND, GUARDED, 80, true)?;
    site.wait_sound()?;
    removed(site, &["guard", "friends"])
}
