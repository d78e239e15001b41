//! A pod: a bare namespace, and `bulkhead-cni` executed as a container runtime does it.

use crate::{Context, Error, Netns, Node, Result, programs};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::Write,
    net::{Ipv4Addr, Ipv6Addr},
    process::Stdio,
};

/// Interface of the pod, as runtimes name it.
pub const IFNAME: &str = "eth0";
const CNI_VERSION: &str = "1.1.0";

/// Wired by [`Pod::add`]; nothing is undone when dropped.
#[derive(Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub netns: Netns,
    /// Unspecified until wired.
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Index of its node.
    pub node: usize,
    container: String,
    /// What the runtime keeps for CHECK and DEL.
    result: Value,
}

/// CNI specification 1.1.0, "ADD Success".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    pub cni_version: String,
    pub interfaces: Vec<CniInterface>,
    pub ips: Vec<CniIp>,
}

#[derive(Debug, Deserialize)]
pub struct CniInterface {
    pub name: String,
    pub mac: Option<String>,
    pub sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct CniIp {
    pub address: IpNetwork,
}

impl Pod {
    pub fn create(node: usize, namespace: &str, name: &str) -> Result<Self> {
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
            netns: Netns::create(&format!("{namespace}-{name}"))?,
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            node,
            container: format!("{namespace}-{name}-sandbox"),
            result: Value::Null,
        })
    }

    /// `namespace/name`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// CNI ADD; takes the addresses over.
    pub fn add(&mut self, node: &Node) -> Result<CniResult> {
        let text = self.execute(node, "ADD")?;
        let what = || format!("the result of ADD for {}", self.reference());
        let kept = serde_json::from_str(&text).map_err(|source| Error::Json { what: what(), source })?;
        let result: CniResult =
            serde_json::from_str(&text).map_err(|source| Error::Json { what: what(), source })?;
        self.result = kept;
        for ip in &result.ips {
            match ip.address {
                IpNetwork::V4(a) => self.v4 = a.ip(),
                IpNetwork::V6(a) => self.v6 = a.ip(),
            }
        }
        Ok(result)
    }

    pub fn check(&self, node: &Node) -> Result<()> {
        self.execute(node, "CHECK").map(drop)
    }

    pub fn del(&self, node: &Node) -> Result<()> {
        self.execute(node, "DEL").map(drop)
    }

    fn execute(&self, node: &Node, command: &str) -> Result<String> {
        let program = programs::find("bulkhead-cni")?;
        let dir = program.parent().map(|p| p.display().to_string()).unwrap_or_default();
        let mut child = node
            .netns
            .command(&program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", dir)
            .env("CNI_ARGS", self.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .during(|| format!("executing {}", program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(self.configuration(node, command).to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        // The specification puts the error on standard output.
        let said = [output.stdout, output.stderr].concat();
        Err(Error::Command {
            command: format!("bulkhead-cni {command} {}", self.reference()),
            status: output.status,
            stderr: String::from_utf8_lossy(&said).trim().into(),
        })
    }

    fn arguments(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
            self.namespace, self.name, self.container
        )
    }

    fn configuration(&self, node: &Node, command: &str) -> Value {
        let mut configuration = json!({
            "cniVersion": CNI_VERSION,
            "name": "bulkhead",
            "type": "bulkhead-cni",
            "socket": node.socket(),
            "stateDir": node.state_dir(),
        });
        if command != "ADD" && !self.result.is_null() {
            configuration["prevResult"] = self.result.clone();
        }
        configuration
    }
}
