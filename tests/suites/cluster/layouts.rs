//! Nodes whose containerd is elsewhere: the chart's values for them, from install to uninstall, as `docs/install.md` has them.

use crate::{
    migration::{Terminal, blocks, commands},
    site::{Pod, Site},
};
use bulkhead_lab::{
    Result,
    cluster::{K3S, SOON},
    unmet, until,
};
use std::fs;

const PODS: [Pod; 2] = [
    Pod { namespace: "default", name: "k3s1", node: "node1", host: false, role: "k3s" },
    Pod { namespace: "default", name: "k3s2", node: "node2", host: false, role: "k3s" },
];
const DEFAULTS: [&str; 2] = ["/opt/cni/bin/bulkhead-cni", "/etc/cni/net.d/05-bulkhead.conflist"];

pub fn k3s(site: &mut Site) -> Result<()> {
    let terminal = Terminal::open("k3s")?;
    let uninstall = commands("## Uninstall");
    let [drain, remove, by_helm] = uninstall[..] else {
        return unmet(format!("the guide has other steps: {uninstall:?}"));
    };
    let namespaces = site.cluster.kubectl(&["get", "namespaces", "-o", "name"])?;
    if namespaces.contains("namespace/bulkhead") {
        terminal.run(site, "", drain)?;
        terminal.run(site, "", remove)?;
    }
    site.cluster.relocate(K3S)?;
    until("no node is ready", SOON, || {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        let ready = site.cluster.kubectl(&["get", "nodes", "-o", path])?;
        if ready == "False False" { Ok(Some(())) } else { unmet(ready) }
    })?;

    let values = blocks("### k3s", "yaml").into_iter().find(|block| block.starts_with("cni:"));
    fs::write(terminal.dir.join("my-values.yaml"), values.unwrap_or_default())?;
    terminal.run(site, "", &commands("### k3s").concat())?;
    terminal.run(site, "", &commands("## Install").concat())?;
    site.cluster.peer()?;
    site.create(&PODS)?;
    let [one, two] = &PODS;
    site.wait_reached(one, two, true)?;
    let installed =
        [format!("{}/bulkhead-cni", K3S.cni_bin), format!("{}/05-bulkhead.conflist", K3S.cni_conf)];
    let found = |site: &Site, paths: &[&str]| -> Vec<String> {
        let is = |path: &&str| site.cluster.machines.iter().any(|m| m.file(path).is_ok_and(|p| p.exists()));
        paths.iter().filter(|p| is(p)).map(ToString::to_string).collect()
    };
    let paths = [installed[0].as_str(), &installed[1]];
    let (here, elsewhere) = (found(site, &paths), found(site, &DEFAULTS));
    if here != paths || !elsewhere.is_empty() {
        return unmet(format!("installed as {here:?} and {elsewhere:?}"));
    }

    site.cluster.kubectl(&["delete", "pod", one.name, two.name, "--timeout=60s"])?;
    terminal.run(site, "", drain)?;
    // All but what takes the manifest away, which Helm does here.
    let (remove, _) = remove.trim_end().rsplit_once('\n').unwrap_or_default();
    terminal.run(site, "", remove)?;
    terminal.run(site, "", by_helm)?;
    let left = [found(site, &paths), found(site, &["/sys/fs/bpf/bulkhead"])].concat();
    if left.is_empty() { Ok(()) } else { unmet(format!("left: {left:?}")) }
}
