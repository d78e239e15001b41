//! Starts that must not be, each with a message that says what, where and what to do; nothing in force is loosened by them.

use crate::support::*;
use aya::maps::MapInfo;
use bulkhead_lab::{Error, Lab, Node, Result, enter::BPFFS, link::run, unmet, until};
use std::{fs, path::Path, process::Command};

pub const CASES: &[Case] = &[
    ("a second daemon is refused, on the same socket and on the same state", second_daemon),
    (
        "a state that cannot be read is named, with what to do, and the pods keep their policy",
        unreadable_state,
    ),
    ("a state that is lost while pods run is no reason to take them down", lost_state),
    ("a record that cannot be read leaves its pod alone until DEL, which leaves nothing", unreadable_record),
    ("a state folder that cannot be written is told by ADD and STATUS", read_only_state),
    ("a full state folder fails one ADD, leaks nothing, and is forgotten once there is room", full_state),
    ("pins of another layout, and pins that are not on a bpffs, are refused by name", foreign_pins),
    ("no uplink, and an uplink that is not there, are refused by name", no_uplink),
    ("a node without IPv4 is told; it serves again once there is an address", without_ipv4),
    ("an uplink that gets its IPv6 address late announces IPv6 then", late_ipv6),
    ("port 179 taken is told; BGP starts once it is free", port_taken),
    ("a configuration that is wrong is refused by file and key", wrong_configuration),
    (
        "the room for connections is as configured; another one is refused, and what is in force stays",
        room_for_connections,
    ),
];

fn second_daemon(lab: &mut Lab) -> Result<()> {
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    let node = &lab.nodes[0];
    contains(&fails_to_start(node, &[])?, &["node1/state", "another bulkheadd", "stop it first"])?;
    let socket = node.socket().display().to_string();
    reconfigure(node, &socket, &format!("{socket}.2"))?;
    contains(&fails_to_start(node, &[])?, &["node1/state", "another bulkheadd"])?;
    let (code, said) = daemon_run(node, &["--uninstall"])?;
    require(code == Some(1), "--uninstall beside a running daemon is refused")?;
    contains(&said, &["another bulkheadd"])?;
    check(lab, pod)?;
    reconfigure(&lab.nodes[0], &format!("{socket}.2"), &socket)?;
    lab.nodes[0].stop_daemon()?;
    lab.nodes[0].start_daemon()?;
    check(lab, pod)
}

fn unreadable_state(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    for file in ["interner.json", "bgp.json", "objects/web.yaml.json"] {
        lab.nodes[0].kill_daemon()?;
        let path = lab.nodes[0].state_dir().join(file);
        let good = fs::read(&path)?;
        fs::write(&path, &good[..good.len() / 2])?;
        let said = fails_to_start(&lab.nodes[0], &[])?;
        contains(&said, &[path.display().to_string().as_str(), "restore", "--uninstall"])?;
        // Nobody may call db-0 on a port that no rule names; a node's own probe may.
        still_closed(lab, pod)?;
        fs::write(&path, good)?;
        lab.nodes[0].start_daemon()?;
        check(lab, pod)?;
    }
    Ok(())
}

/// What the vm may call, and what it may not.
pub fn still_closed(lab: &Lab, pod: usize) -> Result<()> {
    node_reaches(&lab.nodes[0], &lab.pods[pod])?;
    let address = lab.pods[pod].v4.to_string();
    let ping = run(lab.vm.netns.command("ping").args(["-n", "-c", "1", "-W", "1", &address]));
    require(ping.is_err(), "what no rule allows passes")
}

fn lost_state(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    lab.nodes[0].kill_daemon()?;
    let (state, aside) = (lab.nodes[0].state_dir(), lab_dir("aside"));
    fs::rename(&state, &aside)?;
    contains(&fails_to_start(&lab.nodes[0], &[])?, &["node1/state", "mounted", "--uninstall"])?;
    still_closed(lab, pod)?;
    fs::remove_dir_all(&state)?;
    fs::rename(&aside, &state)?;
    lab.nodes[0].start_daemon()?;
    check(lab, pod)
}

fn unreadable_record(lab: &mut Lab) -> Result<()> {
    let [pod, other] = [pods_of(lab, 0)[0], pods_of(lab, 0)[1]];
    add(lab, pod)?;
    lab.nodes[0].kill_daemon()?;
    let records = lab.nodes[0].state_dir().join("endpoints");
    fs::write(records.join(&names(&records)?[0]), "{\"containerId\":")?;
    lab.nodes[0].start_daemon()?;
    node_reaches(&lab.nodes[0], &lab.pods[pod])?;
    add(lab, other)?;
    require(lab.pods[pod].v4 != lab.pods[other].v4, "its address is not given away")?;
    del(lab, other)?;
    del(lab, pod)?;
    nothing_left(lab, 0)?;
    // Once more, and the runtime forgets it by GC.
    add(lab, pod)?;
    lab.nodes[0].kill_daemon()?;
    fs::write(records.join(&names(&records)?[0]), "{\"containerId\":")?;
    lab.nodes[0].start_daemon()?;
    let (done, said) = plugin(&lab.nodes[0], "GC", serde_json::json!({ "cni.dev/valid-attachments": [] }))?;
    require(done, &said.to_string())?;
    nothing_left(lab, 0)
}

fn mount(arguments: &[&str]) -> Result<()> {
    run(Command::new("mount").args(arguments)).map(drop)
}

fn umount(path: &str) -> Result<()> {
    run(Command::new("umount").arg(path)).map(drop)
}

fn read_only_state(lab: &mut Lab) -> Result<()> {
    let state = lab.nodes[0].state_dir().display().to_string();
    mount(&["--bind", &state, &state])?;
    mount(&["-o", "remount,bind,ro", &state])?;
    let outcome = refused(add(lab, pods_of(lab, 0)[0]), &["Read-only file system", "node1/state"]);
    let (ready, said) = plugin(&lab.nodes[0], "STATUS", serde_json::json!({}))?;
    umount(&state)?;
    outcome?;
    require(!ready && said["code"] == 50, &format!("STATUS: {said}"))?;
    contains(&said.to_string(), &["node1/state", "Read-only"])?;
    nothing_left(lab, 0)?;
    add(lab, pods_of(lab, 0)[0])
}

fn full_state(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    let state = lab.nodes[0].state_dir().display().to_string();
    fs::remove_dir_all(&state)?;
    fs::create_dir(&state)?;
    mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs", &state])?;
    let held = (|| {
        // A node that begins anew: without a state there must be no pins either.
        run(Command::new("rm").args(["-r", &lab.nodes[0].pins().display().to_string()]))?;
        lab.nodes[0].start_daemon()?;
        let ballast = Path::new(&state).join("ballast");
        let _ = fs::write(&ballast, vec![0; 256 << 10]);
        refused(add(lab, pods_of(lab, 0)[0]), &["No space left on device", "node1/state/endpoints"])?;
        // A change that needs a number: a successor could not read the kernel's tables without it.
        let late = "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {name: late}\n\
                    spec: {policyID: 78, namespaces: [late], podCIDRs: [10.78.0.0/20]}\n";
        let change = format!("{}---\n{late}", lab.objects.read("web.yaml")?);
        lab.objects.write("web.yaml", &change)?;
        until_refused(&lab.nodes[0], "No space left on device")?;
        fs::remove_file(&ballast)?;
        until_content(&lab.nodes[0])?;
        nothing_left(lab, 0)?;
        add(lab, pods_of(lab, 0)[0])
    })();
    lab.nodes[0].stop_daemon()?;
    umount(&state)?;
    held
}

fn foreign_pins(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let node = &lab.nodes[0];
    let pins = node.pins().display().to_string();
    lab.nodes[0].kill_daemon()?;
    let known = set_layout(&lab.nodes[0], |version| version + 7)?;
    contains(&fails_to_start(&lab.nodes[0], &[])?, &[&pins, "layout version", "drain", "--uninstall"])?;
    still_closed(lab, pod)?;
    set_layout(&lab.nodes[0], |_| known)?;
    lab.nodes[0].start_daemon()?;
    check(lab, pod)?;
    lab.nodes[0].kill_daemon()?;
    reconfigure(&lab.nodes[0], &pins, "/run/lab/no-bpffs")?;
    contains(&fails_to_start(&lab.nodes[0], &[])?, &["/run/lab/no-bpffs", "mount -t bpf"])?;
    still_closed(lab, pod)
}

fn no_uplink(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    reconfigure(&lab.nodes[0], "uplinks: [eth0]", "uplinks: [eth9]")?;
    contains(&fails_to_start(&lab.nodes[0], &[])?, &["eth9", "uplinks"])?;
    reconfigure(&lab.nodes[0], "uplinks: [eth9]", "uplinks: []")?;
    for family in ["-4", "-6"] {
        lab.nodes[0].netns.ip(&format!("{family} route del default"))?;
    }
    contains(&fails_to_start(&lab.nodes[0], &[])?, &["no uplink", "default route"])
}

fn without_ipv4(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    lab.nodes[0].netns.ip("address del 172.30.1.2/24 dev eth0")?;
    lab.nodes[0].start_daemon()?;
    until_refused(&lab.nodes[0], "no IPv4 address to take the BGP identifier from")?;
    lab.nodes[0].netns.ip("address add 172.30.1.2/24 dev eth0")?;
    lab.nodes[0].netns.ip("route add default via 172.30.1.1")?;
    until_content(&lab.nodes[0])?;
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)
}

fn late_ipv6(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    lab.nodes[0].netns.ip("address del fd00:30:1::2/64 dev eth0")?;
    lab.nodes[0].start_daemon()?;
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    lab.nodes[0].netns.ip("address add fd00:30:1::2/64 dev eth0 nodad")?;
    lab.nodes[0].netns.ip("route replace default via fd00:30:1::1")?;
    lab.bird.wait_established(&["n1v6"], LATER)?;
    let v6 = lab.pods[pod].v6;
    until("the router knows the pod's IPv6 block", LATER, || {
        Ok(lab.bird.routes("n1v6")?.iter().any(|r| r.prefix.contains(v6.into())).then_some(()))
    })?;
    node_reaches(&lab.nodes[0], &lab.pods[pod])
}

fn port_taken(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    let squatter = lab.nodes[0].netns.run(|| Ok(std::net::TcpListener::bind("0.0.0.0:179")?))?;
    lab.nodes[0].start_daemon()?;
    until_refused(&lab.nodes[0], "0.0.0.0:179 is taken")?;
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    del(lab, pod)?;
    drop(squatter);
    until_content(&lab.nodes[0])?;
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)
}

fn room_for_connections(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    let room = |node: &Node, map: &str| -> Result<u32> {
        let info = MapInfo::from_pin(node.pins().join("maps").join(map));
        Ok(info.map_err(|e| Error::Unmet(format!("{map}: {e}")))?.max_entries())
    };
    require(room(&lab.nodes[0], "CONNTRACK")? == 131_072, "the default")?;
    lab.nodes[0].stop_daemon()?;
    reconfigure(&lab.nodes[0], "log: info", "log: info\nconntrackEntries: 65536")?;
    let said = fails_to_start(&lab.nodes[0], &[])?;
    contains(&said, &["CONNTRACK", "conntrackEntries", "131072", "65536", "former sizes", "--uninstall"])?;
    still_closed(lab, pod)?;
    reconfigure(&lab.nodes[0], "conntrackEntries: 65536", "conntrackEntries: 0")?;
    contains(&fails_to_start(&lab.nodes[0], &[])?, &["bulkheadd.yaml", "conntrackEntries", "1024"])?;
    still_closed(lab, pod)?;
    require(room(&lab.nodes[0], "CONNTRACK")? == 131_072, "what is in force stays")?;
    reconfigure(&lab.nodes[0], "conntrackEntries: 0", "conntrackEntries: 131072")?;
    lab.nodes[0].start_daemon()?;
    check(lab, pod)?;
    // From the beginning, as the message says.
    lab.pods[pod].del(&lab.nodes[0])?;
    lab.nodes[0].stop_daemon()?;
    let (code, said) = daemon_run(&lab.nodes[0], &["--uninstall"])?;
    require(code == Some(0), &said)?;
    reconfigure(&lab.nodes[0], "conntrackEntries: 131072", "conntrackEntries: 65536")?;
    lab.nodes[0].start_daemon()?;
    require(room(&lab.nodes[0], "CONNTRACK")? == 65_536, "as configured")?;
    add(lab, pod)?;
    check(lab, pod)?;
    still_closed(lab, pod)
}

fn wrong_configuration(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    let said = |node: &Node, from: &str, to: &str| -> Result<String> {
        reconfigure(node, from, to)?;
        let said = fails_to_start(node, &[])?;
        reconfigure(node, to, from)?;
        Ok(said)
    };
    let node = &lab.nodes[0];
    contains(&said(node, "log: info", "log: \"=,=\"")?, &["log"])?;
    contains(
        &said(node, "podCIDRs: [10.64.0.0/16", "podCIDRs: [10.64.0.0/33")?,
        &["bulkheadd.yaml", "podCIDRs"],
    )?;
    contains(&said(node, "/run/lab/objects", "/run/lab/nowhere")?, &["/run/lab/nowhere", "objects"])?;
    // The claims' folder is a file.
    fs::write(lab_dir("file"), "")?;
    contains(&said(node, "/run/lab/blocks", "/run/lab/file")?, &["/run/lab/file"])?;
    if !Path::new(BPFFS).exists() {
        return unmet("the lab has no bpffs");
    }
    lab.nodes[0].start_daemon()
}
