//! etcd and kube-apiserver in a namespace of the lab. Controllers run where a test starts them: what they would make, it
//! makes itself otherwise.

use super::{
    kubeconfig::{self, Identity},
    pki::{self, Authority},
};
use crate::{Context, Error, Netns, Result, link::run, programs, until};
use base64::Engine;
use serde_json::json;
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const ETCD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2379);
const PORT: u16 = 6443;
/// In one transaction: etcd takes 128.
const PUTS: usize = 100;
const APPLIED: &str = "applied.yaml";
/// On a busy machine; a quiet one needs a sixth of it.
const START: Duration = Duration::from_secs(60);

/// Killed when dropped.
pub struct ControlPlane {
    pub netns: Netns,
    address: IpAddr,
    authority: Authority,
    dir: PathBuf,
    /// Kubelets and their pods call, and are called.
    kubelets: bool,
    etcd: Child,
    apiserver: Option<Child>,
}

impl ControlPlane {
    /// Starts both in `netns` and waits until the API server is ready. `address` is the one of `netns` that nodes call;
    /// `dir` takes keys, data, logs and kubeconfigs.
    pub fn start(netns: Netns, address: IpAddr, dir: &Path) -> Result<Self> {
        Self::start_with(netns, address, dir, false)
    }

    /// As [`Self::start`], for a cluster with kubelets: pods get their service accounts, and kubelets are called.
    pub fn start_for_kubelets(netns: Netns, address: IpAddr, dir: &Path) -> Result<Self> {
        Self::start_with(netns, address, dir, true)
    }

    fn start_with(netns: Netns, address: IpAddr, dir: &Path, kubelets: bool) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        let authority = Authority::create()?;
        let service = "10.96.0.1".parse().unwrap_or(address);
        let server = authority.server(
            &[address, Ipv4Addr::LOCALHOST.into(), service],
            &["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"],
        )?;
        let (signing_key, public_key) = pki::signing_key()?;
        for (name, text) in [
            ("ca.crt", authority.certificate()),
            ("apiserver.crt", &server.certificate),
            ("apiserver.key", &server.key),
            ("service-accounts.key", &signing_key),
            ("service-accounts.pub", &public_key),
        ] {
            fs::write(dir.join(name), text).during(|| name.into())?;
        }
        let etcd = start_etcd(&netns, dir)?;
        let mut plane = Self { netns, address, authority, dir: dir.into(), kubelets, etcd, apiserver: None };
        let admin = plane.authority.client("admin", &["system:masters"])?;
        plane.write_kubeconfig("admin", &Identity::Certificate(admin))?;
        plane.start_apiserver()?;
        Ok(plane)
    }

    /// Where nodes find it.
    pub fn server(&self) -> String {
        format!("https://{}", self.endpoint())
    }

    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }

    /// The administrator's kubeconfig for whoever reaches the API server by this port of his own loopback address.
    pub fn export_kubeconfig(&self, path: &Path, port: u16) -> Result<()> {
        let authority = path.with_extension("ca");
        fs::write(&authority, self.authority.certificate()).during(|| authority.display().to_string())?;
        let admin = Identity::Certificate(self.authority.client("admin", &["system:masters"])?);
        kubeconfig::write(path, &format!("https://127.0.0.1:{port}"), &authority, &admin)
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The authority's certificate, as a file.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Of the administrator, who may do everything.
    pub fn admin(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// Where the kubeconfig of this name is.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.kubeconfig"))
    }

    /// A kubeconfig for somebody else.
    pub fn write_kubeconfig(&self, name: &str, identity: &Identity) -> Result<PathBuf> {
        let path = self.kubeconfig(name);
        kubeconfig::write(&path, &self.server(), &self.dir.join("ca.crt"), identity)?;
        Ok(path)
    }

    /// Starts kube-apiserver where it does not run, and waits until it is ready.
    pub fn start_apiserver(&mut self) -> Result<()> {
        if self.apiserver.is_some() {
            return Ok(());
        }
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = self.netns.command(programs::find("kube-apiserver")?);
        for (flag, value) in [
            ("etcd-servers", format!("http://{ETCD}")),
            ("advertise-address", self.address.to_string()),
            ("secure-port", PORT.to_string()),
            ("service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112".into()),
            ("client-ca-file", file("ca.crt")),
            ("tls-cert-file", file("apiserver.crt")),
            ("tls-private-key-file", file("apiserver.key")),
            ("service-account-key-file", file("service-accounts.pub")),
            ("service-account-signing-key-file", file("service-accounts.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("profiling", "false".into()),
            // As before 1.36: a NetworkPolicy may say what not everybody reads alike, `010.0.0.0/8`.
            ("feature-gates", "StrictIPCIDRValidation=false".into()),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        // As every installer has it: network plugins are privileged.
        command.arg("--allow-privileged=true");
        if self.kubelets {
            command.arg("--enable-admission-plugins=NodeRestriction");
            command.arg("--kubelet-preferred-address-types=InternalIP");
            // As the administrator.
            for (flag, end) in [("certificate", "crt"), ("key", "key")] {
                let file = self.admin().with_extension(end);
                command.arg(format!("--kubelet-client-{flag}={}", file.display()));
            }
        } else {
            // No controller makes the service accounts that pods would be given.
            command.arg("--disable-admission-plugins=ServiceAccount");
        }
        let mut process = start(command, &self.log("kube-apiserver"))?;
        let ready = until("the API server is ready", START, || {
            if let Some(status) = process.try_wait()? {
                return Ok(Some(Some(status)));
            }
            self.kubectl(&["get", "--raw", "/readyz"]).map(|_| Some(None))
        })?;
        match ready {
            None => self.apiserver = Some(process),
            Some(status) => {
                let stderr = tail(&self.log("kube-apiserver"), 30);
                return Err(Error::Command { command: "kube-apiserver".into(), status, stderr });
            }
        }
        Ok(())
    }

    /// `kill -9`; etcd stays.
    pub fn kill_apiserver(&mut self) -> Result<()> {
        if let Some(mut apiserver) = self.apiserver.take() {
            apiserver.kill()?;
            apiserver.wait()?;
        }
        Ok(())
    }

    /// Starts these controllers of kube-controller-manager; they run until the answer is dropped.
    pub fn start_controllers(&self, controllers: &[&str]) -> Result<Controllers> {
        let mut command = self.netns.command(programs::find("kube-controller-manager")?);
        command.arg("--kubeconfig").arg(self.admin());
        command.arg(format!("--controllers={}", controllers.join(","))).arg("--leader-elect=false");
        start(command, &self.log("kube-controller-manager")).map(Controllers)
    }

    /// All of kube-controller-manager that a cluster without a cloud has, and kube-scheduler; they run until the answer is
    /// dropped.
    pub fn start_managers(&self) -> Result<[Controllers; 2]> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut manager = self.netns.command(programs::find("kube-controller-manager")?);
        manager.args(["--allocate-node-cidrs=false", "--leader-elect=false"]);
        for (flag, value) in [
            ("kubeconfig", self.admin().display().to_string()),
            ("service-account-private-key-file", file("service-accounts.key")),
            ("root-ca-file", file("ca.crt")),
        ] {
            manager.arg(format!("--{flag}={value}"));
        }
        let mut scheduler = self.netns.command(programs::find("kube-scheduler")?);
        scheduler.arg("--leader-elect=false").arg("--kubeconfig").arg(self.admin());
        Ok([
            Controllers(start(manager, &self.log("kube-controller-manager"))?),
            Controllers(start(scheduler, &self.log("kube-scheduler"))?),
        ])
    }

    /// Bulkhead's own controller, as its service account; it runs until the answer is dropped.
    pub fn start_bulkhead_controller(&self) -> Result<Controllers> {
        let name = "bulkhead-controller";
        let token = self.kubectl(&["-n", "bulkhead", "create", "token", name, "--duration=2h"])?;
        let kubeconfig = self.write_kubeconfig(name, &Identity::Token(token.trim().into()))?;
        let mut command = self.netns.command(programs::find(name)?);
        command.arg(kubeconfig);
        start(command, &self.log(name)).map(Controllers)
    }

    /// Makes etcd forget all that is not the newest: whoever watches from an older version on must list anew.
    pub fn compact(&self) -> Result<()> {
        let range =
            self.etcd_call("/v3/kv/range", r#"{"key":"AA==","count_only":true,"range_end":"AA=="}"#)?;
        let field = "\"revision\":\"";
        let revision: String = match range.split_once(field) {
            Some((_, rest)) => rest.chars().take_while(char::is_ascii_digit).collect(),
            None => return crate::unmet(format!("etcd names no revision: {range}")),
        };
        let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
        self.etcd_call("/v3/kv/compaction", &body).map(drop)
    }

    /// Puts objects into etcd without the API server, which tells whoever watches as if it had made them: thousands in a second. By
    /// their key below `/registry/`.
    pub fn put(&self, objects: impl IntoIterator<Item = (String, serde_json::Value)>) -> Result<()> {
        let encoded = |text: String| base64::prelude::BASE64_STANDARD.encode(text);
        let mut puts: Vec<_> = objects
            .into_iter()
            .map(|(key, object)| {
                let (key, value) = (encoded(format!("/registry/{key}")), encoded(object.to_string()));
                json!({"requestPut": {"key": key, "value": value}})
            })
            .collect();
        while !puts.is_empty() {
            let some = puts.split_off(puts.len().saturating_sub(PUTS));
            self.etcd_call("/v3/kv/txn", &json!({"success": some}).to_string())?;
        }
        Ok(())
    }

    /// Deletes all objects whose key begins so, in the same way.
    pub fn remove(&self, prefix: &str) -> Result<()> {
        let encoded = |text: String| base64::prelude::BASE64_STANDARD.encode(text);
        // Up to the same with a `~`, which no name of an object has.
        let [first, end] = [format!("/registry/{prefix}"), format!("/registry/{prefix}~")].map(encoded);
        let body = json!({"key": first, "range_end": end});
        self.etcd_call("/v3/kv/deleterange", &body.to_string()).map(drop)
    }

    /// One request to etcd's JSON gateway.
    fn etcd_call(&self, path: &str, body: &str) -> Result<String> {
        let answer = self.netns.run(|| {
            let mut stream = TcpStream::connect(ETCD).during(|| "calling etcd".into())?;
            write!(
                stream,
                "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        if answer.lines().next().is_some_and(|line| line.contains(" 200 ")) {
            return Ok(answer);
        }
        crate::unmet(format!("etcd answers {path} with {answer}"))
    }

    /// `kubectl` as the administrator; its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_as(&self.admin(), arguments)
    }

    /// `kubectl` as whoever this kubeconfig names.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = self.netns.command(programs::find("kubectl")?);
        // Home is where it remembers what the server offers.
        run(command.arg("--kubeconfig").arg(kubeconfig).args(arguments).env("HOME", &self.dir))
    }

    /// `kubectl apply` of these documents.
    pub fn apply(&self, documents: &str) -> Result<String> {
        let file = self.write(APPLIED, documents)?;
        self.kubectl(&["apply", "-f", &file])
    }

    /// A file of this name for `kubectl`; its path.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, text).during(|| path.display().to_string())?;
        Ok(path.display().to_string())
    }

    /// The file of the last [`Self::apply`].
    pub fn applied(&self) -> String {
        self.dir.join(APPLIED).display().to_string()
    }

    /// The last lines that both logged, for a reader who must find out why something failed.
    pub fn logs(&self, lines: usize) -> String {
        ["etcd", "kube-apiserver", "bulkhead-controller"]
            .map(|name| format!("-- {name}\n{}\n", tail(&self.log(name), lines)))
            .concat()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.kill_apiserver();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// A kube-controller-manager, killed when dropped.
pub struct Controllers(Child);

impl Drop for Controllers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_etcd(netns: &Netns, dir: &Path) -> Result<Child> {
    let mut command = netns.command(programs::find("etcd")?);
    let client = format!("http://{ETCD}");
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn"]);
    start(command, &dir.join("etcd.log"))
}

/// Starts a program that runs on by itself, with its output in `log`.
pub(crate) fn start(mut command: Command, log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log).during(|| log.display().to_string())?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.spawn().during(|| format!("starting {:?}", command.get_program()))
}

pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
