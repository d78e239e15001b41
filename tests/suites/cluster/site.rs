//! What the cases share: the cluster, and the pods in it.

use bulkhead_lab::{
    Result,
    cluster::{BUSYBOX, Cluster, SOON},
    lab::Baseline,
    link::run,
    unmet, until,
};

pub type Case = fn(&mut Site) -> Result<()>;

pub struct Site {
    pub cluster: Cluster,
    /// The nodes before anything was installed.
    pub before: Vec<Baseline>,
    /// A case did not hold: the next ones go on from it.
    pub failed: bool,
}

/// A pod that says who calls it.
#[derive(Clone, Copy)]
pub struct Pod {
    pub namespace: &'static str,
    pub name: &'static str,
    pub node: &'static str,
    pub host: bool,
    /// `role`, to be picked by.
    pub role: &'static str,
}

/// Prints the pod's name and the caller's address.
const WHO: &str = "#!/bin/busybox sh\\necho\\necho NAME \\$REMOTE_ADDR\\n";
pub const PORT: u16 = 8080;

impl Site {
    pub fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        let before =
            cluster.machines.iter().map(|m| Baseline::of_machine(&m.netns)).collect::<Result<_>>()?;
        Ok(Self { cluster, before, failed: false })
    }

    /// Creates these pods and waits until kubelet's probes call them ready.
    pub fn create(&self, pods: &[Pod]) -> Result<()> {
        self.cluster.control.apply(&pods.iter().map(Pod::manifest).collect::<String>())?;
        for pod in pods {
            let reference = format!("pod/{}", pod.name);
            let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "-n", pod.namespace, &reference];
            self.cluster.kubectl(&ready)?;
        }
        Ok(())
    }

    pub fn address(&self, pod: &Pod) -> Result<String> {
        let path = "jsonpath={.status.podIP}";
        self.cluster.kubectl(&["get", "pod", "-n", pod.namespace, pod.name, "-o", path])
    }

    /// All addresses of a pod, IPv4 first.
    pub fn addresses(&self, pod: &Pod) -> Result<[String; 2]> {
        let path = "jsonpath={.status.podIPs[*].ip}";
        let told = self.cluster.kubectl(&["get", "pod", "-n", pod.namespace, pod.name, "-o", path])?;
        match told.split(' ').collect::<Vec<_>>()[..] {
            [v4, v6] if v6.contains(':') => Ok([v4.into(), v6.into()]),
            _ => unmet(format!("{} has not an address of each family: {told}", pod.name)),
        }
    }

    /// What `bulkhead` says on this node.
    pub fn on_node(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let of_node = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        let daemon = ["get", "pod", "-n", "bulkhead", "-l", "app=bulkheadd", &of_node, "-o", "name"];
        let daemon = self.cluster.kubectl(&daemon)?;
        self.cluster.exec(&["-n", "bulkhead", daemon.trim()], &[&["/usr/bin/bulkhead"], arguments].concat())
    }

    /// As whom `from` is seen at each of these addresses; `-` where nobody answers.
    pub fn call(&self, from: &Pod, to: &[String]) -> Result<Vec<String>> {
        let to: Vec<_> = to.iter().map(|address| (address.as_str(), PORT)).collect();
        Ok(self.ask(from, &to)?.into_iter().map(|answer| answer.seen).collect())
    }

    /// Who answers `from` at each of these addresses and ports, one after the other.
    pub fn ask(&self, from: &Pod, to: &[(&str, u16)]) -> Result<Vec<Answer>> {
        let pod = ["-n", from.namespace, from.name];
        self.cluster.exec(&pod, &["/bin/busybox", "sh", "-c", &asking(to)]).map(|said| answers(&said))
    }

    /// The same from outside of the cluster: as the router.
    pub fn ask_from_outside(&self, to: &[(&str, u16)]) -> Result<Vec<Answer>> {
        let mut command = self.cluster.router.command("/bin/busybox");
        run(command.args(["sh", "-c", &asking(to)])).map(|said| answers(&said))
    }

    /// It comes to be so that `from` reaches `to`, or does not.
    pub fn wait_reached(&self, from: &Pod, to: &Pod, reached: bool) -> Result<()> {
        let to = self.address(to)?;
        until(&format!("{} reaches {to}: {reached}", from.name), SOON, || {
            let seen = self.call(from, std::slice::from_ref(&to))?;
            if (seen != ["-"]) == reached { Ok(Some(())) } else { unmet(format!("{seen:?}")) }
        })
    }
}

/// One who answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// `-`: nobody did.
    pub name: String,
    /// Whom it was asked by, as it saw him.
    pub seen: String,
}

/// busybox's wget looks for a resolver that a static program cannot have.
pub fn asking(to: &[(&str, u16)]) -> String {
    let ask = |(address, port): &(&str, u16)| {
        format!(
            "r=$(printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | $b nc -w 2 {address} {port} 2>/dev/null | $b tail -n 1); \
             echo ${{r:-- -}}; "
        )
    };
    format!("b=/bin/busybox; {}", to.iter().map(ask).collect::<String>())
}

pub fn answers(said: &str) -> Vec<Answer> {
    // An IPv6 socket's view of IPv4; and IPv6 as it stands in a URL.
    let plain = |address: &str| {
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        bare.trim_start_matches("::ffff:").to_string()
    };
    let one = |line: &str| {
        let (name, seen) = line.split_once(' ').unwrap_or((line, "-"));
        Answer { name: name.into(), seen: plain(seen) }
    };
    said.lines().map(one).collect()
}

impl Pod {
    pub fn manifest(&self) -> String {
        let Self { namespace, name, node, host, role } = self;
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{role: {role}, name: {name}}}}}\n\
             spec:\n  hostNetwork: {host}\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n{}",
            specification(name, "  ")
        )
    }
}

/// Of a pod that answers with this name and who asks; the environment of its shell is filled in.
pub fn specification(name: &str, indent: &str) -> String {
    let who = WHO.replace("NAME", name);
    format!(
        "terminationGracePeriodSeconds: 1\ncontainers:\n- name: main\n  image: {BUSYBOX}\n  imagePullPolicy: Never\n  \
         command: [/bin/busybox, sh, -c]\n  env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]\n  \
         args: ['b=/bin/busybox; $b mkdir -p /www/cgi-bin; printf \"{who}\" > /www/cgi-bin/who; $b chmod 755 /www/cgi-bin/who; exec $b httpd -f -p {PORT} -h /www']\n  \
         readinessProbe: {{httpGet: {{path: /cgi-bin/who, port: {PORT}}}, periodSeconds: 1}}\n"
    )
    .lines()
    .map(|line| format!("{indent}{line}\n"))
    .collect()
}
