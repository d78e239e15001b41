//! A machine behind an interface of the node that the daemon does not manage. The node masquerades what that machine sends to
//! pods: it must not pass as the node, whole or in pieces; the node itself must.

use crate::{
    support::{alternative, bound, exchange_at, require},
    translated::{at, clear, translate},
};
use bulkhead_api::messages::DropInfo;
use bulkhead_lab::{
    Lab, Netns, Pod, Result,
    link::{End, veth},
    until,
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(5);
/// In at least three pieces.
const LONG: usize = 4000;
const DATAGRAMS: u16 = 9126;

/// As a rack's management network is cabled to a second port of the node.
fn machine(lab: &Lab) -> Result<Netns> {
    let outsider = Netns::create("outsider")?;
    for key in ["default", "all"] {
        outsider.sysctl(&format!("net/ipv6/conf/{key}/accept_dad"), "0")?;
    }
    let [own, nodes] = [["172.31.77.2/24", "fd00:31:77::2/64"], ["172.31.77.1/24", "fd00:31:77::1/64"]];
    veth(
        End { netns: &outsider, name: "eth0", addresses: &own },
        End { netns: &lab.nodes[0].netns, name: "side0", addresses: &nodes },
    )?;
    outsider.ip("route add default via 172.31.77.1")?;
    outsider.ip("route add default via fd00:31:77::1")?;
    Ok(outsider)
}

fn unknown(lab: &Lab) -> Result<u64> {
    let drops: Vec<DropInfo> = lab.nodes[0].get("/v1/drops")?;
    Ok(drops.iter().filter(|d| d.reason == "unknown origin").map(|d| d.packets).sum())
}

fn own(lab: &Lab, v6: bool) -> IpAddr {
    if v6 { lab.nodes[0].v6.into() } else { lab.nodes[0].v4.into() }
}

pub fn whole(lab: &mut Lab) -> Result<()> {
    let outsider = machine(lab)?;
    let (plain, db) = (lab.pod("shop/plain-0")?, lab.pod("payments/db-0")?);
    let mut dnat = Vec::new();
    for v6 in [false, true] {
        dnat.push((at(own(lab, v6), 30080), at(alternative(plain, v6), 8080)));
        dnat.push((at(own(lab, v6), 30082), at(alternative(db, v6), 20880)));
    }
    translate(lab, &dnat, &["ct status dnat".into(), "oifname \"bh*\" iifname side0".into()])?;
    for v6 in [false, true] {
        // An open partition takes whoever comes, an enforced one only whom it knows.
        let seen = exchange_at(&outsider, &plain.netns, 8080, at(own(lab, v6), 30080), None)?;
        require(seen == own(lab, v6), &format!("the backend saw {seen}"))?;
        for called in [at(own(lab, v6), 30082), at(alternative(db, v6), 20880)] {
            let before = unknown(lab)?;
            let passed = exchange_at(&outsider, &db.netns, 20880, called, None);
            require(passed.is_err(), "an outsider passes as the node")?;
            require(unknown(lab)? > before, "nobody tells why it was refused")?;
        }
        let seen = exchange_at(&lab.nodes[0].netns, &db.netns, 20880, at(alternative(db, v6), 20880), None)?;
        require(seen == own(lab, v6), &format!("the pod saw {seen}"))?;
    }
    clear(lab)
}

/// The pod holds a bridge with an overlay, as one with virtual machines does. The node's side of its link then wants so much
/// room before a packet that the stack cuts all pieces anew, and of IPv6 they no longer say where they came in.
pub fn pieces(lab: &mut Lab) -> Result<()> {
    let outsider = machine(lab)?;
    let mut pod = Pod::create(0, "payments", "machines-0")?;
    pod.add(&lab.nodes[0])?;
    for line in [
        "link add br0 type bridge",
        "link add vx0 type vxlan id 7 dstport 4789 dev eth0",
        "link set vx0 master br0",
        "link set eth0 master br0",
        "link set vx0 up",
        "link set br0 up",
    ] {
        pod.netns.ip(line)?;
    }
    let called = |v6| at(own(lab, v6), 30084);
    let backend = |v6| at(alternative(&pod, v6), DATAGRAMS);
    let dnat = [false, true].map(|v6| (called(v6), backend(v6)));
    translate(lab, &dnat, &["ct status dnat".into()])?;
    for v6 in [false, true] {
        let server = bound(&pod.netns, backend(v6).ip(), DATAGRAMS)?;
        let any: IpAddr = if v6 { "::" } else { "0.0.0.0" }.parse().expect("an address");
        let before = unknown(lab)?;
        let stranger = bound(&outsider, any, 0)?;
        until("the stranger's pieces are refused", SOON, || {
            stranger.send_to(&[1; LONG], called(v6))?;
            Ok((unknown(lab)? > before).then_some(()))
        })?;
        // What the node itself sends comes behind all of them.
        let own = bound(&lab.nodes[0].netns, any, 0)?;
        own.send_to(&[2; LONG], backend(v6))?;
        let (length, first) = receive(&server)?;
        require((length, first) == (LONG, 2), &format!("{length} bytes of {first} arrived first"))?;
    }
    clear(lab)?;
    pod.del(&lab.nodes[0])
}

fn receive(server: &UdpSocket) -> Result<(usize, u8)> {
    let mut room = [0; 2 * LONG];
    let (length, _): (usize, SocketAddr) = server.recv_from(&mut room)?;
    Ok((length, room[0]))
}
