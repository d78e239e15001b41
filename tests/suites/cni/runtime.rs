//! The plugin as runtimes call it: by containerd's own library (ADD, CHECK, DEL, STATUS) and by libcni's GC, as CRI-O does. Both
//! read the configuration that the daemon puts in place, and keep between calls what they keep on a node.

use crate::endpoints;
use bulkhead_daemon::{
    config::CniInstall,
    install::{Daemon, install},
};
use bulkhead_lab::{
    Error, Pod, Result, Single,
    enter::WORK,
    link::{ip_output, run},
    pod::IFNAME,
    programs, unmet,
};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where libcni remembers what it has added; the lab's own.
const VAR: &str = "/var/lib";
const RESULTS: &str = "/var/lib/cni/results";

struct Runtime<'a> {
    site: &'a Single,
    folders: CniInstall,
}

impl<'a> Runtime<'a> {
    fn on(site: &'a Single) -> Result<Self> {
        let at = |name: &str| Path::new(WORK).join("runtime").join(name);
        let folders =
            CniInstall { plugin: programs::find("bulkhead-cni")?, bin_dir: at("bin"), conf_dir: at("net.d") };
        for dir in [&folders.bin_dir, &folders.conf_dir] {
            fs::create_dir_all(dir)?;
        }
        let (socket, state_dir): (PathBuf, PathBuf) = (site.node.socket(), site.node.state_dir());
        install(&folders, Daemon { socket: &socket, state_dir: &state_dir })
            .or_else(|e| unmet(e.to_string()))?;
        Ok(Self { site, folders })
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.site.node.netns.command(programs::find("cni-runtime")?);
        command.arg("--plugin-dir").arg(&self.folders.bin_dir);
        run(command.arg("--conf-dir").arg(&self.folders.conf_dir).args(arguments))
    }

    fn of(&self, verb: &str, pod: &Pod) -> Result<String> {
        let netns = pod.netns.path().display().to_string();
        let labels = [
            format!("K8S_POD_NAMESPACE={}", pod.namespace),
            format!("K8S_POD_NAME={}", pod.name),
            format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.container()),
        ];
        let [namespace, name, container] = &labels;
        self.call(&[verb, pod.container(), &netns, namespace, name, container])
    }

    /// What it must refuse, and what it says.
    fn refused(&self, said: Result<String>) -> Result<String> {
        match said {
            Err(Error::Command { stderr, .. }) => Ok(stderr),
            other => unmet(format!("was not refused: {other:?}")),
        }
    }
}

pub fn verbs(site: &mut Single) -> Result<()> {
    mount(Some("tmpfs"), VAR, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    site.node.stop_daemon()?;
    let runtime = Runtime::on(site)?;
    let away = runtime.refused(runtime.call(&["status"]))?;
    assert!(away.contains("daemon"), "{away}");
    site.node.start_daemon()?;
    let runtime = Runtime::on(site)?;
    runtime.call(&["status"])?;
    let create = |name: &str| Pod::create(0, "web", name);
    let (kept, forgotten, lost) = (create("kept")?, create("forgotten")?, create("lost")?);
    for pod in [&kept, &forgotten, &lost] {
        let said = runtime.of("add", pod)?;
        let result: Value = serde_json::from_str(&said).expect("JSON");
        let standing = ip_output(Some(&pod.netns), &format!("-o address show dev {IFNAME}"))?;
        let addresses = result["Interfaces"][IFNAME]["IPConfigs"].as_array().expect("addresses");
        assert_eq!(addresses.len(), 2, "{said}");
        for address in addresses.iter().filter_map(|a| a["IP"].as_str()) {
            assert!(standing.contains(&format!(" {address}/")), "{address} in {standing}");
        }
        runtime.of("check", pod)?;
    }
    kept.netns.ip(&format!("link set {IFNAME} mtu 1300"))?;
    let tampered = runtime.refused(runtime.of("check", &kept))?;
    assert!(tampered.contains("MTU") || tampered.contains("mtu"), "{tampered}");
    kept.netns.ip(&format!("link set {IFNAME} mtu {}", crate::MTU))?;
    runtime.of("check", &kept)?;
    // Leftovers: of one the runtime remembers that it has added it; of the other nothing, and its namespace is gone.
    for entry in fs::read_dir(RESULTS)?.flatten() {
        if entry.file_name().to_string_lossy().contains(lost.container()) {
            fs::remove_file(entry.path())?;
        }
    }
    drop(lost);
    runtime.call(&["gc", kept.container()])?;
    assert_eq!(endpoints(&site.node)?, ["kept"]);
    assert!(!ip_output(Some(&forgotten.netns), "-o link show")?.contains(IFNAME));
    runtime.of("check", &kept)?;
    // A node whose pods are all gone.
    for entry in fs::read_dir(RESULTS)?.flatten() {
        fs::remove_file(entry.path())?;
    }
    runtime.call(&["gc"])?;
    assert!(endpoints(&site.node)?.is_empty());
    for _ in 0..2 {
        runtime.of("del", &kept)?;
    }
    Ok(())
}
