//! flannel, as a cluster has it before it is moved to Bulkhead: by its own manifest, built from its own sources (`tests/flannel`).

use super::{Cluster, images};
use crate::{Context, Result, programs};
use std::{fs, path::Path};

/// `Network` of its manifest.
pub const RANGE: &str = "10.244.0.0/16";
const KUSTOMIZATION: &str = include_str!("../../flannel/kustomization.yaml");
/// What its plugin hands the work on to, as packages of Kubernetes install it.
const DELEGATES: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Of its DaemonSet's pods.
pub const APP: &str = "app=flannel";

/// The range of a node's pods.
pub fn range_of(node: usize) -> String {
    format!("10.244.{}.0/24", node + 1)
}

impl Cluster {
    /// Until both nodes are ready by it. `dir` takes its manifest.
    pub fn install_flannel(&self, dir: &Path) -> Result<()> {
        let manifest = programs::find("kube-flannel.yml")?;
        let text = fs::read_to_string(&manifest).during(|| manifest.display().to_string())?;
        let images = images::flannel(dir, &text)?;
        for (n, machine) in self.machines.iter().enumerate() {
            for image in &images {
                machine.import(image)?;
            }
            for program in DELEGATES {
                machine.run("cp", &[&format!("/usr/lib/cni/{program}"), "/opt/cni/bin/"])?;
            }
            // What the controller manager does with --allocate-node-cidrs.
            let range = format!(r#"{{"spec": {{"podCIDR": "{0}", "podCIDRs": ["{0}"]}}}}"#, range_of(n));
            self.kubectl(&["patch", "node", &machine.name, "-p", &range])?;
        }
        for (name, content) in [("kube-flannel.yml", text.as_str()), ("kustomization.yaml", KUSTOMIZATION)] {
            let path = dir.join(name);
            fs::write(&path, content).during(|| path.display().to_string())?;
        }
        self.kubectl(&["apply", "-k", &dir.display().to_string()])?;
        let rolled_out =
            ["rollout", "status", "-n", "kube-flannel", "daemonset/kube-flannel-ds", "--timeout=90s"];
        let rolled_out = self
            .kubectl(&rolled_out)
            .and_then(|_| self.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=90s"]));
        self.or_logs(rolled_out).map(drop)
    }
}
