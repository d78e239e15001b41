//! Policy decides on the backend, whose address the first packet carries.

use crate::site::{Case, SERVED, SOON, Site, at, require, service, virtual_ip};
use bulkhead_api::messages::DropInfo;
use bulkhead_lab::{Error, Result, unmet, until};
use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

pub const CASES: &[(&str, Case)] = &[
    ("an isolated pod's call of a service is judged on the backend", judged),
    ("isolated pods reach cluster DNS by its service", dns),
    ("explain looks through a service", explained),
];

/// Of an enforced partition, on node1.
const WEB: &str = "web/front-0";
/// Of one that admits calls from web at the port that is served.
const DB: &str = "payments/db-1";
/// Of the open partition, to which web may not call.
const SHOP: &str = "shop/cart-1";
const TCP: &str = "protocol: TCP, port: 80";

fn packets_dropped(site: &Site) -> Result<u64> {
    let drops: Vec<DropInfo> = site.lab.nodes[0].get("/v1/drops")?;
    let by_web = |d: &&DropInfo| d.partition.as_deref() == Some("web") && d.direction == "egress";
    Ok(drops.iter().filter(by_web).map(|d| d.packets).sum())
}

fn judged(site: &mut Site) -> Result<()> {
    let web = service("web", 1, TCP, "");
    for v6 in [false, true] {
        site.set(&[web.clone(), site.slice("web", v6, &[DB])?])?;
        site.until_answered_by(WEB, at(1, v6), &[DB])?;
        site.set(&[web.clone(), site.slice("web", v6, &[SHOP])?])?;
        site.until_answered_by(crate::site::CLIENT, at(1, v6), &[SHOP])?;
        let before = packets_dropped(site)?;
        let error = site.call_error(WEB, at(1, v6))?;
        require(error.kind() == ErrorKind::TimedOut, &error.to_string())?;
        require(packets_dropped(site)? > before, "no rule of web has dropped the call")?;
    }
    Ok(())
}

/// The service's address is what the configuration names; its backend is what packets carry.
fn dns(site: &mut Site) -> Result<()> {
    let node = &mut site.lab.nodes[0];
    let path = node.log().with_file_name("bulkheadd.yaml");
    let before = std::fs::read_to_string(&path)?;
    let with = before.replace("clusterDNS: []", &format!("clusterDNS: [{}]", virtual_ip(53, false)));
    require(with != before, "the configuration names no DNS")?;
    std::fs::write(&path, with)?;
    node.stop_daemon()?;
    node.start_daemon()?;
    // Where servers listen at a port of their own, packets carry that one.
    let result = asked_at(site, 53).and_then(|()| asked_at(site, 5353));
    // By the backend's own address and port, too: it is the DNS of the cluster; at another port it is not.
    let other = SocketAddr::new(site.address(SHOP, false)?, SERVED);
    let error = site.call_error(WEB, other)?;
    let node = &mut site.lab.nodes[0];
    std::fs::write(&path, before)?;
    node.stop_daemon()?;
    node.start_daemon()?;
    require(error.kind() == ErrorKind::TimedOut, "an isolated pod reaches more of the DNS pod than DNS")?;
    result
}

/// Cluster DNS is asked by its service, whose server listens at this port.
fn asked_at(site: &mut Site, port: u16) -> Result<()> {
    let to = SocketAddr::new(virtual_ip(53, false), 53);
    let server = site.netns(SHOP)?.run(|| Ok(UdpSocket::bind(("0.0.0.0", port))?))?;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    let slice = site.slice("dns", false, &[SHOP])?.replace(&SERVED.to_string(), &port.to_string());
    site.set(&[service("dns", 53, "protocol: UDP, port: 53", ""), slice])?;
    let asked = site.netns(WEB)?.run(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
    asked.set_read_timeout(Some(Duration::from_millis(500)))?;
    until(&format!("an isolated pod asks cluster DNS, which listens at port {port}"), SOON, || {
        asked.send_to(b"who", to)?;
        let mut room = [0; 8];
        let (_, client) = server.recv_from(&mut room)?;
        server.send_to(b"me", client)?;
        let (_, from) = asked.recv_from(&mut room)?;
        if from == to { Ok(Some(())) } else { unmet(format!("the answer is {from}'s")) }
    })
}

fn explained(site: &mut Site) -> Result<()> {
    let web = service("web", 1, TCP, "");
    site.set(&[web, site.slice("web", false, &[DB, SHOP])?])?;
    let ip = virtual_ip(1, false).to_string();
    until("explain tells the backends' verdicts", SOON, || {
        let said = site.lab.nodes[0].cli(&["explain", WEB, &ip, "--port", "80"])?;
        let line = |address: String, verdict: &str| {
            said.lines().any(|l| l.contains(&format!("{address}:{SERVED}")) && l.contains(verdict))
        };
        let all = said.contains("service shop/web")
            && line(site.address(DB, false)?.to_string(), "allowed")
            && line(site.address(SHOP, false)?.to_string(), "denied");
        if all { Ok(Some(())) } else { Err(Error::Unmet(said)) }
    })
}
