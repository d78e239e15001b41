//! `kill -9` while pods and policy change: what the next daemon puts in force is what a compile from scratch says.

use crate::{
    kernel::{self, is_as_from_scratch},
    support::*,
};
use bulkhead_api::messages::{RuleCountInfo, RulesRequest};
use bulkhead_lab::{Lab, Result, until};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

pub const CASES: &[Case] = &[
    (
        "killed while pods and policy change, the next daemon decides as a compile from scratch",
        killed_under_churn,
    ),
    ("killed after a change, the next daemon reads the numbers in the kernel as they were written", numbers),
    (
        "a map that is full leaves what is in force, is named, and the change follows once there is room",
        full_map,
    ),
];

/// Policies of all tiers, labels, groups and pods elsewhere, of which each number has its own.
fn change(n: u64) -> String {
    let (app, port, third) = (n % 3, 8000 + n % 5 * 40, n % 250);
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: churn-{app}, namespace: payments}}
spec:
  podSelector: {{}}
  ingress:
  - from: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: a{app}}}}}}}]
    ports: [{{port: {port}, endPort: {end}}}]
  - from: [{{ipBlock: {{cidr: 172.30.9.0/24, except: [172.30.9.{third}/32]}}}}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: churn}}
spec:
  tier: {tier}
  priority: {third}
  subject: {{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: web}}}}}}
  ingress:
  - {{action: {action}, from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: a{app}}}}}}}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: far-{app}, namespace: web, labels: {{app: a{label}}}}}
status: {{podIPs: [{{ip: 10.66.200.{third}}}, {{ip: 'fd00:66::c8:{third}'}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: front-0, namespace: web, labels: {{app: a{label}}}}}
---
apiVersion: bulkhead.dev/v1alpha1
kind: NetworkGroup
metadata: {{name: moving}}
spec: {{cidrs: [192.0.2.0/24, 10.200.{third}.0/24]}}
",
        end = port + 100,
        tier = if n.is_multiple_of(2) { "Admin" } else { "Baseline" },
        action = ["Accept", "Deny"][n as usize / 2 % 2],
        label = n / 2 % 4,
    )
}

fn killed_under_churn(lab: &mut Lab) -> Result<()> {
    const ROUNDS: u64 = 8;
    const CHANGES: u64 = 24;
    let pods = pods_of(lab, 0);
    let payments = lab.objects.read("payments.yaml")?;
    for round in 0..ROUNDS {
        let instant = Duration::from_micros(50_000 + round * 137_003 % 700_000);
        let pid = lab.nodes[0].daemon_pid().expect("it runs");
        let Lab { nodes, pods: all, objects, .. } = &mut *lab;
        let (node, objects) = (&nodes[0], &*objects);
        thread::scope(|scope| -> Result<()> {
            let payments = &payments;
            let writer = scope.spawn(move || {
                (round * CHANGES..(round + 1) * CHANGES).try_for_each(|n| {
                    let text = payments.replace("endPort: 8090", &format!("endPort: {}", 8090 + n % 9));
                    objects.write("payments.yaml", &text)?;
                    objects.write("churn.yaml", &change(n))?;
                    // As an editor or a controller paces itself: some are read one by one, some not.
                    thread::sleep(Duration::from_millis(n * 7 % 60));
                    Ok(())
                })
            });
            // What ADD and DEL say while the daemon is gone is another case's matter.
            for pod in all.iter_mut().filter(|p| p.node == 0) {
                scope.spawn(move || {
                    let _ = pod.add(node);
                    let _ = pod.del(node);
                    pod.add(node)
                });
            }
            thread::sleep(instant);
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            writer.join().expect("no panic")
        })?;
        lab.nodes[0].kill_daemon()?;
        lab.nodes[0].start_daemon()?;
        agrees(lab)?;
        // As a runtime does after a failure; every other round with half of them.
        for pod in &pods {
            del(lab, *pod)?;
        }
        for pod in pods.iter().skip(if round % 2 == 0 { 0 } else { pods.len() / 2 }) {
            add(lab, *pod)?;
        }
        agrees(lab)?;
    }
    Ok(())
}

/// A rule that was hit, and one that comes while no daemon runs and stands before it.
fn numbers(lab: &mut Lab) -> Result<()> {
    const PORT: u16 = 20880;
    let policy = |name: &str, from: &str| {
        let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {from}}}}}]}}]}}");
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: payments}}\nspec: {spec}\n"
        )
    };
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let hits = |lab: &Lab, name: &str| -> Result<Option<u64>> {
        let rules: Vec<RuleCountInfo> = lab.nodes[0].post("/v1/policy/rules", &RulesRequest::default())?;
        let named = rules
            .into_iter()
            .find(|r| r.rule.name.starts_with(&format!("NetworkPolicy/payments/{name} ingress")));
        Ok(named.map(|r| r.connections))
    };
    lab.objects.write("hit.yaml", &policy("m-hit", "172.30.9.0/24"))?;
    let to = SocketAddr::new(lab.pods[pod].v4.into(), PORT);
    let _listener = lab.pods[pod].netns.run(|| Ok(TcpListener::bind(to)?))?;
    let before = until("the rule lets the machine in", LATER, || {
        lab.vm.netns.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1))?))?;
        Ok(hits(lab, "m-hit")?.filter(|connections| *connections > 0))
    })?;
    lab.nodes[0].kill_daemon()?;
    lab.objects.write("new.yaml", &policy("a-new", "10.99.0.0/16"))?;
    lab.nodes[0].start_daemon()?;
    let new = until("the new rule is in force", SOON, || hits(lab, "a-new"))?;
    let after = hits(lab, "m-hit")?;
    require(
        (new, after) == (0, Some(before)),
        &format!("the new one has {new}, the one that was hit {after:?}"),
    )
}

fn agrees(lab: &Lab) -> Result<()> {
    until("the kernel says what a compile from scratch says", LATER, || is_as_from_scratch(lab, 0).map(Some))
}

fn full_map(lab: &mut Lab) -> Result<()> {
    const MAP: &str = "IDENTITY_EXACT";
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    lab.objects.write("churn.yaml", &change(0))?;
    agrees(lab)?;
    let generation = status(&lab.nodes[0])?.generation;
    let mut map = kernel::hash::<[u8; 16], [u32; 2]>(&lab.nodes[0], MAP)?;
    let strange = |n: u32| [[0xee; 12].as_slice(), &n.to_be_bytes()].concat().try_into().expect("sixteen");
    let full = (0..).position(|n| map.insert(strange(n), [0; 2], 0).is_err()).expect("an end") as u32;
    // Another address of a pod elsewhere that a policy picks, and other rules.
    lab.objects.write("churn.yaml", &change(9))?;
    until_refused(&lab.nodes[0], MAP)?;
    require(status(&lab.nodes[0])?.generation == generation, "another generation is in force")?;
    node_reaches(&lab.nodes[0], &lab.pods[pod])?;
    for n in 0..full {
        map.remove(&strange(n)).map_err(|e| bulkhead_lab::Error::Unmet(e.to_string()))?;
    }
    until_content(&lab.nodes[0])?;
    agrees(lab)
}
