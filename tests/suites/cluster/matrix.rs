//! The matrix of policies by label: pods of two namespaces on both nodes, both families, TCP and UDP, two ports, all at all.

use crate::{
    calls::{Call, Party, Protocol, wait_calls},
    site::{Pod, Site},
};
use bulkhead_lab::{
    Error, Result,
    cluster::{BUSYBOX, SOON},
    programs, unmet, until,
};
use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const PORTS: [u16; 2] = [8080, 9090];
const ASKED: [(Protocol, u16); 4] = [
    (Protocol::Tcp, PORTS[0]),
    (Protocol::Tcp, PORTS[1]),
    (Protocol::Udp, PORTS[0]),
    (Protocol::Udp, PORTS[1]),
];

const fn pod(namespace: &'static str, name: &'static str, node: &'static str, role: &'static str) -> Pod {
    Pod { namespace, name, node, host: false, role }
}

/// With the port of TCP that is named `web` there, not everywhere the same. The other one, of UDP, is named `feed`.
const PODS: [(Pod, u16); 5] = [
    (pod("east", "app-e1", "node1", "app"), 8080),
    (pod("east", "db-e1", "node1", "db"), 9090),
    (pod("east", "db-e2", "node2", "db"), 8080),
    (pod("west", "app-w2", "node2", "app"), 8080),
    (pod("west", "db-w1", "node1", "db"), 9090),
];

fn web(party: &Party) -> u16 {
    PODS.iter().find(|(pod, _)| pod.name == party.name).map_or(0, |(_, port)| *port)
}

fn other_than(web: u16) -> u16 {
    if web == PORTS[0] { PORTS[1] } else { PORTS[0] }
}

/// A rule's port without a protocol is TCP's.
fn is_tcp(call: &Call<'_>, port: u16) -> bool {
    (call.protocol, call.port) == (Protocol::Tcp, port)
}

fn is_udp(call: &Call<'_>, port: u16) -> bool {
    (call.protocol, call.port) == (Protocol::Udp, port)
}

fn manifest(pod: &Pod, web: u16, more: &str) -> String {
    let Pod { namespace, name, node, role, .. } = pod;
    let ([main, other], feed) = (PORTS, other_than(web));
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{role: {role}}}{more}}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  containers:\n  - name: main\n    \
         image: {BUSYBOX}\n    imagePullPolicy: Never\n    ports: [{{name: web, containerPort: {web}}}, {{name: feed, containerPort: {feed}, protocol: UDP}}]\n    \
         command: [/bin/busybox, sh, -c]\n    \
         args: ['b=/bin/busybox; $b mkdir /www; $b httpd -p {other} -h /www; exec $b httpd -f -p {main} -h /www']\n    \
         readinessProbe: {{tcpSocket: {{port: {main}}}, periodSeconds: 1}}\n"
    )
}

/// One policy takes the place of the other.
fn east(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: rule, namespace: east}}\nspec: {{{spec}}}\n"
    )
}

fn db(ingress: &str) -> String {
    east(&format!("podSelector: {{matchLabels: {{role: db}}}}, ingress: [{{{ingress}}}]"))
}

fn cluster_policy(tier: &str, subject: &str, ingress: &str) -> String {
    let name = tier.to_lowercase();
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: 1, subject: {subject}, ingress: [{ingress}]}}\n"
    )
}

/// These pods of this namespace, to a ClusterNetworkPolicy.
fn pods(namespace: &str, role: &str) -> String {
    let of = format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}");
    format!("{{pods: {{{of}, podSelector: {{matchLabels: {{role: {role}}}}}}}}}")
}

fn is(party: &Party, namespace: &str, role: &str) -> bool {
    (party.namespace, party.role) == (namespace, role)
}

fn to_db(call: &Call<'_>) -> bool {
    is(call.to, "east", "db")
}

struct Matrix<'a> {
    site: &'a Site,
    all: Vec<Party>,
}

impl Matrix<'_> {
    fn holds(&self, what: &str, policy: &str, expected: impl Fn(&Call<'_>) -> bool) -> Result<()> {
        if !policy.is_empty() {
            self.site.cluster.control.apply(policy)?;
        }
        wait_calls(what, &self.all, &ASKED, expected)
    }

    fn label(&mut self, name: &str, role: &'static str) -> Result<()> {
        let party = self.all.iter_mut().find(|p| p.name == name);
        let party = party.ok_or_else(|| Error::Unmet(format!("there is no {name}")))?;
        party.role = role;
        let role = format!("role={role}");
        self.site
            .cluster
            .kubectl(&["label", "--overwrite", "-n", party.namespace, "pod", name, &role])
            .map(drop)
    }

    fn namespace(&self, label: &str) -> Result<()> {
        self.site.cluster.kubectl(&["label", "namespace", "west", label]).map(drop)
    }

    fn address(&self, name: &str, family: usize) -> String {
        let found = self.all.iter().find(|p| p.name == name);
        found.map_or_else(String::new, |p| p.addresses[family].to_string())
    }
}

pub fn by_label(site: &mut Site) -> Result<()> {
    let upstream = programs::find("clusternetworkpolicies.yaml")?.display().to_string();
    site.cluster.kubectl(&["apply", "--server-side", "-f", &upstream])?;
    for namespace in ["east", "west"] {
        site.cluster.kubectl(&["create", "namespace", namespace])?;
    }
    let manifests = PODS.iter().map(|(pod, web)| manifest(pod, *web, ""));
    site.cluster.control.apply(&manifests.collect::<String>())?;
    for namespace in ["east", "west"] {
        let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "-n", namespace, "pod", "--all"];
        site.cluster.kubectl(&ready)?;
    }
    let mut all = PODS.iter().map(|(pod, _)| Party::of_pod(site, pod)).collect::<Result<Vec<_>>>()?;
    all.extend(Party::nodes(site)?);
    let mut matrix = Matrix { site, all };
    matrix.holds("no policy", "", |_| true)?;
    namespaced(&mut matrix)?;
    tiers(&matrix)
}

fn namespaced(matrix: &mut Matrix<'_>) -> Result<()> {
    let from_app = db("from: [{podSelector: {matchLabels: {role: app}}}]");
    let east_app = |c: &Call<'_>| !to_db(c) || is(c.from, "east", "app");
    matrix.holds("ingress from pods of the same namespace", &from_app, east_app)?;
    matrix.label("app-e1", "guest")?;
    matrix.holds("a pod of another label now", "", east_app)?;
    matrix.label("db-e2", "app")?;
    matrix.holds("a pod that is isolated no more, and let in", "", east_app)?;
    matrix.label("db-e2", "db")?;
    matrix.label("app-e1", "app")?;

    let front = "namespaceSelector: {matchLabels: {tier: front}}";
    matrix.holds(
        "ingress from namespaces that there are none of",
        &db(&format!("from: [{{{front}}}]")),
        |c| !to_db(c),
    )?;
    matrix.namespace("tier=front")?;
    matrix.holds("a namespace of another label now", "", |c| !to_db(c) || c.from.namespace == "west")?;
    let both = db(&format!("from: [{{{front}, podSelector: {{matchLabels: {{role: app}}}}}}]"));
    matrix.holds("pods of these namespaces", &both, |c| !to_db(c) || is(c.from, "west", "app"))?;
    let either = db(&format!("from: [{{{front}}}, {{podSelector: {{matchLabels: {{role: app}}}}}}]"));
    let one_of = |c: &Call<'_>| !to_db(c) || c.from.namespace == "west" || is(c.from, "east", "app");
    matrix.holds("one peer or the other", &either, one_of)?;

    // An address of each family is left out, of different pods.
    let (out4, out6) = (matrix.address("app-w2", 0), matrix.address("db-w1", 1));
    let block =
        |cidr: &str, except: &str| format!("{{ipBlock: {{cidr: \"{cidr}\", except: [\"{except}\"]}}}}");
    let [v4, v6] =
        [block("10.64.0.0/16", &format!("{out4}/32")), block("fd00:64::/48", &format!("{out6}/128"))];
    matrix.holds("blocks with an exception", &db(&format!("from: [{v4}, {v6}]")), |c| {
        !to_db(c) || (c.from.is_pod() && c.from.name != if c.v6 { "db-w1" } else { "app-w2" })
    })?;
    matrix.holds("a block of one family", &db(&format!("from: [{v4}]")), |c| {
        !to_db(c) || (c.from.is_pod() && c.from.name != "app-w2" && !c.v6)
    })?;

    protocols(matrix)?;

    let app = "podSelector: {matchLabels: {role: app}}, policyTypes: [Egress]";
    let from_app = |c: &Call<'_>| is(c.from, "east", "app");
    matrix.holds("no egress", &east(app), |c| !from_app(c))?;
    let egress = format!(
        "{app}, egress: [{{to: [{{{front}, podSelector: {{matchLabels: {{role: db}}}}}}], ports: [{{port: web}}]}}]"
    );
    let at_web = |c: &Call<'_>| !from_app(c) || (is(c.to, "west", "db") && is_tcp(c, web(c.to)));
    matrix.holds("egress to pods of a namespace, at a port of their own", &east(&egress), at_web)?;
    matrix.namespace("tier-")?;
    matrix.holds("egress to namespaces that there are none of any more", "", |c| !from_app(c))
}

/// Ports are of a protocol: who is let in by one is not by the other.
fn protocols(matrix: &Matrix<'_>) -> Result<()> {
    matrix.holds("a named port, of the pod's own", &db("ports: [{port: web}]"), |c| {
        !to_db(c) || is_tcp(c, web(c.to))
    })?;
    let feed = db("ports: [{protocol: UDP, port: feed}, {protocol: UDP, port: web}]");
    matrix.holds("a named port of UDP, and one that is of TCP", &feed, |c| {
        !to_db(c) || is_udp(c, other_than(web(c.to)))
    })?;
    let range = db("ports: [{port: 8000, endPort: 8999}]");
    matrix.holds("a range of ports", &range, |c| !to_db(c) || is_tcp(c, PORTS[0]))?;
    let range = db("ports: [{protocol: UDP, port: 9000, endPort: 9999}]");
    matrix.holds("a range of UDP's ports", &range, |c| !to_db(c) || is_udp(c, PORTS[1]))?;
    let both = db("ports: [{protocol: UDP}, {port: 9090}, {protocol: SCTP, port: 8080}]");
    matrix.holds("all of UDP, a port of TCP, and the other of SCTP", &both, |c| {
        !to_db(c) || c.protocol == Protocol::Udp || is_tcp(c, PORTS[1])
    })
}

/// The administrator's tiers around a NetworkPolicy.
fn tiers(matrix: &Matrix<'_>) -> Result<()> {
    let rule = |action: &str, from: &str, more: &str| format!("{{action: {action}, from: [{from}]{more}}}");
    let of_east_app = db("from: [{podSelector: {matchLabels: {role: app}}}]");
    let subject = pods("east", "db");
    let [east_app, west_app] = ["east", "west"].map(|namespace| pods(namespace, "app"));
    let admin = [
        rule("Accept", &west_app, ""),
        rule("Deny", &east_app, ", protocols: [{tcp: {destinationPort: {number: 9090}}}]"),
    ];
    let west = "{namespaces: {matchLabels: {kubernetes.io/metadata.name: west}}}";
    let from_east = rule("Deny", "{namespaces: {matchLabels: {kubernetes.io/metadata.name: east}}}", "");
    let baseline = cluster_policy("Baseline", west, &from_east);
    let objects = of_east_app + &cluster_policy("Admin", &subject, &admin.join(", ")) + &baseline;
    let to_west = |c: &Call<'_>| c.to.namespace == "west" && c.from.namespace == "east";
    matrix.holds("an admin tier that accepts and denies, and a baseline", &objects, |c| {
        if to_db(c) {
            is(c.from, "west", "app") || (is(c.from, "east", "app") && !is_tcp(c, PORTS[1]))
        } else {
            !to_west(c)
        }
    })?;
    let admin = [rule("Pass", &east_app, ""), rule("Deny", "{namespaces: {}}", "")];
    matrix.holds(
        "an admin tier that passes on",
        &cluster_policy("Admin", &subject, &admin.join(", ")),
        |c| if to_db(c) { is(c.from, "east", "app") } else { !to_west(c) },
    )?;
    let admin = [
        rule("Deny", &east_app, ", protocols: [{udp: {destinationPort: {number: 8080}}}]"),
        rule(
            "Accept",
            &west_app,
            ", protocols: [{udp: {destinationPort: {range: {start: 9000, end: 9999}}}}]",
        ),
    ];
    matrix.holds(
        "an admin tier that accepts and denies ports of UDP",
        &cluster_policy("Admin", &subject, &admin.join(", ")),
        |c| {
            if to_db(c) {
                (is(c.from, "west", "app") && is_udp(c, PORTS[1]))
                    || (is(c.from, "east", "app") && !is_udp(c, PORTS[0]))
            } else {
                !to_west(c)
            }
        },
    )?;
    let kubectl = |arguments: &[&str]| matrix.site.cluster.kubectl(arguments);
    kubectl(&["delete", "clusternetworkpolicy", "--all"])?;
    kubectl(&["delete", "networkpolicy", "-n", "east", "--all"])?;
    matrix.holds("no policy any more", "", |_| true)
}

/// A fixed address, so that callers are at it before its pod is.
const NEWCOMER: Pod = pod("newcomers", "newcomer", "node2", "db");
const ADDRESS: &str = "10.67.79.9";
/// A call of this kind is answered at once, and the next one meets what is the case then.
const OFTEN: Duration = Duration::from_millis(20);

/// A pod that comes while a policy selects it is judged right from its first packet: whoever may not reach it never does.
pub fn newcomer(site: &mut Site) -> Result<()> {
    let control = &site.cluster.control;
    control.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: newcomers}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: newcomers}}\n\
         spec: {{policyID: 43, namespaces: [newcomers], podCIDRs: [10.67.64.0/20], fixedCIDRs: [10.67.79.0/28], isolation: Open}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: IPReservation\nmetadata: {{name: newcomer, namespace: newcomers}}\n\
         spec: {{pod: newcomer, addresses: [{ADDRESS}]}}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: db, namespace: newcomers}}\n\
         spec: {{podSelector: {{matchLabels: {{role: db}}}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{role: app}}}}}}]}}]}}\n"
    ))?;
    let parties = PODS.iter().map(|(pod, _)| Party::of_pod(site, pod)).collect::<Result<Vec<_>>>()?;
    let at = SocketAddr::new(ADDRESS.parse().map_err(|_| Error::Unmet("no address".into()))?, PORTS[0]);
    let over = AtomicBool::new(false);
    // Each tries all the time, until those who may have reached it.
    let forbidden = |party: &Party| -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            if party.reaches_within(at, OFTEN)? {
                return unmet(format!("{} has reached the newcomer", party.name));
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let (may, may_not): (Vec<_>, Vec<_>) = parties.iter().partition(|p| p.role == "app");
        let forbidden = &forbidden;
        let forbidden: Vec<_> =
            may_not.into_iter().map(|party| scope.spawn(move || forbidden(party))).collect();
        let come = || -> Result<()> {
            control.apply(&manifest(
                &NEWCOMER,
                PORTS[0],
                &format!(", annotations: {{bulkhead.dev/ip: {ADDRESS}}}"),
            ))?;
            for party in &may {
                until(&format!("{} reaches the newcomer", party.name), SOON, || {
                    Ok(party.reaches(at)?.then_some(()))
                })?;
            }
            let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "-n", "newcomers", "pod/newcomer"];
            site.cluster.kubectl(&ready).map(drop)
        };
        let come = come();
        over.store(true, Ordering::Relaxed);
        let never = forbidden.into_iter().map(|f| f.join().unwrap_or_else(|_| unmet("a caller panicked")));
        come.and(never.collect::<Result<()>>())
    })?;
    site.cluster.kubectl(&["delete", "namespace", "newcomers", "east", "west", "--timeout=60s"])?;
    site.cluster.kubectl(&["delete", "partition", "newcomers"]).map(drop)
}
