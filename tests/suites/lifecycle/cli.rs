//! Every command of the command line, with a daemon and without.

use crate::support::*;
use bulkhead_lab::{Lab, Result, programs};
use std::process::{Command, Stdio};

pub const CASES: &[Case] = &[
    ("every command answers, as a table and as JSON, and says so when nobody is there", every_command),
    ("a reader that has seen enough is no error and no panic", closed_pipes),
];

const COMMANDS: [&[&str]; 9] = [
    &["status"],
    &["endpoints"],
    &["partitions"],
    &["drops"],
    &["explain", "172.30.9.2", "10.65.0.1", "--port", "20880"],
    &["policy", "generations"],
    &["policy", "rules"],
    &["bgp", "peers"],
    &["bgp", "routes"],
];

/// Exit code, output, errors.
fn bulkhead(lab: &Lab, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = Command::new(programs::find("bulkhead")?)
        .arg("--socket")
        .arg(lab.nodes[0].socket())
        .args(arguments)
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

fn every_command(lab: &mut Lab) -> Result<()> {
    let pod = index(lab, "payments/db-0");
    add(lab, pod)?;
    for arguments in COMMANDS {
        let (code, table, said) = bulkhead(lab, arguments)?;
        require(code == Some(0) && !table.is_empty(), &format!("{arguments:?}: {code:?} {said}"))?;
        let (code, json, said) = bulkhead(lab, &[arguments, &["-o", "json"]].concat())?;
        require(code == Some(0), &format!("{arguments:?} -o json: {code:?} {said}"))?;
        let parsed = serde_json::from_str::<serde_json::Value>(&json);
        require(parsed.is_ok(), &format!("{arguments:?} -o json: {parsed:?}"))?;
    }
    let (code, _, said) = bulkhead(lab, &["explain", "shop/nobody", "10.65.0.1", "--port", "1"])?;
    require(code == Some(1), &format!("a refusal is 1: {said}"))?;
    contains(&said, &["shop/nobody"])?;
    require(bulkhead(lab, &["explain", "10.65.0.1", "10.65.0.2"])?.0 == Some(2), "wrong usage is 2")?;
    let (code, json, _) = bulkhead(lab, &["bgp", "drain-routes", "-o", "json"])?;
    require(code == Some(0) && serde_json::from_str::<serde_json::Value>(&json).is_ok(), &json)?;
    lab.nodes[0].kill_daemon()?;
    for arguments in COMMANDS.into_iter().chain([["bgp", "drain-routes"].as_slice()]) {
        let (code, out, said) = bulkhead(lab, arguments)?;
        require(
            code == Some(2) && out.is_empty(),
            &format!("{arguments:?} without a daemon: {code:?} {out}"),
        )?;
        contains(&said, &["bulkheadd.sock", "does bulkheadd run"])?;
    }
    Ok(())
}

fn closed_pipes(lab: &mut Lab) -> Result<()> {
    let closed = |arguments: &[&str]| -> Result<(Option<i32>, bool)> {
        let mut child = Command::new(programs::find("bulkhead")?)
            .arg("--socket")
            .arg(lab.nodes[0].socket())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait()?;
        Ok((status.code(), status.success()))
    };
    for arguments in COMMANDS {
        require(closed(arguments)?.1, &format!("{arguments:?} into a closed pipe"))?;
    }
    // Errors, too, may have no reader. 101 is a panic.
    require(
        closed(&["explain", "shop/nobody", "10.65.0.1", "--port", "1"])?.0 == Some(1),
        "a refusal, unread",
    )?;
    require(closed(&["--socket", "/nowhere", "status"])?.0 == Some(2), "no answer, unread")?;
    require(closed(&["--help"])?.0 == Some(0), "help, unread")
}
