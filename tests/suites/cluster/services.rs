//! Services over pods of both nodes: those of pods translated at the socket, those of others by kube-proxy, which is in its
//! nftables mode on one node and in its iptables mode on the other.

use crate::{
    reach::{NODES, PODS},
    site::{Answer, PORT, Pod, Site},
};
use bulkhead_lab::{Result, cluster::SOON, unmet, until};
use std::collections::BTreeSet;

const SERVICE: u16 = 80;
const ANY_NODE: u16 = 30080;
const LOCAL: u16 = 30081;
/// So many calls meet each of two backends but once in a thousand million times.
pub const CALLS: usize = 30;
/// Where every second of them takes seconds, since nobody answers.
const FEW: usize = 10;

pub fn service(name: &str, selector: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{{selector}}}, {more}}}\n"
    )
}

pub fn port(more: &str) -> String {
    format!("ports: [{{port: {SERVICE}, targetPort: {PORT}{more}}}]")
}

/// The address of this service.
fn address(site: &Site, name: &str) -> Result<String> {
    site.cluster.kubectl(&["get", "service", "-n", "shop", name, "-o", "jsonpath={.spec.clusterIP}"])
}

/// It comes to be so that exactly these answer, each of them, in a number of calls, and see the caller as `seen`.
pub fn wait_answers(
    what: &str,
    expected: &[&str],
    seen: impl Fn(&Answer) -> bool,
    calls: impl Fn() -> Result<Vec<Answer>>,
) -> Result<()> {
    until(what, SOON, || {
        let answers = calls()?;
        let names: BTreeSet<_> = answers.iter().map(|a| a.name.as_str()).collect();
        if names == expected.iter().copied().collect() && answers.iter().all(&seen) {
            return Ok(Some(()));
        }
        unmet(format!("{answers:?}"))
    })
}

pub fn of_pods(site: &mut Site) -> Result<()> {
    let (plain, sticky) = (port(""), format!("sessionAffinity: ClientIP, {}", port("")));
    let any_node = format!("type: NodePort, {}", port(&format!(", nodePort: {ANY_NODE}")));
    let local =
        format!("type: NodePort, externalTrafficPolicy: Local, {}", port(&format!(", nodePort: {LOCAL}")));
    site.cluster.control.apply(
        &[
            service("db", "role: db", &plain),
            service("db-sticky", "role: db", &sticky),
            service("db-any", "role: db", &any_node),
            service("db-local", "name: db1", &local),
            service("hosts", "role: host", &plain),
            service("db2", "name: db2", &plain),
        ]
        .concat(),
    )?;
    let [app1, app2, db1, db2] = &PODS;
    let nodes: Vec<String> = site.cluster.machines.iter().map(|m| m.v4.to_string()).collect();
    let (db, hosts) = (address(site, "db")?, address(site, "hosts")?);
    for from in [app1, app2, db1] {
        let own = site.address(from)?;
        // Without NAT: translated at the socket, the packet is the pod's own.
        let many = |to: &str, port: u16| site.ask(from, &vec![(to, port); CALLS]);
        let as_itself = |a: &Answer| a.seen == own;
        let who = |what: &str| format!("{} calls {what}", from.name);
        wait_answers(&who("a cluster address"), &["db1", "db2"], as_itself, || many(&db, SERVICE))?;
        for node in &nodes {
            wait_answers(&who("a node port"), &["db1", "db2"], as_itself, || many(node, ANY_NODE))?;
        }
        wait_answers(&who("pods of the hosts' network"), &["host1", "host2"], as_itself, || {
            many(&hosts, SERVICE)
        })?;
    }
    let (sticky, own) = (address(site, "db-sticky")?, address(site, "db2")?);
    until("a client stays with its backend", SOON, || {
        let answers = site.ask(app1, &vec![(sticky.as_str(), SERVICE); CALLS])?;
        let names: BTreeSet<_> = answers.iter().map(|a| a.name.as_str()).collect();
        if names.len() == 1 && !names.contains("-") { Ok(Some(())) } else { unmet(format!("{answers:?}")) }
    })?;
    let of_db2 = site.address(db2)?;
    wait_answers(
        "a pod that is its service's only backend calls it",
        &["db2"],
        |a| a.seen == of_db2,
        || site.ask(db2, &[(own.as_str(), SERVICE)]),
    )
}

/// A service of both families has an address of each; headless ones and those of SCTP are left to DNS and to kube-proxy.
pub fn of_both_families(site: &mut Site) -> Result<()> {
    let signal = "ports: [{name: m3ua, protocol: SCTP, port: 2905}]";
    let services = [
        service("both", "role: db", &format!("ipFamilyPolicy: RequireDualStack, {}", port(""))),
        service("headless", "role: db", &format!("clusterIP: None, {}", port(""))),
        service("signal", "role: db", signal),
    ];
    site.cluster.control.apply(&services.concat())?;
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let told = kubectl(&["get", "service", "-n", "shop", "both", "-o", "jsonpath={.spec.clusterIPs[*]}"])?;
    let given: Vec<&str> = told.split(' ').collect();
    if given.len() != 2 {
        return unmet(format!("not an address of each family: {told}"));
    }
    let app1 = &PODS[0];
    for own in site.addresses(app1)? {
        let Some(address) = given.iter().find(|given| given.contains(':') == own.contains(':')) else {
            return unmet(format!("no address of the family of {own}: {told}"));
        };
        let calls = || site.ask(app1, &vec![(*address, SERVICE); CALLS]);
        wait_answers(&format!("a pod calls {address}"), &["db1", "db2"], |a| a.seen == own, calls)?;
    }
    headless(site)?;
    until("what is not translated at the socket is told", SOON, || {
        let told =
            kubectl(&["exec", "-n", "bulkhead", "ds/bulkheadd", "--", "/usr/bin/bulkhead", "services"])?;
        let line = |name: &str, words: &str| told.lines().any(|l| l.contains(name) && l.contains(words));
        let both =
            line("shop/headless", "headless: DNS answers") && line("shop/signal", "SCTP is not translated");
        if both { Ok(Some(())) } else { unmet(told) }
    })?;
    kubectl(&["delete", "service", "-n", "shop", "both", "headless", "signal"]).map(drop)
}

/// What DNS answers for a headless service is what its slices hold: pods' own addresses, called without any translation.
fn headless(site: &Site) -> Result<()> {
    let of_it = ["-l", "kubernetes.io/service-name=headless", "-o"];
    let named = until("its slices name its pods", SOON, || {
        let path = ["jsonpath={.items[*].endpoints[*].addresses[0]}"];
        let get = ["get", "endpointslice", "-n", "shop"];
        let told = site.cluster.kubectl(&[&get[..], &of_it, &path].concat())?;
        let all: Vec<String> = told.split_whitespace().map(String::from).collect();
        if all.len() == 2 { Ok(Some(all)) } else { unmet(told) }
    })?;
    for from in &PODS[..2] {
        let own = site.address(from)?;
        let calls = || site.ask(from, &named.iter().map(|a| (a.as_str(), PORT)).collect::<Vec<_>>());
        let what = format!("{} calls what slices name", from.name);
        wait_answers(&what, &["db1", "db2"], |a| a.seen == own, calls)?;
    }
    Ok(())
}

/// Goes on from the case before: who is no pod calls, and kube-proxy translates.
pub fn of_others(site: &mut Site) -> Result<()> {
    let nodes: Vec<String> = site.cluster.machines.iter().map(|m| m.v4.to_string()).collect();
    let db = address(site, "db")?;
    for host in &NODES {
        let what = format!("{} calls a cluster address", host.name);
        wait_answers(
            &what,
            &["db1", "db2"],
            |_| true,
            || site.ask(host, &vec![(db.as_str(), SERVICE); CALLS]),
        )?;
    }
    for node in &nodes {
        let calls = || site.ask_from_outside(&vec![(node.as_str(), ANY_NODE); CALLS]);
        wait_answers(&format!("a router calls a port of {node}"), &["db1", "db2"], |_| true, calls)?;
    }
    // With the policy Local the caller is seen as he is, and a node without a backend answers nothing.
    let router = ["172.30.1.1", "172.30.2.1"];
    let local = |node: &str, name: &str, seen: &str| {
        wait_answers(
            &format!("{name} answers a router at {node}"),
            &[name],
            |a| a.seen == seen,
            || site.ask_from_outside(&[(node, LOCAL)]),
        )
    };
    local(&nodes[0], "db1", router[0])?;
    local(&nodes[1], "-", "-")
}

/// A rule of the partition tier judges who is behind a service, whoever translates it.
pub fn judged(site: &mut Site) -> Result<()> {
    let [app1, _, db1, _] = &PODS;
    let db = address(site, "db")?;
    site.cluster.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {name: db2}}, ingress: [{from: [{podSelector: {matchLabels: {role: app}}}]}]}\n",
    )?;
    let ask = |from: &Pod| site.ask(from, &vec![(db.as_str(), SERVICE); FEW]);
    wait_answers("one of the backends lets it in", &["db1", "-"], |_| true, || ask(db1))?;
    wait_answers("both let it in", &["db1", "db2"], |_| true, || ask(app1))?;
    let node = site.cluster.machines[0].v4.to_string();
    let outside = || site.ask_from_outside(&vec![(node.as_str(), ANY_NODE); FEW]);
    wait_answers("from outside one of them is reached", &["db1", "-"], |_| true, outside)?;
    site.cluster.kubectl(&["delete", "networkpolicy", "-n", "shop", "db"]).map(drop)
}

/// Goes on from the case before: a service that comes while no kube-proxy runs is there for pods alone.
pub fn without_proxy(site: &mut Site) -> Result<()> {
    let [app1, app2, db1, _] = &PODS;
    for machine in &mut site.cluster.machines {
        machine.kill("kube-proxy")?;
    }
    site.cluster.control.apply(&service("late", "role: db", &port("")))?;
    let late = address(site, "late")?;
    for from in [app1, app2, db1] {
        let own = site.address(from)?;
        let calls = || site.ask(from, &vec![(late.as_str(), SERVICE); CALLS]);
        wait_answers(&format!("{} calls it", from.name), &["db1", "db2"], |a| a.seen == own, calls)?;
    }
    for host in &NODES {
        let answers = site.ask(host, &[(late.as_str(), SERVICE)])?;
        if answers[0].name != "-" {
            return unmet(format!("kube-proxy is there: {answers:?}"));
        }
    }
    for machine in &mut site.cluster.machines {
        machine.start_proxy(&site.cluster.control)?;
    }
    for host in &NODES {
        let calls = || site.ask(host, &vec![(late.as_str(), SERVICE); CALLS]);
        wait_answers(&format!("{} calls it", host.name), &["db1", "db2"], |_| true, calls)?;
    }
    let all = ["late", "db", "db-sticky", "db-any", "db-local", "hosts", "db2"];
    site.cluster.kubectl(&[&["delete", "service", "-n", "shop"][..], &all].concat()).map(drop)
}
