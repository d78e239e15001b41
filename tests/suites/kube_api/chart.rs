//! The Helm chart, by Helm itself: with its own values it is `deploy/bulkhead.yaml`, and it installs as that does.

use crate::site::{Case, Site};
use bulkhead_lab::{
    Error, Netns, Result,
    cluster::deploy,
    enter::WORK,
    kubernetes::ControlPlane,
    link::{ip, run},
    programs, unmet,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

pub const CASES: &[(&str, Case)] = &[
    ("the chart with its own values is bulkhead.yaml, object by object", same),
    ("the chart's values stand where they belong, and one that is not known is refused by name", values),
    ("helm installs, upgrades and removes it, and leaves the kinds and their objects", lifecycle),
];

fn chart() -> String {
    deploy().join("helm/bulkhead").display().to_string()
}

fn helm(netns: Option<&Netns>, arguments: &[&str]) -> Result<String> {
    let program = programs::find("helm")?;
    let mut command = netns.map_or_else(|| Command::new(&program), |netns| netns.command(&program));
    run(command.args(arguments).env("HOME", WORK))
}

fn rendered(more: &[&str]) -> Result<String> {
    let chart = chart();
    helm(
        None,
        &[&["template", "bulkhead", &chart, "--include-crds", "--namespace", "kube-system"], more].concat(),
    )
}

/// Objects by kind, namespace and name. A configuration within one counts by what it says.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let named = documents.into_iter().filter(|d| !d.is_null()).map(|mut object| {
        if let Some(text) = object["data"]["bulkheadd.yaml"].as_str() {
            let configuration: Value = serde_saphyr::from_str(text).unwrap();
            object["data"]["bulkheadd.yaml"] = configuration;
        }
        let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_string();
        (format!("{} {}/{}", object["kind"], of("namespace"), of("name")), object)
    });
    named.collect()
}

fn same(_: &mut Site) -> Result<()> {
    let (expected, made) =
        (objects(&fs::read_to_string(deploy().join("bulkhead.yaml"))?), objects(&rendered(&[])?));
    if expected.keys().ne(made.keys()) {
        return unmet(format!("the chart makes {:?}, the file {:?}", made.keys(), expected.keys()));
    }
    for (name, object) in &expected {
        if made[name] != *object {
            return unmet(format!("{name} of the chart: {}\nof the file: {object}", made[name]));
        }
    }
    let said = helm(None, &["lint", "--strict", &chart()])?;
    if said.contains("1 chart(s) linted, 0 chart(s) failed") { Ok(()) } else { unmet(said) }
}

fn values(_: &mut Site) -> Result<()> {
    let values = "image: {repository: registry.example/bulkhead, tag: '7'}\nimagePullSecrets: [{name: registry}]\n\
        config: {podCIDRs: [10.1.0.0/16], uplinks: [eth0, 'bond*', {cidr: 10.0.0.0/8}], clusterDNS: [],\n\
        masquerade: {nonMasqueradeCIDRs: [10.0.0.0/8]}}\ncni: {binDir: /opt/k3s/bin}\n\
        apiServer: {host: 192.0.2.10}\nnodeSelector: {bulkhead.dev/installed: 'yes'}\ntolerations: []\n\
        bgp: {configuration: {asn: 65010}, peers: {'101': {peerAddress: 192.0.2.1, peerASN: 65020}}}\n\
        daemon: {maxSurge: 10%, resources: {limits: {memory: 1Gi}}}\n";
    let file = Path::new(WORK).join("values.yaml");
    fs::write(&file, values)?;
    let file = file.display().to_string();
    let made = objects(&rendered(&["--values", &file])?);
    let pod = |name: &str| &made[name]["spec"]["template"]["spec"];
    let (daemon, bfd) = (pod("\"DaemonSet\" bulkhead/bulkheadd"), pod("\"DaemonSet\" bulkhead/bulkhead-bfd"));
    let controller = pod("\"Deployment\" bulkhead/bulkhead-controller");
    for of in [daemon, bfd, controller] {
        assert_eq!(of["containers"][0]["image"], "registry.example/bulkhead:7");
        assert_eq!(of["imagePullSecrets"][0]["name"], "registry");
        assert_eq!(of["tolerations"], serde_json::json!([]));
    }
    for of in [daemon, controller] {
        let env = of["containers"][0]["env"].to_string();
        assert!(env.contains(r#"{"name":"KUBERNETES_SERVICE_HOST","value":"192.0.2.10"}"#), "{env}");
        assert!(env.contains(r#"{"name":"KUBERNETES_SERVICE_PORT","value":"6443"}"#), "{env}");
    }
    for of in [daemon, bfd] {
        assert_eq!(of["nodeSelector"]["bulkhead.dev/installed"], "yes");
        assert_eq!(of["nodeSelector"]["kubernetes.io/os"], "linux");
    }
    assert_eq!(daemon["containers"][0]["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(
        made["\"DaemonSet\" bulkhead/bulkheadd"]["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"],
        "10%"
    );
    assert!(daemon["volumes"].to_string().contains("/opt/k3s/bin"), "{}", daemon["volumes"]);
    let configuration = &made["\"ConfigMap\" bulkhead/bulkhead"]["data"]["bulkheadd.yaml"];
    let expected = serde_json::json!({
        "kubernetes": {}, "cni": {}, "podCIDRs": ["10.1.0.0/16"], "clusterDNS": [],
        "uplinks": ["eth0", "bond*", {"cidr": "10.0.0.0/8"}], "masquerade": {"nonMasqueradeCIDRs": ["10.0.0.0/8"]},
        "serviceCIDRs": ["10.96.0.0/12", "fd00:96::/112"],
    });
    assert_eq!(*configuration, expected);
    assert_eq!(made["\"BGPConfiguration\" /default"]["spec"]["asn"], 65010);
    // A name, whatever YAML would make of it.
    assert_eq!(made["\"BGPPeer\" /101"]["spec"]["peerASN"], 65020);
    for (value, named) in
        [("apiserver.host=192.0.2.10", "apiserver"), ("config.uplinks[0].range=eth0", "uplinks")]
    {
        match rendered(&["--set", value]) {
            Err(Error::Command { stderr, .. }) if stderr.contains(named) => {}
            other => return unmet(format!("{value}, which is not known: {other:?}")),
        }
    }
    Ok(())
}

/// On an API server of its own, which knows nothing of us.
fn lifecycle(_: &mut Site) -> Result<()> {
    let netns = Netns::create("helm")?;
    ip(Some(&netns), "address add 172.30.7.1/32 dev lo")?;
    let control =
        ControlPlane::start_for_kubelets(netns, [172, 30, 7, 1].into(), &Path::new(WORK).join("helm"))?;
    let (kubeconfig, chart) = (control.admin().display().to_string(), chart());
    let helm = |arguments: &[&str]| {
        let cluster = ["--kubeconfig", &kubeconfig, "--namespace", "kube-system"];
        helm(Some(&control.netns), &[arguments, &cluster[..]].concat())
    };
    let peers =
        "bgp.peers.leaf.peerAddress=192.0.2.1,bgp.peers.leaf.peerASN=65020,bgp.configuration.asn=65010";
    helm(&["install", "bulkhead", &chart, "--set", peers])?;
    let image = || {
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        control.kubectl(&["get", "daemonset", "-n", "bulkhead", "bulkheadd", "-o", path])
    };
    if !image()?.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))) {
        return unmet(image()?);
    }
    let peering = || control.kubectl(&["get", "bgppeer/leaf", "bgpconfiguration/default"]);
    peering()?;
    control.kubectl(&["get", "serviceaccount/bulkheadd", "-n", "bulkhead"])?;
    control.apply(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: vms}\nspec: {cidrs: [192.0.2.0/24]}\n",
    )?;
    // What docs/install.md says goes before it.
    let crds = deploy().join("crds").display().to_string();
    control.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
    // Whoever forgets the other values loses no session.
    helm(&["upgrade", "bulkhead", &chart, "--reset-values", "--set", "image.tag=next"])?;
    if !image()?.ends_with(":next") {
        return unmet(image()?);
    }
    peering()?;
    helm(&["upgrade", "bulkhead", &chart, "--set", peers])?;
    helm(&["uninstall", "bulkhead"])?;
    peering()?;
    let left = control.kubectl(&[
        "get",
        "daemonset/bulkheadd",
        "deployment/bulkhead-controller",
        "clusterrole/bulkheadd",
        "-n",
        "bulkhead",
        "--ignore-not-found",
        "-o",
        "name",
    ])?;
    if !left.is_empty() {
        return unmet(format!("left: {left}"));
    }
    control.kubectl(&["get", "networkgroup", "vms"]).map(drop)
}
