//! What the cases share: the cluster, and the pods in it.

use bulkhead_lab::{
    Result,
    cluster::{BUSYBOX, Cluster, SOON},
    lab::Baseline,
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

/// Prints the caller's address.
const WHO: &str = "#!/bin/busybox sh\\necho\\necho \\$REMOTE_ADDR\\n";
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

    /// As whom `from` is seen at each of these addresses; `-` where nobody answers.
    pub fn call(&self, from: &Pod, to: &[String]) -> Result<Vec<String>> {
        // busybox's wget looks for a resolver that a static program cannot have.
        let script = format!(
            "b=/bin/busybox; for a in {}; do \
             r=$(printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | $b nc -w 2 $a {PORT} 2>/dev/null | $b tail -n 1); \
             echo ${{r:--}}; done",
            to.join(" ")
        );
        let pod = ["-n", from.namespace, from.name];
        let said = self.cluster.exec(&pod, &["/bin/busybox", "sh", "-c", &script])?;
        // An IPv6 socket's view of IPv4.
        Ok(said.lines().map(|l| l.trim_start_matches("[::ffff:").trim_end_matches(']').to_string()).collect())
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

impl Pod {
    fn manifest(&self) -> String {
        let Self { namespace, name, node, host, role } = self;
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{role: {role}}}}}\n\
             spec:\n  hostNetwork: {host}\n  nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: main\n    image: {BUSYBOX}\n    imagePullPolicy: Never\n    \
             command: [/bin/busybox, sh, -c]\n    \
             args: ['b=/bin/busybox; $b mkdir -p /www/cgi-bin; printf \"{WHO}\" > /www/cgi-bin/who; $b chmod 755 /www/cgi-bin/who; exec $b httpd -f -p {PORT} -h /www']\n    \
             readinessProbe: {{httpGet: {{path: /cgi-bin/who, port: {PORT}}}, periodSeconds: 1}}\n"
        )
    }
}
