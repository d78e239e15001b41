//! A pod: a bare namespace, and `bulkhead-cni` executed as a container runtime does it.

use crate::{Context, Error, Netns, Node, Result, programs};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    process::{ExitStatus, Stdio},
};

/// Interface of the pod, as runtimes name it.
pub const IFNAME: &str = "eth0";
/// What the lab speaks.
pub const CNI_VERSION: &str = "1.1.0";

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
    /// Of its object, where the runtime was told.
    pub uid: Option<String>,
    /// What the runtime asks for in ADD, and repeats from then on (`runtimeConfig`).
    pub runtime_config: Value,
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

/// What a call of the plugin came to.
#[derive(Clone, Debug)]
pub struct Call {
    pub status: ExitStatus,
    /// What it printed: a result, an error, or nothing.
    pub output: Value,
}

impl Pod {
    pub fn create(node: usize, namespace: &str, name: &str) -> Result<Self> {
        Self::create_as(node, namespace, name, name)
    }

    /// One of that name that is not the only one: `instance` tells its namespace on this machine from the others'.
    pub fn create_as(node: usize, namespace: &str, name: &str, instance: &str) -> Result<Self> {
        Ok(Self {
            namespace: namespace.into(),
            name: name.into(),
            netns: Netns::create(&format!("{namespace}-{instance}"))?,
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            node,
            container: format!("{namespace}-{instance}-sandbox"),
            uid: None,
            runtime_config: Value::Null,
            result: Value::Null,
        })
    }

    /// `namespace/name`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// CNI ADD; takes the addresses over.
    pub fn add(&mut self, node: &Node) -> Result<CniResult> {
        let kept = self.execute(node, "ADD")?;
        let what = || format!("the result of ADD for {}", self.reference());
        let result = CniResult::deserialize(&kept).map_err(|source| Error::Json { what: what(), source })?;
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

    /// Its id for the runtime.
    pub fn container(&self) -> &str {
        &self.container
    }

    fn execute(&self, node: &Node, command: &str) -> Result<Value> {
        let mut keys = json!({});
        if command != "ADD" && !self.result.is_null() {
            keys["prevResult"] = self.result.clone();
        }
        if !self.runtime_config.is_null() {
            keys["runtimeConfig"] = self.runtime_config.clone();
        }
        let call = self.call(node, CNI_VERSION, command, keys)?;
        if call.status.success() {
            return Ok(call.output);
        }
        Err(Error::Command {
            command: format!("bulkhead-cni {command} {}", self.reference()),
            status: call.status,
            stderr: call.output.to_string(),
        })
    }

    /// One call of the plugin in this version of the specification, with `keys` over the network configuration.
    pub fn call(&self, node: &Node, version: &str, command: &str, keys: Value) -> Result<Call> {
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
            // A verb that needs no configuration ends without reading it.
            match stdin.write_all(configuration(node, version, keys).to_string().as_bytes()) {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e.into()),
                _ => {}
            }
        }
        let done = child.wait_with_output()?;
        // The specification puts errors, too, on standard output.
        let output = match (done.stdout.as_slice(), done.stderr.as_slice()) {
            ([], []) => Value::Null,
            ([], said) => Value::String(String::from_utf8_lossy(said).trim().into()),
            (said, _) => serde_json::from_slice(said)
                .map_err(|source| Error::Json { what: format!("what {command} printed"), source })?,
        };
        Ok(Call { status: done.status, output })
    }

    fn arguments(&self) -> String {
        let uid = self.uid.as_ref().map(|uid| format!(";K8S_POD_UID={uid}")).unwrap_or_default();
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}{uid}",
            self.namespace, self.name, self.container
        )
    }
}

fn configuration(node: &Node, version: &str, keys: Value) -> Value {
    let mut configuration = json!({
        "cniVersion": version,
        "name": "bulkhead",
        "type": "bulkhead-cni",
        "socket": node.socket(),
        "stateDir": node.state_dir(),
    });
    if let (Value::Object(all), Value::Object(keys)) = (&mut configuration, keys) {
        all.extend(keys);
    }
    configuration
}
