//! The API server as source: what is applied comes into force, and what is in force stays when the API server goes.

use crate::site::{Case, SOON, Site};
use bulkhead_api::messages::{BgpPeerInfo, ExplainRequest, Explanation, FrontendInfo, Services};
use bulkhead_lab::{Result, unmet, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub const CASES: &[(&str, Case)] = &[
    ("what is applied comes into force, and what is deleted goes", applied),
    ("NetworkPolicy goes by the labels that the cluster's pods have now", by_label),
    ("a NetworkPolicy that names an SCTP port admits that and nothing else", sctp),
    ("services are those of the API server, with the backends of their slices", services),
    ("an object that is refused is told, and the others come into force", refused),
    ("a pause in which etcd was compacted and the API server killed is made up for", compacted),
    ("a daemon that starts while the API server is away leaves in force what is", away),
];

const RED: &str = "10.71.0.9";
const BLUE: &str = "10.72.0.9";

fn partition(name: &str, id: u16, cidr: &str, rules: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: {name}}}\n\
         spec: {{policyID: {id}, namespaces: [{name}], podCIDRs: [{cidr}], {rules}}}\n---\n"
    )
}

/// Red may call blue on this port.
fn red_calls_blue(port: u16) -> String {
    partition(
        "red",
        11,
        "10.71.0.0/16",
        &format!("egress: [{{to: [{{partition: blue}}], ports: [{{port: {port}}}]}}]"),
    ) + &partition("blue", 12, "10.72.0.0/16", "ingress: [{from: [{partition: red}]}]")
}

fn applied(site: &mut Site) -> Result<()> {
    site.control.apply(&red_calls_blue(8080))?;
    site.wait_allowed(RED, BLUE, 8080, true)?;
    site.wait_allowed(RED, BLUE, 8081, false)?;
    site.control.apply(&red_calls_blue(8081))?;
    site.wait_allowed(RED, BLUE, 8081, true)?;
    site.wait_allowed(RED, BLUE, 8080, false)?;
    site.control.kubectl(&["delete", "partition", "blue"])?;
    site.wait_told("Partition/blue was deleted and is named here")?;
    site.control.kubectl(&["delete", "partition", "red"])?;
    site.wait_sound()
}

fn by_label(site: &mut Site) -> Result<()> {
    let pod = |name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{nodeName: node2, containers: [{{name: c, image: none}}]}}\n---\n"
        )
    };
    site.control.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    site.control
        .apply(&(pod("db", "app: db") + &pod("front", "role: front") + &pod("other", "role: other")))?;
    for (name, address) in [("db", "10.64.5.1"), ("front", "10.64.5.2"), ("other", "10.64.5.3")] {
        let status = format!(
            r#"{{"status":{{"phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#
        );
        let patch =
            ["-n", "shop", "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
        site.control.kubectl(&patch)?;
    }
    site.control.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
         spec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: [{from: [{podSelector: {matchLabels: {role: front}}}]}]\n",
    )?;
    site.wait_allowed("10.64.5.3", "10.64.5.1", 5432, false)?;
    site.wait_allowed("10.64.5.2", "10.64.5.1", 5432, true)?;
    site.control.kubectl(&["-n", "shop", "label", "pod", "other", "role=front", "--overwrite"])?;
    site.wait_allowed("10.64.5.3", "10.64.5.1", 5432, true)?;
    site.control.kubectl(&[
        "-n",
        "shop",
        "delete",
        "networkpolicy,pod",
        "--all",
        "--force",
        "--grace-period=0",
    ])?;
    site.wait_allowed("10.64.5.9", "10.64.5.1", 5432, true)
}

fn sctp(site: &mut Site) -> Result<()> {
    site.control.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: signal, namespace: shop, labels: {app: signal}}\n\
         spec: {nodeName: node2, containers: [{name: c, image: none}]}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: signal, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: signal}}, ingress: [{ports: [{protocol: SCTP, port: 2905}]}]}\n",
    )?;
    let address = "10.64.5.7";
    let status =
        format!(r#"{{"status":{{"phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#);
    site.control.kubectl(&[
        "-n",
        "shop",
        "patch",
        "pod",
        "signal",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    site.wait_allowed("10.64.5.9", address, 2905, false)?;
    for (protocol, port, allowed) in [("sctp", 2905, true), ("sctp", 2906, false), ("udp", 2905, false)] {
        let request =
            ExplainRequest { from: "10.64.5.9".into(), to: address.into(), protocol: protocol.into(), port };
        let explanation: Explanation = site.node.post("/v1/explain", &request)?;
        if explanation.allowed != allowed {
            return unmet(format!("{protocol} {port}: {explanation:?}"));
        }
    }
    site.control
        .kubectl(&["-n", "shop", "delete", "networkpolicy,pod", "--all", "--force", "--grace-period=0"])
        .map(drop)
}

/// The cluster IP is what the API server has given the service.
fn services(site: &mut Site) -> Result<()> {
    let documents = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
         spec: {ports: [{name: http, port: 80}], sessionAffinity: ClientIP}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
         ports: [{name: http, protocol: TCP, port: 8080}]\nendpoints: [{addresses: [10.64.5.9], nodeName: node2}]\n";
    site.control.apply(documents)?;
    let given = site.control.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let web = |site: &Site| -> Result<Vec<FrontendInfo>> {
        let told: Services = site.node.get("/v1/services")?;
        Ok(told.frontends.into_iter().filter(|f| f.service == "default/web").collect())
    };
    until("the service has its backend", SOON, || {
        let found = web(site)?;
        let is_it = |f: &FrontendInfo| {
            f.address.is_some_and(|a| a.to_string() == given.trim())
                && (f.port, f.affinity_seconds) == (80, Some(10_800))
                && f.backends == ["10.64.5.9:8080".parse().unwrap()]
        };
        if found.iter().any(is_it) { Ok(Some(())) } else { unmet(format!("{found:?}")) }
    })?;
    site.control.kubectl(&["delete", "service/web", "endpointslice/web-1"])?;
    until("the service is gone", SOON, || Ok(web(site)?.is_empty().then_some(())))
}

fn refused(site: &mut Site) -> Result<()> {
    site.control.apply(&partition("red", 11, "10.71.0.0/16", ""))?;
    site.wait_allowed(RED, "10.71.1.1", 80, true)?;
    let green = partition("green", 13, "10.71.128.0/17", "") + &red_calls_blue(8080);
    site.control.apply(&green)?;
    site.wait_told(
        "Partition/green: spec.podCIDRs[0]: 10.71.128.0/17 overlaps 10.71.0.0/16 of Partition/red",
    )?;
    site.wait_allowed(RED, BLUE, 8080, true)?;
    site.control.kubectl(&["delete", "partition", "--all"])?;
    site.wait_sound()
}

/// The daemon sleeps meanwhile: a watch that goes on from where it was is not possible any more.
fn compacted(site: &mut Site) -> Result<()> {
    site.control.apply(&red_calls_blue(8080))?;
    site.wait_allowed(RED, BLUE, 8080, true)?;
    let Some(daemon) = site.node.daemon_pid().map(|pid| Pid::from_raw(pid.cast_signed())) else {
        return unmet("the daemon does not run");
    };
    kill(daemon, Signal::SIGSTOP)?;
    let changed = (|| {
        site.control.apply(&red_calls_blue(8081))?;
        site.control.kubectl(&["create", "namespace", "later"])?;
        site.control.kill_apiserver()?;
        site.control.compact()?;
        site.control.start_apiserver()
    })();
    kill(daemon, Signal::SIGCONT)?;
    changed?;
    site.wait_allowed(RED, BLUE, 8081, true)?;
    site.wait_allowed(RED, BLUE, 8080, false)?;
    site.wait_sound()
}

/// Goes on from the case before.
fn away(site: &mut Site) -> Result<()> {
    site.control.apply(&red_calls_blue(8080))?;
    site.wait_allowed(RED, BLUE, 8080, true)?;
    // Chosen by the node's labels, and left by its annotation.
    let node = site.node.name.clone();
    site.control.apply(PEER)?;
    for (rack, chosen) in [("rack=2", false), ("rack=1", true), ("rack-", false), ("rack=1", true)] {
        site.control.kubectl(&["label", "--overwrite", "node", &node, rack])?;
        wait_peers(site, usize::from(chosen))?;
    }
    site.control.kubectl(&["annotate", "node", &node, "bulkhead.dev/drain-routes=true"])?;
    until("the annotation drains", SOON, || Ok((!site.status()?.draining.is_empty()).then_some(())))?;
    site.control.kill_apiserver()?;
    site.wait_told("cannot watch Partition objects")?;
    let before = site.status()?.generation;
    site.node.kill_daemon()?;
    site.node.start_daemon_unready()?;
    site.wait_told("waiting for the API server to list")?;
    if site.status()?.generation != before {
        return unmet("another generation is in force, though nobody told of objects");
    }
    wait_peers(site, 1)?;
    if site.status()?.draining.is_empty() {
        return unmet("what the annotation drains is not drained any more");
    }
    if site.node.get::<serde_json::Value>("/v1/cni/status").is_ok() {
        return unmet("a pod would be wired under a policy that is not known");
    }
    site.control.start_apiserver()?;
    until("an ADD would work", SOON, || {
        site.node.get::<serde_json::Value>("/v1/cni/status").map(|_| Some(()))
    })?;
    site.wait_allowed(RED, BLUE, 8080, true)?;
    site.wait_sound()?;
    site.control.kubectl(&["delete", "partition,bgppeer,bgpconfiguration", "--all"])?;
    site.control.kubectl(&["annotate", "node", &node, "bulkhead.dev/drain-routes-"])?;
    site.wait_allowed(RED, BLUE, 9999, true)
}

const PEER: &str = "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {name: default}\n\
    spec: {asn: 65010, restartTimeSeconds: 1}\n---\n\
    apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {name: leaf}\n\
    spec: {peerAddress: 192.0.2.1, peerASN: 65020, nodeSelector: {matchLabels: {rack: '1'}}}\n";

fn wait_peers(site: &Site, count: usize) -> Result<()> {
    until(&format!("the node has {count} peers"), SOON, || {
        let peers: Vec<BgpPeerInfo> = site.node.get("/v1/bgp/peers")?;
        Ok((peers.len() == count && peers.iter().all(|peer| peer.name == "leaf")).then_some(()))
    })
}
