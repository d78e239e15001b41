//! What the cases share: one control plane, one node.

use bulkhead_api::messages::{ExplainRequest, Explanation, Status};
use bulkhead_lab::{
    Error, Netns, Node, Result,
    enter::WORK,
    kubernetes::{ControlPlane, Controllers, Identity},
    link::{End, veth},
    node::UPLINK,
    until,
};
use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

const DAEMON: &str = "bulkheadd";

pub type Case = fn(&mut Site) -> Result<()>;

/// What the daemon or the API server does by itself. A watch that was broken is begun anew after half a minute at most.
pub const SOON: Duration = Duration::from_secs(90);
/// A watch that goes on where it broke is taken for whole after a minute only.
const SOUND: Duration = Duration::from_secs(180);

/// The node as kubelet would register it, and the daemon's pod on it.
const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n---\n\
    apiVersion: v1\nkind: Pod\nmetadata: {name: bulkheadd-node1, namespace: bulkhead}\n\
    spec: {nodeName: node1, hostNetwork: true, serviceAccountName: bulkheadd, containers: [{name: c, image: none}]}\n";

/// The node's daemon goes before the control plane.
pub struct Site {
    _controller: Controllers,
    pub node: Node,
    pub control: ControlPlane,
}

impl Site {
    /// The API server is ready and knows our kinds, upstream's ClusterNetworkPolicy and the node, whose daemon is ready.
    pub fn start() -> Result<Self> {
        let (control, node) = (Netns::create("control")?, Netns::create("node1")?);
        veth(
            End { netns: &control, name: "n1", addresses: &["172.30.1.1/24", "fd00:30:1::1/64"] },
            End { netns: &node, name: UPLINK, addresses: &["172.30.1.2/24", "fd00:30:1::2/64"] },
        )?;
        let work = Path::new(WORK);
        let control = ControlPlane::start(control, [172, 30, 1, 1].into(), &work.join("control"))?;
        let v6 = Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 0, 2);
        install(&control)?;
        let kubeconfig = write_token(&control, "2h")?;
        let mut node = Node::create_in_cluster(node, [172, 30, 1, 2].into(), v6, work, &kubeconfig)?;
        node.start_daemon()?;
        Ok(Self { _controller: control.start_bulkhead_controller()?, node, control })
    }

    /// Of the daemon's service account, as a token in its pod on node1 has it.
    pub fn daemon_kubeconfig(&self) -> PathBuf {
        self.control.kubeconfig(DAEMON)
    }

    /// The daemon's pod is another one of its name: the token of the one before is not taken any more, and nobody has written the new
    /// one's.
    pub fn revoke_token(&self) -> Result<()> {
        let delete = ["-n", "bulkhead", "delete", "pod", "bulkheadd-node1", "--force", "--grace-period=0"];
        self.control.kubectl(&delete)?;
        self.control.apply(NODE).map(drop)
    }

    /// As a kubelet does it in the file that the daemon's pod reads.
    pub fn renew_token(&self, lives: &str) -> Result<()> {
        write_token(&self.control, lives).map(drop)
    }

    /// What the API server answers to an apply that it must refuse.
    pub fn refusal(&self, document: &str) -> Result<String> {
        match self.control.apply(document) {
            Err(Error::Command { stderr, .. }) => Ok(stderr),
            Err(other) => Err(other),
            Ok(_) => bulkhead_lab::unmet(format!("was accepted: {document}")),
        }
    }

    pub fn status(&self) -> Result<Status> {
        self.node.get("/v1/status")
    }

    /// By the tables in force, TCP.
    pub fn explain(&self, from: &str, to: &str, port: u16) -> Result<Explanation> {
        let request = ExplainRequest { from: from.into(), to: to.into(), protocol: "tcp".into(), port };
        self.node.post("/v1/explain", &request)
    }

    /// The daemon comes to let this pass, or not.
    pub fn wait_allowed(&self, from: &str, to: &str, port: u16, allowed: bool) -> Result<()> {
        let passes = if allowed { "is allowed" } else { "is denied" };
        until(&format!("{from} to {to} port {port} {passes}"), SOON, || {
            let explanation = self.explain(from, to, port)?;
            if explanation.allowed == allowed {
                Ok(Some(()))
            } else {
                bulkhead_lab::unmet(format!("{explanation:?}"))
            }
        })
    }

    /// The daemon tells this on its status.
    pub fn wait_told(&self, words: &str) -> Result<()> {
        until(&format!("the daemon tells: {words}"), SOON, || {
            let told = self.status()?.errors.iter().map(|e| format!("{e}\n")).collect::<String>();
            if told.contains(words) { Ok(Some(())) } else { bulkhead_lab::unmet(told) }
        })
    }

    /// The daemon has nothing to tell.
    pub fn wait_sound(&self) -> Result<()> {
        until("the daemon tells of no error", SOUND, || {
            let errors = self.status()?.errors;
            if errors.is_empty() { Ok(Some(())) } else { bulkhead_lab::unmet(format!("{errors:?}")) }
        })
    }

    /// The pod runs and has this address, as its kubelet would tell.
    pub fn has_address(&self, namespace: &str, name: &str, address: &str) -> Result<()> {
        let status = format!(
            r#"{{"status":{{"phase":"Running","podIP":"{address}","podIPs":[{{"ip":"{address}"}}]}}}}"#
        );
        let patch =
            ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status];
        self.control.kubectl(&patch).map(drop)
    }

    pub fn logs(&self) -> String {
        format!("{}-- bulkheadd\n{}\n", self.control.logs(15), self.node.log_tail(30))
    }
}

/// The daemon's kubeconfig with a token of its pod on the node.
fn write_token(control: &ControlPlane, lives: &str) -> Result<PathBuf> {
    let duration = format!("--duration={lives}");
    let token = ["-n", "bulkhead", "create", "token", "bulkheadd", &duration];
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=bulkheadd-node1"];
    let token = control.kubectl(&[&token[..], &bound].concat())?.trim().to_string();
    control.write_kubeconfig(DAEMON, &Identity::Token(token))
}

/// Bulkhead as a user would, whose workloads nobody runs here; upstream's ClusterNetworkPolicy, and the node.
fn install(control: &ControlPlane) -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bulkhead.yaml");
    control.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    let upstream = bulkhead_lab::programs::find("clusternetworkpolicies.yaml")?;
    control.kubectl(&["apply", "--server-side", "-f", &upstream.display().to_string()])?;
    control.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?;
    control.apply(NODE).map(drop)
}
