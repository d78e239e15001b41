//! What the plugin does while nobody answers, and what becomes of it.

use crate::support::*;
use bulkhead_lab::{Lab, Result};
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt};

pub const CASES: &[Case] = &[
    (
        "with the daemon down ADD and CHECK ask to be tried again, STATUS says 50, DEL is kept and carried out",
        verbs,
    ),
    ("a queued DEL that cannot be read is told once by name and stops no other", unreadable_queue),
    ("the socket's file may vanish: the daemon serves it again, and stops well", socket_vanishes),
];

fn verbs(lab: &mut Lab) -> Result<()> {
    let [kept, gone] = [pods_of(lab, 0)[0], pods_of(lab, 0)[1]];
    add(lab, kept)?;
    add(lab, gone)?;
    lab.nodes[0].kill_daemon()?;
    refused(add(lab, pods_of(lab, 0)[2]), &["\"code\": 11", "bulkheadd does not answer"])?;
    refused(check(lab, kept), &["\"code\": 11"])?;
    for (verb, code) in [("STATUS", 50), ("GC", 11)] {
        let (done, said) = plugin(&lab.nodes[0], verb, json!({ "cni.dev/valid-attachments": [] }))?;
        require(!done && said["code"] == code, &format!("{verb}: {said}"))?;
    }
    del(lab, gone)?;
    del(lab, gone)?;
    require(names(&lab.nodes[0].state_dir().join("pending-del"))?.len() == 1, "one DEL is queued")?;
    lab.nodes[0].start_daemon()?;
    require(endpoints(&lab.nodes[0])?.len() == 1, "the queued DEL was carried out")?;
    require(plugin(&lab.nodes[0], "STATUS", json!({}))?.0, "STATUS is content")?;
    check(lab, kept)?;
    // The same container comes again: a DEL that waits for it must not take the new interface away.
    add(lab, gone)?;
    lab.nodes[0].kill_daemon()?;
    del(lab, gone)?;
    lab.nodes[0].start_daemon()?;
    add(lab, gone)?;
    check(lab, gone)?;
    let valid = json!([{ "containerID": "web-front-0-sandbox", "ifname": "eth0" }]);
    let (done, said) = plugin(&lab.nodes[0], "GC", json!({ "cni.dev/valid-attachments": valid }))?;
    require(done, &format!("GC: {said}"))?;
    require(
        endpoints(&lab.nodes[0])?.iter().all(|e| e.pod.name == "front-0"),
        "GC left what is valid alone",
    )?;
    let (done, _) = plugin(&lab.nodes[0], "GC", json!({ "cni.dev/valid-attachments": [] }))?;
    require(done, "GC of all")?;
    nothing_left(lab, 0)
}

fn unreadable_queue(lab: &mut Lab) -> Result<()> {
    let pod = pods_of(lab, 0)[0];
    add(lab, pod)?;
    lab.nodes[0].kill_daemon()?;
    del(lab, pod)?;
    let broken = lab.nodes[0].state_dir().join("pending-del/aaa-eth0.json");
    fs::write(&broken, "{")?;
    lab.nodes[0].start_daemon()?;
    require(endpoints(&lab.nodes[0])?.is_empty(), "the readable one was carried out")?;
    // Two looks at the queue later.
    std::thread::sleep(std::time::Duration::from_secs(11));
    let told = fs::read_to_string(lab.nodes[0].log())?.matches("aaa-eth0.json").count();
    require(told == 1, &format!("the unreadable DEL was told {told} times"))?;
    fs::remove_file(&broken)?;
    nothing_left(lab, 0)
}

fn socket_vanishes(lab: &mut Lab) -> Result<()> {
    fs::remove_file(lab.nodes[0].socket())?;
    bulkhead_lab::until("the socket is served again", LATER, || status(&lab.nodes[0]).map(Some))?;
    let mode = fs::metadata(lab.nodes[0].socket())?.permissions().mode();
    require(mode & 0o777 == 0o600, "the socket is root's")?;
    fs::remove_file(lab.nodes[0].socket())?;
    lab.nodes[0].stop_daemon()
}
