//! What the cases share: one control plane, one node.

use bulkhead_lab::{
    Error, Netns, Result,
    enter::WORK,
    kubernetes::ControlPlane,
    link::{End, veth},
    node::UPLINK,
};
use std::path::Path;

pub type Case = fn(&mut Site) -> Result<()>;

pub struct Site {
    pub control: ControlPlane,
    _node: Netns,
}

impl Site {
    /// The API server is ready and knows our kinds and upstream's ClusterNetworkPolicy.
    pub fn start() -> Result<Self> {
        let (control, node) = (Netns::create("control")?, Netns::create("node1")?);
        veth(
            End { netns: &control, name: "n1", addresses: &["172.30.1.1/24", "fd00:30:1::1/64"] },
            End { netns: &node, name: UPLINK, addresses: &["172.30.1.2/24", "fd00:30:1::2/64"] },
        )?;
        let address = [172, 30, 1, 1].into();
        let control = ControlPlane::start(control, address, &Path::new(WORK).join("control"))?;
        let site = Self { control, _node: node };
        site.define_kinds()?;
        Ok(site)
    }

    fn define_kinds(&self) -> Result<()> {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let upstream = bulkhead_lab::programs::find("clusternetworkpolicies.yaml")?;
        for file in [&ours, &upstream] {
            self.control.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()])?;
        }
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
        self.control.kubectl(&wait).map(drop)
    }

    /// What the API server answers to an apply that it must refuse.
    pub fn refusal(&self, document: &str) -> Result<String> {
        match self.control.apply(document) {
            Err(Error::Command { stderr, .. }) => Ok(stderr),
            Err(other) => Err(other),
            Ok(_) => bulkhead_lab::unmet(format!("was accepted: {document}")),
        }
    }

    pub fn logs(&self) -> String {
        self.control.logs(15)
    }
}
