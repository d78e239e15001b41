//! From flannel to Bulkhead, a node at a time, by the commands of `docs/install.md` as they stand there.

use crate::site::{Answer, PORT, Site, answers, asking, specification};
use bulkhead_lab::{
    Result,
    cluster::{
        SOON, deploy,
        flannel::{APP, RANGE, range_of},
    },
    enter::WORK,
    link::run,
    programs, unmet, until,
};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const GUIDE: &str = include_str!("../../../docs/install.md");
const NODES: [&str; 2] = ["node1", "node2"];
/// What the guide promises to be gone from a node.
const FILES: [&str; 5] = [
    "/etc/cni/net.d/10-flannel.conflist",
    "/opt/cni/bin/flannel",
    "/var/lib/cni/flannel",
    "/var/lib/cni/networks/cbr0",
    "/run/flannel",
];

/// The shell's blocks below this heading.
pub fn commands(heading: &str) -> Vec<&'static str> {
    blocks(heading, "sh")
}

pub fn blocks(heading: &str, language: &str) -> Vec<&'static str> {
    let below = GUIDE.split_once(&format!("\n{heading}\n")).map_or("", |(_, below)| below);
    let section = below.split("\n##").next().unwrap_or(below);
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

/// A user's terminal: where the manifests are, with `kubectl` and `helm` at hand.
pub struct Terminal {
    pub dir: PathBuf,
}

impl Terminal {
    pub fn open(name: &str) -> Result<Self> {
        let dir = Path::new(WORK).join(name);
        run(Command::new("mkdir").arg("-p").arg(&dir))?;
        run(Command::new("cp").arg("-r").arg(deploy()).arg(&dir))?;
        Ok(Self { dir })
    }

    /// Types this; `$NODE` is the node that it is about.
    pub fn run(&self, site: &Site, node: &str, script: &str) -> Result<()> {
        let tools = programs::find("kubectl")?.parent().map(Path::to_path_buf).unwrap_or_default();
        let path = format!("{}:{}", tools.display(), env::var("PATH").unwrap_or_default());
        let mut shell = site.cluster.control.netns.command("bash");
        shell.args(["-euxo", "pipefail", "-c", script]).current_dir(&self.dir);
        shell.envs([("PATH", path.as_str()), ("NODE", node)]).env("HOME", &self.dir);
        site.cluster.or_logs(run(shell.env("KUBECONFIG", site.cluster.control.admin()))).map(drop)
    }
}

/// A pod in each node, which no drain takes away, and two of a Deployment.
fn pods() -> String {
    let template = |name: &str| {
        format!(
            "  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n{}",
            specification(&format!("{name}.$NODE"), "      ")
        )
    };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: moved}}\n---\n\
         apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: every, namespace: moved}}\nspec:\n{}---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: front, namespace: moved}}\nspec:\n  replicas: 2\n{}",
        template("every"),
        template("front")
    )
}

/// One who calls.
enum Caller {
    /// By its name; it is in the namespace `moved`.
    Pod(String),
    Node(usize),
}

impl Caller {
    /// Who answers each of these.
    fn ask(&self, site: &Site, to: &[(&str, u16)]) -> Result<Vec<Answer>> {
        match self {
            Self::Pod(name) => {
                let command = ["/bin/busybox", "sh", "-c", &asking(to)];
                site.cluster.exec(&["-n", "moved", name], &command).map(|said| answers(&said))
            }
            Self::Node(n) => {
                let said = site.cluster.machines[*n].run("/bin/busybox", &["sh", "-c", &asking(to)]);
                said.map(|said| answers(&said))
            }
        }
    }

    /// It comes to be so that this one answers, who sees the caller so; `-`: nobody does.
    fn wait(&self, site: &Site, what: &str, to: (&str, u16), name: &str, seen: Option<&str>) -> Result<()> {
        until(what, SOON, || {
            let answer = self.ask(site, &[to])?.pop();
            let held = |a: &Answer| a.name == name && seen.is_none_or(|seen| a.seen == seen);
            if answer.as_ref().is_some_and(held) { Ok(Some(())) } else { unmet(format!("{answer:?}")) }
        })
    }

    fn wait_unanswered(&self, site: &Site, what: &str, to: (&str, u16)) -> Result<()> {
        self.wait(site, what, to, "-", None)
    }
}

/// The pods that run, of this app, on this node: their names and addresses.
fn running(site: &Site, app: &str, node: &str) -> Result<Vec<(String, String)>> {
    let template = "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{.status.podIP}}\n{{end}}{{end}}";
    let (app, of_node) =
        (format!("app={app}"), format!("--field-selector=spec.nodeName={node},status.phase=Running"));
    let told = site.cluster.kubectl(&["get", "pods", "-n", "moved", "-l", &app, &of_node, "-o", template])?;
    Ok(told.lines().filter_map(|l| l.split_once(' ')).map(|(n, a)| (n.into(), a.into())).collect())
}

/// The DaemonSet's, with an address that begins so.
fn every(site: &Site, node: &str, range: &str) -> Result<(Caller, String)> {
    until(&format!("the pod of {node} has an address of {range}"), SOON, || {
        match running(site, "every", node)?.pop() {
            Some((name, address)) if address.starts_with(range) => Ok(Some((Caller::Pod(name), address))),
            other => unmet(format!("{other:?}")),
        }
    })
}

fn rolled_out(site: &Site, workloads: &[&str]) -> Result<()> {
    for workload in workloads {
        let status = ["rollout", "status", "-n", "moved", workload, "--timeout=90s"];
        site.cluster.or_logs(site.cluster.kubectl(&status))?;
    }
    Ok(())
}

pub fn from_flannel(site: &mut Site) -> Result<()> {
    let terminal = Terminal::open("migration")?;
    let steps = commands("### From flannel");
    let [begin, drain, clean, renew, end] = steps[..] else {
        return unmet(format!("the guide has other steps: {steps:?}"));
    };
    site.cluster.install_flannel(&terminal.dir)?;
    site.cluster.control.apply(&pods())?;
    rolled_out(site, &["ds/every", "deploy/front"])?;
    let [(one, _), (_, two)] = [every(site, NODES[0], "10.244.1.")?, every(site, NODES[1], "10.244.2.")?];
    one.wait(site, "flannel's pods reach each other", (&two, PORT), "every.node2", None)?;

    terminal.run(site, "", begin)?;
    let daemons =
        site.cluster.kubectl(&["get", "pods", "-n", "bulkhead", "-l", "app=bulkheadd", "-o", "name"])?;
    if !daemons.is_empty() {
        return unmet(format!("on nodes without the label: {daemons}"));
    }
    site.cluster.peer()?;
    for (n, node) in NODES.into_iter().enumerate().rev() {
        terminal.run(site, node, drain)?;
        // What is typed on the node.
        run(site.cluster.machines[n].command("bash").args(["-euxo", "pipefail", "-c", clean]))?;
        terminal.run(site, node, renew)?;
        rolled_out(site, &["ds/every", "deploy/front"])?;
        if n == 1 {
            halfway(site)?;
            unavailable(site, &terminal, node)?;
        }
    }
    terminal.run(site, "", end)?;
    site.cluster.router.ip(&format!("route delete {} via {}", range_of(0), site.cluster.machines[0].v4))?;
    moved(site)
}

fn sealed(rules: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {{name: former-pods}}\nspec: {{cidrs: [{RANGE}]}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: moved}}\n\
         spec: {{policyID: 171, namespaces: [moved], podCIDRs: [10.67.48.0/20]{rules}}}\n"
    )
}

/// Node2 is moved, and node1 is not: what the guide says of them, with packets.
fn halfway(site: &Site) -> Result<()> {
    let (old, old_address) = every(site, NODES[0], "10.244.1.")?;
    let (new, new_address) = every(site, NODES[1], "10.64.")?;
    let (to_old, to_new) = ((old_address.as_str(), PORT), (new_address.as_str(), PORT));
    let [node1, node2] = [Caller::Node(0), Caller::Node(1)];
    let node1_address = site.cluster.machines[0].v4.to_string();
    old.wait(site, "an old pod reaches a new one, as its node", to_new, "every.node2", Some(&node1_address))?;
    node1.wait(site, "an old node reaches a new pod", to_new, "every.node2", Some(&node1_address))?;
    new.wait_unanswered(site, "a new pod does not reach an old one without a route", to_old)?;
    node2.wait_unanswered(site, "nor does its node", to_old)?;

    let mut services = String::new();
    for ((caller, name), address) in
        [(&old, "old"), (&new, "new")].into_iter().zip(["10.96.71.1", "10.96.71.2"])
    {
        if let Caller::Pod(pod) = caller {
            site.cluster.kubectl(&["label", "pod", "-n", "moved", pod, &format!("at={name}")])?;
        }
        services += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: moved}}\n\
             spec: {{clusterIP: {address}, selector: {{at: {name}}}, ports: [{{port: 80, targetPort: {PORT}}}]}}\n"
        );
    }
    site.cluster.control.apply(&services)?;
    let [of_old, of_new] = [("10.96.71.1", 80), ("10.96.71.2", 80)];
    old.wait(site, "an old pod calls a service of an old one", of_old, "every.node1", None)?;
    old.wait(site, "an old pod calls a service of a new one", of_new, "every.node2", None)?;
    new.wait(site, "a new pod calls a service of a new one", of_new, "every.node2", None)?;
    new.wait_unanswered(site, "a new pod calls a service of an old one", of_old)?;

    site.cluster.router.ip(&format!("route add {} via {node1_address}", range_of(0)))?;
    new.wait(site, "a new pod reaches an old one by a route", to_old, "every.node1", Some(&new_address))?;
    node2.wait(site, "a new node reaches an old pod by it", to_old, "every.node1", None)?;
    new.wait(site, "a new pod calls a service of an old one by it", of_old, "every.node1", None)?;

    // The running new pod is in a partition from now on.
    site.cluster.control.apply(&sealed(""))?;
    old.wait_unanswered(site, "a partition lets no old pod in", to_new)?;
    new.wait_unanswered(site, "a partition lets none of its pods out to old ones", to_old)?;
    let rules = ", ingress: [{name: former-pods, from: [{networkGroup: former-pods}, {nodes: {}}]}], egress: [{name: former-pods, to: [{networkGroup: former-pods}]}]";
    site.cluster.control.apply(&sealed(rules))?;
    old.wait(site, "an old pod is let in as its node", to_new, "every.node2", Some(&node1_address))?;
    new.wait(
        site,
        "an old pod is reached as one of the former range",
        to_old,
        "every.node1",
        Some(&new_address),
    )?;
    site.cluster.kubectl(&["delete", "partition/moved", "networkgroup/former-pods"]).map(drop)
}

/// As Calico leaves a node that it ends on.
fn unavailable(site: &Site, terminal: &Terminal, node: &str) -> Result<()> {
    let condition = r#"{"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "CalicoIsDown"}]}}"#;
    site.cluster.kubectl(&[
        "patch",
        "node",
        node,
        "--subresource=status",
        "--type=strategic",
        "-p",
        condition,
    ])?;
    let tainted = |expected: bool| {
        until(&format!("{node} has no network to the scheduler: {expected}"), SOON, || {
            let taints =
                site.cluster.kubectl(&["get", "node", node, "-o", "jsonpath={.spec.taints[*].key}"])?;
            let is = taints.contains("node.kubernetes.io/network-unavailable");
            if is == expected { Ok(Some(())) } else { unmet(taints) }
        })
    };
    tainted(true)?;
    for step in commands("### From Calico") {
        terminal.run(site, node, step)?;
    }
    tainted(false)
}

/// Everybody is Bulkhead's, and nothing of flannel is left.
fn moved(site: &Site) -> Result<()> {
    for (machine, node) in site.cluster.machines.iter().zip(NODES) {
        let left = machine.run(
            "bash",
            &["-c", &format!("ls -d {} /var/lib/cni/results/cbr0-* 2>/dev/null || true", FILES.join(" "))],
        )?;
        if !left.is_empty() {
            return unmet(format!("files left on {node}: {left}"));
        }
        let links = machine.run("ip", &["-o", "link", "show"])?;
        let (rules, routes) =
            (machine.run("bash", &["-c", "iptables-save; ip6tables-save"])?, machine.run("ip", &["route"])?);
        if links.contains("flannel")
            || links.contains("cni0")
            || rules.contains("FLANNEL")
            || routes.contains("10.244.")
        {
            return unmet(format!("left on {node}: {links}\n{rules}\n{routes}"));
        }
    }
    let flannel = site.cluster.kubectl(&["get", "pods", "-A", "-l", APP, "-o", "name"])?;
    let addresses =
        site.cluster.kubectl(&["get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}"])?;
    if !flannel.is_empty() || addresses.contains("10.244.") {
        return unmet(format!("{flannel} {addresses}"));
    }
    let mut all = Vec::new();
    for node in NODES {
        let (caller, address) = every(site, node, "10.64.")?;
        all.push((caller, address, format!("every.{node}")));
    }
    for (from, own, _) in &all {
        for (_, to, name) in &all {
            from.wait(site, "moved pods reach each other as themselves", (to, PORT), name, Some(own))?;
        }
    }
    let [(one, ..), (_, two, _)] = &all[..] else { return unmet("a pod in each node") };
    let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: moved}\n\
                spec: {podSelector: {matchLabels: {app: every}}, ingress: [{from: [{podSelector: {matchLabels: {app: front}}}]}]}\n";
    site.cluster.control.apply(deny)?;
    one.wait_unanswered(site, "a network policy holds for moved pods", (two, PORT))?;
    let front =
        NODES.iter().map(|node| running(site, "front", node)).collect::<Result<Vec<_>>>()?.concat().pop();
    let Some((front, _)) = front else { return unmet("a front runs") };
    Caller::Pod(front).wait(site, "and lets in whom it names", (two, PORT), "every.node2", None)?;
    site.cluster.kubectl(&["delete", "namespace", "moved", "--timeout=90s"]).map(drop)
}
