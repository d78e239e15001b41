//! Uplinks that are chosen by rules, and followed; and two of them with packets.

use crate::{
    calls::{alternative, exchange, exchange_at},
    support::{Case, LATER, SOON, contains, reconfigure, require, status},
};
use bulkhead_api::messages::DropInfo;
use bulkhead_lab::{
    Lab, Netns, Pod, Result,
    link::{End, ip_output, run, veth},
    until,
    wait::until_true,
};
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
};

pub const CASES: &[Case] = &[
    ("uplinks come and go by the rules that choose them, and say why they are some", followed),
    ("what is an uplink no more, and cannot be let go of, is let go of later", let_go_later),
    ("packets leave by the uplink that routes say, and what comes in by either is judged", two),
];

fn followed(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    reconfigure(&lab.nodes[0], "uplinks: [eth0]", "uplinks: [{cidr: 172.30.0.0/16}, \"up*\"]")?;
    lab.nodes[0].start_daemon()?;
    let by_range = "eth0 (172.30.1.2 in 172.30.0.0/16, MTU 1500)";
    contains(&lab.nodes[0].cli(&["status"])?, &[by_range])?;
    contains(&of_new_pod(lab, "first")?, &["mtu 1500"])?;
    let node = &lab.nodes[0];
    node.netns.ip("link add up0 mtu 1400 type veth peer name far0")?;
    node.netns.ip("link set up0 up")?;
    // The kernel tells of it: nobody looks so soon by himself.
    until_true("the second uplink is there", SOON, || Ok(status(node)?.uplinks.len() == 2))?;
    contains(&node.cli(&["status"])?, &[by_range, "up0 (by `up*`, MTU 1400)"])?;
    contains(&of_new_pod(lab, "second")?, &["mtu 1400"])?;
    // It is there still, and no rule chooses it.
    node.netns.ip("link set up0 down")?;
    node.netns.ip("link set up0 name spare0")?;
    until_true("the second uplink is gone", SOON, || Ok(status(node)?.uplinks.len() == 1))?;
    contains(&of_new_pod(lab, "third")?, &["mtu 1500"])
}

/// Pins cannot be removed from a file system that is read-only.
fn let_go_later(lab: &mut Lab) -> Result<()> {
    let node = &mut lab.nodes[0];
    node.netns.ip("link add up0 type veth peer name far0")?;
    node.netns.ip("link set up0 up")?;
    node.netns.ip("address add 172.30.77.1/24 dev up0")?;
    node.stop_daemon()?;
    reconfigure(node, "uplinks: [eth0]", "uplinks: [eth0, up0]")?;
    node.start_daemon()?;
    let links = node.pins().join("links");
    let pinned = links.join("up0-from_uplink");
    require(pinned.exists(), "up0 has its program")?;
    node.stop_daemon()?;
    reconfigure(node, "uplinks: [eth0, up0]", "uplinks: [eth0]")?;
    let folder = links.display().to_string();
    run(Command::new("mount").args(["--bind", &folder, &folder]))?;
    run(Command::new("mount").args(["-o", "remount,bind,ro", &folder]))?;
    let started = node.start_daemon();
    let kept = pinned.exists();
    run(Command::new("umount").arg(&folder))?;
    started?;
    require(kept, "the pin could not be removed")?;
    until_true("up0 is let go of", LATER, || Ok(!pinned.exists()))
}

/// Its interface.
fn of_new_pod(lab: &Lab, name: &str) -> Result<String> {
    let mut pod = Pod::create(0, "shop", name)?;
    pod.add(&lab.nodes[0])?;
    ip_output(Some(&pod.netns), "-o link show dev eth0")
}

/// A machine behind an uplink of its own, as on a storage network; the node's other end is `up0`.
fn machine(lab: &Lab) -> Result<Netns> {
    let machine = Netns::create("storage")?;
    for key in ["default", "all"] {
        machine.sysctl(&format!("net/ipv6/conf/{key}/accept_dad"), "0")?;
    }
    veth(
        End { netns: &machine, name: "eth0", addresses: &["172.31.78.2/24", "fd00:31:78::2/64"] },
        End { netns: &lab.nodes[0].netns, name: "up0", addresses: &["172.31.78.1/24", "fd00:31:78::1/64"] },
    )?;
    machine.ip("route add default via 172.31.78.1")?;
    machine.ip("route add default via fd00:31:78::1")?;
    Ok(machine)
}

fn two(lab: &mut Lab) -> Result<()> {
    let machine = machine(lab)?;
    let node = &mut lab.nodes[0];
    node.stop_daemon()?;
    // Direct, so that the programs choose the uplink, and by the host's stack.
    reconfigure(node, "uplinks: [eth0]", "uplinks: [eth0, up0]\ndirectTo: [172.31.78.0/24]")?;
    node.start_daemon()?;
    let with_storage = "cidrs: [172.31.78.0/24, \"fd00:31:78::/64\", ";
    let cluster = lab.objects.read("cluster.yaml")?.replace("cidrs: [", with_storage);
    lab.objects.write("cluster.yaml", &cluster)?;
    lab.pods.push(Pod::create(0, "shop", "ported-0")?);
    let ported = lab.pods.len() - 1;
    lab.pods[ported].runtime_config = json!({"portMappings": [{"hostPort": 8088, "containerPort": 8080}]});
    for reference in ["shop/cart-0", "payments/db-0", "shop/ported-0"] {
        let pod = crate::support::index(lab, reference);
        crate::support::add(lab, pod)?;
    }
    let (cart, db, ported) = (lab.pod("shop/cart-0")?, lab.pod("payments/db-0")?, lab.pod("shop/ported-0")?);
    for v6 in [false, true] {
        let address =
            |v4: &str, six: &str| -> IpAddr { if v6 { six } else { v4 }.parse().expect("an address") };
        let sites: [(&Netns, IpAddr, IpAddr); 2] = [
            (&machine, address("172.31.78.2", "fd00:31:78::2"), address("172.31.78.1", "fd00:31:78::1")),
            (&lab.vm.netns, address("172.30.9.2", "fd00:30:9::2"), address("172.30.1.2", "fd00:30:1::2")),
        ];
        for (site, own, node) in sites {
            // Each is behind one uplink alone, so what arrives has left by it, and answers have come back by it.
            let pod = alternative(cart, v6);
            until("the pod calls it", LATER, || {
                let seen = exchange(&cart.netns, site, own, 8080, None)?;
                require(seen == pod, &format!("{own} sees {seen}")).map(Some)
            })?;
            let seen = exchange(site, &cart.netns, pod, 8080, None)?;
            require(seen == own, &format!("the pod sees {seen}"))?;
            let seen = exchange_at(site, &ported.netns, 8080, SocketAddr::new(node, 8088), None)?;
            require(seen == own, &format!("behind the host port {seen} is seen"))?;
            // By a rule of the partition tier.
            let db_address = alternative(db, v6);
            exchange(site, &db.netns, db_address, 20880, None)?;
            // What is refused takes its time.
            let refused = v6 || exchange(site, &db.netns, db_address, 8080, None).is_err();
            require(refused, "no rule admits this port")?;
            spoofed(lab, site, pod, SocketAddr::new(db_address, 9))?;
        }
    }
    Ok(())
}

/// Nobody behind an uplink speaks as a pod of the node.
fn spoofed(lab: &Lab, from: &Netns, pod: IpAddr, to: SocketAddr) -> Result<()> {
    let dropped = || -> Result<u64> {
        let drops: Vec<DropInfo> = lab.nodes[0].get("/v1/drops")?;
        Ok(drops.iter().filter(|d| d.reason.contains("spoofed")).map(|d| d.packets).sum())
    };
    let length = if pod.is_ipv6() { 128 } else { 32 };
    from.ip(&format!("address add {pod}/{length} dev lo"))?;
    let before = dropped()?;
    from.run(|| Ok(UdpSocket::bind((pod, 0))?.send_to(b"mine", to)?))?;
    until_true("who speaks as a pod is told of", SOON, || Ok(dropped()? > before))?;
    from.ip(&format!("address del {pod}/{length} dev lo"))
}
