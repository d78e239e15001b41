//! A container's `hostPort`, as kubelet and containerd hand it on: TCP to the pod's own server, UDP to one in its namespace.

use crate::{
    reach::{NODES, PODS},
    site::{Answer, PORT, Site, specification},
};
use bulkhead_lab::{Netns, Result, cluster::SOON, unmet, until};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

const HOST_PORT: u16 = 8088;
const DATAGRAMS: u16 = 5300;
const HOST_DATAGRAMS: u16 = 5301;
const PATIENCE: Duration = Duration::from_millis(500);

fn manifest() -> String {
    let ports = format!(
        "ports: [{{containerPort: {PORT}, hostPort: {HOST_PORT}}}, {{containerPort: {DATAGRAMS}, hostPort: {HOST_DATAGRAMS}, protocol: UDP}}]"
    );
    let main = "- name: main\n";
    let specification = specification("ported", "  ").replace(main, &format!("{main}    {ports}\n"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: ported, namespace: shop}}\n\
         spec:\n  nodeSelector: {{kubernetes.io/hostname: node1}}\n{specification}"
    )
}

/// Who answers at the port of each of these addresses: for pods and nodes of both nodes, and for somebody outside.
fn asked(site: &Site, addresses: &[String]) -> Result<Vec<Answer>> {
    let to: Vec<_> = addresses.iter().map(|address| (address.as_str(), HOST_PORT)).collect();
    let mut all = site.ask_from_outside(&to)?;
    for from in PODS.iter().chain(&NODES) {
        all.extend(site.ask(from, &to)?);
    }
    Ok(all)
}

/// The server behind the port for datagrams hears one that `from` sends to a node's address, and `from` hears its answer.
fn exchanged(server: &UdpSocket, from: &Netns, node: IpAddr) -> Result<bool> {
    let unspecified: IpAddr = if node.is_ipv6() { [0u8; 16].into() } else { [0u8; 4].into() };
    let client = from.run(|| Ok(UdpSocket::bind((unspecified, 0))?))?;
    client.connect(SocketAddr::new(node, HOST_DATAGRAMS))?;
    client.set_read_timeout(Some(PATIENCE))?;
    // Refused: of a datagram before this one, of which nobody wanted to know.
    let _ = client.send(b"who");
    let mut octets = [0; 16];
    let Ok((length, peer)) = server.recv_from(&mut octets) else { return Ok(false) };
    server.send_to(&octets[..length], peer)?;
    Ok(client.recv(&mut octets).is_ok_and(|length| octets[..length] == *b"who"))
}

pub fn host_ports(site: &mut Site) -> Result<()> {
    site.cluster.control.apply(&manifest())?;
    site.cluster.kubectl(&["wait", "-n", "shop", "pod/ported", "--for=condition=Ready", "--timeout=60s"])?;
    let machine = &site.cluster.machines[0];
    let nodes: [IpAddr; 2] = [machine.v4.into(), machine.v6.into()];
    let addresses = nodes.map(|address| address.to_string());
    until("the host port leads to the pod, whoever calls it", SOON, || {
        let answers = asked(site, &addresses)?;
        let held = answers.iter().all(|answer| answer.name == "ported");
        if held { Ok(Some(())) } else { unmet(format!("{answers:?}")) }
    })?;

    let path = "jsonpath={.status.podIP}";
    let pod = site.cluster.kubectl(&["get", "pod", "-n", "shop", "ported", "-o", path])?;
    let server = machine.pod_netns(&pod)?.run(|| Ok(UdpSocket::bind(("::", DATAGRAMS))?))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let outside = &site.cluster.router;
    let app2 = site.cluster.machines[1].pod_netns(&site.address(&PODS[1])?)?;
    for (who, from) in [("outside", outside), ("a pod of the other node", &app2)] {
        for node in nodes {
            until(&format!("{who} exchanges datagrams with {node}"), SOON, || {
                Ok(exchanged(&server, from, node)?.then_some(()))
            })?;
        }
    }
    drop(server);

    site.cluster.kubectl(&["delete", "pod", "-n", "shop", "ported", "--timeout=60s"])?;
    until("with its pod the host port is gone", SOON, || {
        let answers = asked(site, &addresses)?;
        if answers.iter().all(|answer| answer.name == "-") {
            Ok(Some(()))
        } else {
            unmet(format!("{answers:?}"))
        }
    })
}
