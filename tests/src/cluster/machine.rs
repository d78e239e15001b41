//! One machine of the cluster: containerd, kubelet and kube-proxy in namespaces of their own, all at their default paths.
//!
//! Everybody on the machine lives in its network and its mount namespace. There `/etc`, `/opt` and `/var` are the machine's
//! own with a layer of the lab over them, `/run` and the bpffs are new: what is installed on a node is installed in the lab.
//! cgroups cannot be layered: each kubelet has a root of its own, see [`super::cgroups`].

use super::{DNS, cgroups, images::Archive};
use crate::{
    Context, Error, Netns, Result,
    enter::WORK,
    kubernetes::{ControlPlane, Identity, start, tail},
    link::{ip_output, run},
    programs, unmet, until,
};
use serde_json::json;
use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

const START: Duration = Duration::from_secs(60);
/// Long enough to outlive any lab.
const FOREVER: &str = "1000000";

/// What the kubelet would write into the kernel, which is that of the whole machine: shown to it as written already.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where a distribution has its containerd, and where that looks for plugins and their configuration.
#[derive(Clone, Copy)]
pub struct Layout {
    pub socket: &'static str,
    pub state: &'static str,
    pub root: &'static str,
    pub cni_bin: &'static str,
    pub cni_conf: &'static str,
}

const DEFAULT: Layout = Layout {
    socket: "/run/containerd/containerd.sock",
    state: "/run/containerd",
    root: "/var/lib/containerd",
    cni_bin: "/opt/cni/bin",
    cni_conf: "/etc/cni/net.d",
};

/// Of k3s with a `config.toml.tmpl` that names the folders of its own plugins.
pub const K3S: Layout = Layout {
    socket: "/run/k3s/containerd/containerd.sock",
    state: "/run/k3s/containerd",
    root: "/var/lib/rancher/k3s/agent/containerd",
    cni_bin: "/var/lib/rancher/k3s/data/cni",
    cni_conf: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
};

/// Its processes are killed when dropped; those of containers go with the lab.
pub struct Machine {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// Of kube-proxy.
    proxy_mode: &'static str,
    layout: Layout,
    dir: PathBuf,
    mounts: Option<File>,
    /// By name: who holds the mount namespace first, then containerd, kubelet, kube-proxy.
    processes: Vec<(&'static str, Child)>,
}

impl Machine {
    /// Makes the namespaces, and starts nothing.
    pub fn create(netns: Netns, v4: Ipv4Addr, v6: Ipv6Addr, proxy_mode: &'static str) -> Result<Self> {
        let name = netns.name().to_string();
        let dir = Path::new(WORK).join(&name);
        fs::create_dir_all(&dir).during(|| dir.display().to_string())?;
        let (mounts, processes) = (None, Vec::new());
        let mut machine = Self { name, netns, v4, v6, proxy_mode, layout: DEFAULT, dir, mounts, processes };
        let furnished = machine.dir.join("furnished");
        let script = machine.write("furnish.sh", &furnish(&machine.dir, &furnished))?;
        let mut holder = machine.netns.command("unshare");
        holder.args(["--mount", "--propagation", "private", "bash", "-euo", "pipefail"]).arg(script);
        let mut holder = start(holder, &machine.log("furnish"))?;
        let ready = until("the machine's file systems are mounted", START, || {
            Ok(holder.try_wait()?.map(Err).or(furnished.exists().then_some(Ok(()))))
        })?;
        if let Err(status) = ready {
            let stderr = tail(&machine.log("furnish"), 20);
            return Err(Error::Command { command: "furnish.sh".into(), status, stderr });
        }
        machine.mounts = Some(File::open(format!("/proc/{}/ns/mnt", holder.id()))?);
        machine.processes.push(("furnish.sh", holder));
        Ok(machine)
    }

    /// Starts containerd with these images, then kubelet and kube-proxy.
    pub fn start(
        &mut self,
        control: &ControlPlane,
        sandbox: &str,
        images: &[Archive],
        cgroup: &str,
    ) -> Result<()> {
        self.start_containerd(sandbox)?;
        for image in images {
            self.import(image)?;
        }
        self.start_kubelet(control, cgroup)?;
        self.start_proxy(control)
    }

    pub(super) fn import(&self, image: &Archive) -> Result<()> {
        let images = ["-n", "k8s.io", "images"];
        run(self.command("ctr").args(images).args(["import", "--no-unpack"]).arg(&image.path))?;
        if let Some((name, other)) = image.also {
            run(self.command("ctr").args(images).args(["tag", "--force", name, other]))?;
        }
        Ok(())
    }

    /// As of another distribution: a containerd without containers, elsewhere, and a kubelet that calls that one. Not for a machine with pods.
    pub(super) fn relocate(
        &mut self,
        layout: Layout,
        control: &ControlPlane,
        sandbox: &str,
        images: &[Archive],
    ) -> Result<()> {
        self.kill("kubelet")?;
        self.kill("containerd")?;
        self.layout = layout;
        run(self.command("mkdir").arg("-p").args([layout.root, layout.cni_bin, layout.cni_conf]))?;
        // As in `furnish`.
        run(self.command("mount").args(["-t", "tmpfs", "tmpfs", layout.root]))?;
        run(self.command("cp").args(["/usr/lib/cni/loopback", layout.cni_bin]))?;
        self.start_containerd(sandbox)?;
        for image in images {
            self.import(image)?;
        }
        self.restart_kubelet(control)
    }

    /// As after the machine's own restart, but its containers live on: it registers the node anew where that is gone.
    pub fn restart_kubelet(&mut self, control: &ControlPlane) -> Result<()> {
        self.kill("kubelet")?;
        let group = format!("{}/{}", cgroups::own()?, self.name);
        self.start_kubelet(control, &group)
    }

    /// Kills this program of its own; what it has set up stays.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        for (_, mut process) in self.processes.extract_if(.., |(of, _)| *of == name) {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// A command on this machine: in its network and its file systems.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.netns.command(program);
        command.env("CONTAINERD_ADDRESS", self.layout.socket);
        let Some(fd) = self.mounts.as_ref().map(AsRawFd::as_raw_fd) else { return command };
        // SAFETY: only setns, an async-signal-safe system call, is made between fork and exec; a number that is no
        // descriptor any more makes it fail, and the spawn with it.
        unsafe {
            command.pre_exec(move || {
                let mounts = std::os::fd::BorrowedFd::borrow_raw(fd);
                Ok(nix::sched::setns(mounts, nix::sched::CloneFlags::CLONE_NEWNS)?)
            });
        }
        command
    }

    /// What this prints, on this machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Where a file of this machine is for everybody else.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        match self.processes.first() {
            Some((_, holder)) => Ok(format!("/proc/{}/root{path}", holder.id()).into()),
            None => unmet(format!("{} does not run", self.name)),
        }
    }

    /// The namespace of the pod that has this address.
    pub fn pod_netns(&self, address: &str) -> Result<Netns> {
        let dir = self.file("/run/netns")?;
        for entry in fs::read_dir(&dir).during(|| dir.display().to_string())?.flatten() {
            let netns = Netns::of(entry.path())?;
            if ip_output(Some(&netns), "-o address show")?.contains(&format!(" {address}/")) {
                return Ok(netns);
            }
        }
        unmet(format!("no pod of {} has {address}", self.name))
    }

    fn start_containerd(&mut self, sandbox: &str) -> Result<()> {
        let Layout { socket, state, root, cni_bin, cni_conf } = self.layout;
        let configuration = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{sandbox}\"\n\
             disable_apparmor = true\n\
             # Where the lab may not raise its own processes over others, containers may not either.\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{cni_bin}\"\nconf_dir = \"{cni_conf}\"\n\
             [grpc]\naddress = \"{socket}\"\n"
        );
        let file = self.write("containerd.toml", &configuration)?;
        let mut command = self.command("containerd");
        command.arg("--config").arg(file);
        self.spawn(command, "containerd")?;
        until("containerd answers", START, || self.run("ctr", &["version"]).map(Some)).map(drop)
    }

    fn start_kubelet(&mut self, control: &ControlPlane, cgroup: &str) -> Result<()> {
        let user = format!("system:node:{}", self.name);
        let certificate = control.authority().client(&user, &["system:nodes"])?;
        let kubeconfig = control.write_kubeconfig(&self.name, &Identity::Certificate(certificate))?;
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": control.ca()},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": format!("unix://{}", self.layout.socket),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "clusterDNS": DNS,
            "clusterDomain": "cluster.local",
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "makeIPTablesUtilChains": false,
            "nodeStatusUpdateFrequency": "2s",
            "resolvConf": "",
            "shutdownGracePeriod": "0s",
        });
        let file = self.write("kubelet.json", &configuration.to_string())?;
        let mut command = self.command(programs::find("kubelet")?);
        command.arg("--config").arg(file).arg("--kubeconfig").arg(kubeconfig);
        command
            .arg(format!("--hostname-override={}", self.name))
            .arg(format!("--node-ip={},{}", self.v4, self.v6));
        self.spawn(command, "kubelet")
    }

    pub fn start_proxy(&mut self, control: &ControlPlane) -> Result<()> {
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": control.admin()},
            "hostnameOverride": self.name,
            "mode": self.proxy_mode,
            // Of the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        let file = self.write("kube-proxy.json", &configuration.to_string())?;
        let mut command = self.command(programs::find("kube-proxy")?);
        command.arg("--config").arg(file);
        self.spawn(command, "kube-proxy")
    }

    fn spawn(&mut self, command: Command, name: &'static str) -> Result<()> {
        self.processes.push((name, start(command, &self.log(name))?));
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).during(|| path.display().to_string())?;
        Ok(path)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The last lines that its programs logged.
    pub fn logs(&self, lines: usize) -> String {
        let of = |name| format!("-- {name} of {}\n{}\n", self.name, tail(&self.log(name), lines));
        ["containerd", "kubelet", "kube-proxy"].map(of).concat()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        while let Some((_, mut process)) = self.processes.pop() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The script that mounts what the machine has for itself, and then stays.
fn furnish(dir: &Path, furnished: &Path) -> String {
    let mut script = format!("cd {}\n", dir.display());
    for name in ["etc", "opt", "var"] {
        script += &format!(
            "mkdir -p over/{name} work/{name}\n\
             mount -t overlay overlay -o lowerdir=/{name},upperdir=over/{name},workdir=work/{name} /{name}\n"
        );
    }
    // containerd before 2.0 wants the loopback plugin of every node, whatever the network plugin is.
    // An overlay cannot be the upper layer of another, which containerd makes.
    script += "mkdir -p /var/lib/containerd /var/lib/kubelet /etc/cni/net.d /opt/cni/bin\n\
               mount -t tmpfs tmpfs /var/lib/containerd\nmount -t tmpfs tmpfs /var/lib/kubelet\n\
               rm -f /etc/cni/net.d/*\ncp /usr/lib/cni/loopback /opt/cni/bin/\n\
               mkdir -p run/lab run/netns\nmount --rbind /run/lab run/lab\nmount --rbind run /run\n\
               mount -t bpf bpf /sys/fs/bpf\n";
    for (key, value) in TUNABLES {
        let file = format!("/run/tunables/{}", key.replace('/', "."));
        script +=
            &format!("mkdir -p /run/tunables\necho {value} > {file}\nmount --bind {file} /proc/sys/{key}\n");
    }
    // As systemd does it: mounts made later reach the containers that ask for them.
    script += &format!("mount --make-rshared /\ntouch {}\nexec sleep {FOREVER}\n", furnished.display());
    script
}
