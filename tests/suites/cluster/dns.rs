//! Cluster DNS by CoreDNS, and a cache of it on each node: pods ask as they do everywhere, by the resolv.conf that kubelets give them,
//! and call what they are told.

use crate::{
    calls::Party,
    reach::PODS,
    services::{CALLS, port, service, wait_answers},
    site::{PORT, Pod, Site},
};
use bulkhead_lab::{
    Error, Result,
    cluster::{DNS, NODE_DNS, SOON},
    unmet, until,
};
use serde_json::json;
use std::{collections::BTreeSet, net::SocketAddr};

/// Of an isolated partition.
const CELLAR: [Pod; 2] = [
    Pod { namespace: "cellar", name: "cellar1", node: "node1", host: false, role: "cellar" },
    Pod { namespace: "cellar", name: "cellar2", node: "node2", host: false, role: "cellar" },
];
const SERVICE: u16 = 80;
/// Where DNS answers, and where its servers say that they are ready.
const ASKED: u16 = 53;
const READY: u16 = 8181;
/// Services of another namespace by their whole names: busybox looks for a name with a dot as it stands.
const DB: &str = "db.shop.svc.cluster.local";
const LATE: &str = "late.shop.svc.cluster.local";
/// What the resolv.conf of a pod names.
const OWN: &str = "";

type Addresses = BTreeSet<String>;

/// Of both families; none where nobody answers.
fn resolve(site: &Site, from: &Pod, name: &str, server: &str) -> Result<Addresses> {
    let ask = format!(
        "for t in a aaaa; do /bin/busybox nslookup -timeout=2 -retry=1 -type=$t {name} {server} 2>&1; done; true"
    );
    let said = site.cluster.exec(&["-n", from.namespace, from.name], &["/bin/busybox", "sh", "-c", &ask])?;
    let lines: Vec<&str> = said.lines().collect();
    // The server has an address, too, but no name.
    let named = lines.windows(2).filter(|pair| pair[0].starts_with("Name:"));
    Ok(named.filter_map(|pair| pair[1].strip_prefix("Address:")).map(|a| a.trim().to_string()).collect())
}

fn wait_resolved(site: &Site, from: &Pod, name: &str, server: &str, expected: &Addresses) -> Result<()> {
    let at = if server == OWN { "its server" } else { server };
    until(&format!("{} asks {at} for {name} and is told {expected:?}", from.name), SOON, || {
        let told = resolve(site, from, name, server)?;
        if told == *expected { Ok(Some(())) } else { unmet(format!("told {told:?}")) }
    })
}

fn wait_refused(site: &Site, from: &Pod, server: &str) -> Result<()> {
    wait_resolved(site, from, DB, server, &Addresses::new())
}

fn cluster_addresses(site: &Site, name: &str) -> Result<Addresses> {
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let told = site.cluster.kubectl(&["get", "service", "-n", "shop", name, "-o", path])?;
    Ok(told.split(' ').map(String::from).collect())
}

fn pod_addresses(site: &Site, pods: &[&Pod]) -> Result<Addresses> {
    let all = pods.iter().map(|pod| site.addresses(pod)).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().flatten().collect())
}

/// Calls each of these addresses; all are answered by these pods, and see the caller as himself.
fn calls(site: &Site, from: &Pod, to: &Addresses, port: u16, expected: &[&str]) -> Result<()> {
    let own = site.addresses(from)?;
    let what = format!("{} calls {to:?} at {port}, answered by {expected:?}", from.name);
    // Of a service's two backends both answer, sooner or later; where nobody does it takes seconds to see.
    let many = if expected == ["-"] { 1 } else { CALLS };
    let all: Vec<_> = to.iter().flat_map(|a| vec![(a.as_str(), port); many]).collect();
    wait_answers(&what, expected, |a| a.name == "-" || own.contains(&a.seen), || site.ask(from, &all))
}

pub fn cluster(site: &mut Site) -> Result<()> {
    site.cluster.install_dns()?;
    let both = "ipFamilyPolicy: RequireDualStack";
    site.cluster.control.apply(
        &[
            service("db", "role: db", &format!("{both}, {}", port(""))),
            service("headless", "role: db", &format!("{both}, clusterIP: None, {}", port(""))),
        ]
        .concat(),
    )?;
    let [app1, app2, db1, db2] = &PODS;
    let (given, own) = (cluster_addresses(site, "db")?, pod_addresses(site, &[db1, db2])?);
    for from in [app1, app2] {
        wait_resolved(site, from, "db", OWN, &given)?;
        wait_resolved(site, from, "headless", OWN, &own)?;
        for server in DNS {
            wait_resolved(site, from, DB, server, &given)?;
        }
        calls(site, from, &given, SERVICE, &["db1", "db2"])?;
        calls(site, from, &own, PORT, &["db1", "db2"])?;
    }
    Ok(())
}

fn partition(name: &str, id: u16, ranges: &str, more: &str) -> String {
    format!(
        "---\napiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: {name}}}\n\
         spec: {{policyID: {id}, podCIDRs: [{ranges}], {more}}}\n"
    )
}

fn cellar(more: &str) -> String {
    let members = format!("namespaces: [cellar], {more}");
    partition("cellar", 145, "10.67.112.0/20, \"fd00:66:0:9::/64\"", &members)
}

/// Who answers cluster DNS itself.
fn servers(site: &Site) -> Result<Vec<SocketAddr>> {
    let path = "jsonpath={.items[*].status.podIPs[*].ip}";
    let told =
        site.cluster.kubectl(&["get", "pod", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", path])?;
    let parse = |a: &str| a.parse().map_err(|_| Error::Unmet(format!("no address: {a}")));
    told.split(' ').map(|a| Ok(SocketAddr::new(parse(a)?, ASKED))).collect()
}

/// It comes to be so that every server is reached where DNS answers, or is not; nowhere else it is.
fn wait_servers(site: &Site, from: &Pod, reached: bool) -> Result<()> {
    let from = Party::of_pod(site, from)?;
    for server in servers(site)? {
        until(&format!("{} reaches {server} and nothing else there: {reached}", from.name), SOON, || {
            let both = [from.reaches(server)?, from.reaches(SocketAddr::new(server.ip(), READY))?];
            if both == [reached, false] { Ok(Some(())) } else { unmet(format!("{both:?}")) }
        })?;
    }
    Ok(())
}

/// Goes on from the case before.
pub fn isolated(site: &mut Site) -> Result<()> {
    let apply = |objects: &str| site.cluster.control.apply(objects);
    apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: cellar}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: peers, namespace: cellar}}\n\
         spec: {{clusterIP: None, ipFamilyPolicy: RequireDualStack, selector: {{role: cellar}}, {}}}\n{}",
        port(""),
        cellar("")
    ))?;
    site.create(&CELLAR)?;
    let [first, second] = &CELLAR;
    let (db, peers) = (cluster_addresses(site, "db")?, pod_addresses(site, &[first, second])?);
    for from in &CELLAR {
        wait_resolved(site, from, "peers", OWN, &peers)?;
        calls(site, from, &peers, PORT, &["cellar1", "cellar2"])?;
        // What it is told of others it may not call.
        wait_resolved(site, from, DB, OWN, &db)?;
        calls(site, from, &db, SERVICE, &["-"])?;
        wait_servers(site, from, true)?;
    }
    apply(&cellar(&format!(
        "egress: [{{name: shop, to: [{{partition: default}}], ports: [{{protocol: TCP, port: {PORT}}}]}}]"
    )))?;
    for from in &CELLAR {
        calls(site, from, &db, SERVICE, &["db1", "db2"])?;
    }
    apply(&cellar("allowClusterDNS: false"))?;
    for from in &CELLAR {
        for server in DNS {
            wait_refused(site, from, server)?;
        }
        wait_servers(site, from, false)?;
        calls(site, from, &peers, PORT, &["cellar1", "cellar2"])?;
    }
    apply(&cellar(""))?;
    for from in &CELLAR {
        wait_resolved(site, from, DB, OWN, &db)?;
    }
    Ok(())
}

/// As the user guide says it: a cache's address is added to `clusterDNS` of the daemons' configuration.
fn admit_caches(site: &Site) -> Result<()> {
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments);
    let path = r"jsonpath={.data.bulkheadd\.yaml}";
    let before = kubectl(&["get", "configmap", "-n", "bulkhead", "bulkhead", "-o", path])?;
    let with = before.replace("clusterDNS: [", &format!("clusterDNS: [{NODE_DNS}, "));
    if with == before {
        return unmet(format!("the configuration names no DNS: {before}"));
    }
    let patch = json!({"data": {"bulkheadd.yaml": with}}).to_string();
    kubectl(&["patch", "configmap", "-n", "bulkhead", "bulkhead", "--type=merge", "-p", &patch])?;
    kubectl(&["rollout", "restart", "-n", "bulkhead", "ds/bulkheadd"])?;
    site.cluster.rolled_out("bulkhead", "ds/bulkheadd")
}

/// Goes on from the case before.
pub fn cached(site: &mut Site) -> Result<()> {
    let apply = |objects: &str| site.cluster.control.apply(objects);
    site.cluster.install_node_dns()?;
    let [app1, app2, ..] = &PODS;
    let db = cluster_addresses(site, "db")?;
    for from in [app1, app2] {
        wait_resolved(site, from, DB, NODE_DNS, &db)?;
    }
    for from in &CELLAR {
        wait_refused(site, from, NODE_DNS)?;
    }
    admit_caches(site)?;
    for from in &CELLAR {
        wait_resolved(site, from, DB, NODE_DNS, &db)?;
    }
    apply(&cellar("allowClusterDNS: false"))?;
    for from in &CELLAR {
        wait_refused(site, from, NODE_DNS)?;
    }
    // The servers in an isolated partition of their own, which caches on nodes ask all the same. What is new is in no cache.
    let api = "namespaces: [kube-system], egress: [{name: api, to: [{controlPlane: {}}]}]";
    let servers = partition("servers", 146, "10.67.128.0/20, \"fd00:66:0:a::/64\"", api);
    apply(&[cellar(""), servers, service("late", "role: db", &port(""))].concat())?;
    let late = cluster_addresses(site, "late")?;
    for from in [&CELLAR[0], &CELLAR[1], app1, app2] {
        wait_servers(site, from, true)?;
        wait_resolved(site, from, LATE, NODE_DNS, &late)?;
        wait_resolved(site, from, LATE, OWN, &late)?;
    }
    let kubectl = |arguments: &[&str]| site.cluster.kubectl(arguments).map(drop);
    kubectl(&["delete", "service", "-n", "shop", "db", "headless", "late"])?;
    kubectl(&["delete", "namespace", "cellar", "--timeout=60s"])?;
    kubectl(&["delete", "partition", "cellar", "servers"])?;
    site.cluster.remove_dns()
}
