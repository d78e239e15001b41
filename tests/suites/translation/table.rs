//! The table in the kernel: what it is, who keeps it, and that there is none without need.

use crate::{
    Case,
    ports::{node, wired},
    support::{exchange_at, nft, require, says},
};
use bulkhead_lab::{Lab, Pod, Result, unmet, wait::until_true};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

pub const CASES: &[(&str, Case)] = &[
    ("without need there is no table, and with it what nft reads is what was meant", read_back),
    ("CHECK finds a host port that does not lead to its pod", checked),
    ("a table that somebody has emptied or removed comes back", flushed),
    ("a daemon that starts finds host ports as pods have them", restarted),
];

/// More than the daemon waits between two looks.
const SOON: Duration = Duration::from_secs(20);

fn tables(lab: &Lab) -> Result<String> {
    says(&lab.nodes[0].netns, &["nft", "list", "tables"])
}

/// Elements of a map, as `key : pod port`.
fn elements(lab: &Lab, family: &str, map: &str) -> Result<Vec<String>> {
    let text = says(&lab.nodes[0].netns, &["nft", "-j", "list", "map", family, "bulkhead", map])?;
    let Ok(read) = serde_json::from_str::<Value>(&text) else { return unmet(text) };
    let words = |value: &Value| {
        let all = value["concat"].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), String::from))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let found = read["nftables"].as_array().into_iter().flatten().filter_map(|o| o["map"]["elem"].as_array());
    let mut all: Vec<_> = found.flatten().map(|e| format!("{} : {}", words(&e[0]), words(&e[1]))).collect();
    all.sort();
    Ok(all)
}

fn read_back(lab: &mut Lab) -> Result<()> {
    let before = tables(lab)?;
    require(!before.contains("bulkhead"), &format!("nobody needs a table\n{before}"))?;
    let mappings = json!([
        {"hostPort": 8101, "containerPort": 8080},
        {"hostPort": 8102, "containerPort": 53, "protocol": "udp", "hostIP": "172.30.1.2"},
    ]);
    let pod = wired(lab, "shop", "ported-a", mappings)?;
    for (family, map, expected) in [
        ("ip", "anyports", vec![format!("tcp 8101 : {} 8080", pod.v4)]),
        ("ip6", "anyports", vec![format!("tcp 8101 : {} 8080", pod.v6)]),
        ("ip", "hostports", vec![format!("172.30.1.2 udp 8102 : {} 53", pod.v4)]),
        ("ip6", "hostports", vec![]),
    ] {
        let found = elements(lab, family, map)?;
        require(found == expected, &format!("{family} {map}: {found:?}"))?;
    }
    let text = says(&lab.nodes[0].netns, &["nft", "list", "table", "ip", "bulkhead"])?;
    for part in [
        "type nat hook prerouting priority dstnat - 10",
        "type nat hook output priority -110",
        "fib daddr type local dnat ip to meta l4proto . th dport map @anyports",
        "dnat ip to ip daddr . meta l4proto . th dport map @hostports",
        "ip saddr . ip daddr @pods snat to 172.30.1.2",
    ] {
        require(text.contains(part), &format!("no `{part}` in\n{text}"))?;
    }
    pod.del(&lab.nodes[0])?;
    let after = tables(lab)?;
    require(after == before, &format!("a table is left\n{after}"))
}

fn checked(lab: &mut Lab) -> Result<()> {
    let first = &lab.nodes[0];
    let pod = wired(lab, "shop", "ported-b", json!([{"hostPort": 8103, "containerPort": 8080}]))?;
    pod.check(first)?;
    nft(&first.netns, "delete element ip bulkhead anyports { tcp . 8103 }\n")?;
    match pod.check(first) {
        // The daemon may have been quicker.
        Ok(()) => require(elements(lab, "ip", "anyports")?.len() == 1, "CHECK is content without the port")?,
        Err(e) => {
            require(e.to_string().contains("0.0.0.0:8103/TCP does not lead to the pod"), &e.to_string())?
        }
    }
    until_true("the port is back", SOON, || Ok(pod.check(first).is_ok()))?;
    pod.del(first)
}

fn reaches(lab: &Lab, pod: &Pod, port: u16) -> bool {
    let called = |v6| SocketAddr::new(node(lab, v6), port);
    [false, true].iter().all(|v6| exchange_at(&lab.vm.netns, &pod.netns, 8080, called(*v6), None).is_ok())
}

fn flushed(lab: &mut Lab) -> Result<()> {
    let pod = wired(lab, "shop", "ported-c", json!([{"hostPort": 8104, "containerPort": 8080}]))?;
    for harm in [
        "flush ruleset\n",
        "flush chain ip bulkhead prerouting\n",
        "delete table ip6 bulkhead\n",
        "flush map ip bulkhead anyports\n",
        "add rule ip bulkhead prerouting counter drop\n",
    ] {
        nft(&lab.nodes[0].netns, harm)?;
        until_true(harm, SOON, || Ok(reaches(lab, &pod, 8104)))?;
        pod.check(&lab.nodes[0])?;
    }
    // A pod that comes before anybody has looked brings all of it back.
    nft(&lab.nodes[0].netns, "flush ruleset\n")?;
    let other = wired(lab, "shop", "ported-d", json!([{"hostPort": 8105, "containerPort": 8080}]))?;
    require(reaches(lab, &pod, 8104) && reaches(lab, &other, 8105), "half of the ports are there")?;
    other.del(&lab.nodes[0])?;
    pod.del(&lab.nodes[0])
}

fn restarted(lab: &mut Lab) -> Result<()> {
    let pod = wired(lab, "shop", "ported-e", json!([{"hostPort": 8106, "containerPort": 8080}]))?;
    let gone = wired(lab, "shop", "ported-f", json!([{"hostPort": 8107, "containerPort": 8080}]))?;
    lab.nodes[0].kill_daemon()?;
    require(reaches(lab, &pod, 8106), "without the daemon a port is lost")?;
    gone.del(&lab.nodes[0])?;
    lab.nodes[0].start_daemon()?;
    until_true("the queued DEL is carried out", SOON, || Ok(elements(lab, "ip", "anyports")?.len() == 1))?;
    require(reaches(lab, &pod, 8106), "a restart costs a port")?;
    lab.nodes[0].stop_daemon()?;
    nft(&lab.nodes[0].netns, "flush ruleset\n")?;
    lab.nodes[0].start_daemon()?;
    require(reaches(lab, &pod, 8106), "the ports of before do not come back")?;
    pod.check(&lab.nodes[0])?;
    pod.del(&lab.nodes[0])
}
