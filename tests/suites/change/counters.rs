//! What rules have decided on, as the command line tells it: live pods, and a daemon that is killed in between.

use super::{CALL, LOST, node, now, ours, pods};
use bulkhead_api::messages::RuleCountInfo;
use bulkhead_lab::{Error, Lab, Result, unmet, wait::until_true};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
};

/// What lets web's pods call payments'; decided by the called pod's node.
const CALLS: &str = "Partition/payments ingress \"calls-from-web\"";
const METRICS: &str = "Partition/payments ingress \"metrics-by-nodes\"";
const SENT: usize = 50_000;

fn rules(lab: &Lab, more: &[&str]) -> Result<Vec<RuleCountInfo>> {
    let text = node(lab).cli(&[&["policy", "rules", "-o", "json"], more].concat())?;
    serde_json::from_str(&text).map_err(|source| Error::Json { what: "policy rules".into(), source })
}

fn rule(lab: &Lab, name: &str) -> Result<RuleCountInfo> {
    match rules(lab, &[])?.into_iter().find(|r| r.rule.name == name) {
        Some(rule) => Ok(rule),
        None => unmet(format!("{name} is not listed")),
    }
}

/// From web/front-0 to payments/db-0, read to the end.
fn transfer(lab: &Lab) -> Result<()> {
    let (front, db) = pods(lab)?;
    let address = SocketAddr::new(db.v4.into(), LOST);
    let listener = db.netns.run(|| Ok(TcpListener::bind(address)?))?;
    let mut caller = front.netns.run(|| Ok(TcpStream::connect_timeout(&address, CALL)?))?;
    let (mut called, _) = listener.accept()?;
    caller.write_all(&vec![b'x'; SENT])?;
    drop(caller);
    let mut received = Vec::new();
    called.read_to_end(&mut received)?;
    if received.len() == SENT { Ok(()) } else { unmet(format!("{} bytes arrived", received.len())) }
}

pub fn rules_count_what_passed(lab: &mut Lab) -> Result<()> {
    let before = rule(lab, CALLS)?;
    transfer(lab)?;
    until_true("the rule counts the transfer", super::DEADLINE, || {
        let after = rule(lab, CALLS)?;
        let bytes = after.bytes - before.bytes;
        Ok(after.connections == before.connections + 1
            && after.packets > before.packets + 6
            && bytes > SENT as u64
            && bytes < 2 * SENT as u64
            && after.last_hit.is_some())
    })?;
    let (table, name) = (node(lab).cli(&["policy", "rules"])?, format!("{CALLS}  (payments.yaml"));
    match table.lines().find(|line| line.contains(&name)) {
        Some(line) if line.contains(" ago") => Ok(()),
        line => unmet(format!("{line:?} of\n{table}")),
    }
}

pub fn rules_never_hit_are_listed(lab: &mut Lab) -> Result<()> {
    transfer(lab)?;
    let never = rules(lab, &["--never-hit", "--partition", "payments"])?;
    let has = |name: &str| never.iter().any(|r| r.rule.name == name);
    if has(CALLS) || !has(METRICS) || never.iter().any(|r| r.packets != 0 || r.last_hit.is_some()) {
        return unmet(format!("never hit: {never:?}"));
    }
    if let Some(other) = never.iter().find(|r| !r.rule.name.starts_with("Partition/payments ")) {
        return unmet(format!("of another partition: {other:?}"));
    }
    let table = node(lab).cli(&["policy", "rules", "--never-hit"])?;
    match table.lines().find(|line| line.contains(METRICS)) {
        Some(line) if line.contains("never") => Ok(()),
        line => unmet(format!("{line:?} of\n{table}")),
    }
}

pub fn a_refusal_counts_and_all_outlives_the_daemon(lab: &mut Lab) -> Result<()> {
    const REFUSES: &str = "Partition/payments ingress \"no-debug-port\"";
    // Web lets 8088 out; payments denies it by name.
    now(lab, 8088, false)?;
    transfer(lab)?;
    let before = (rule(lab, CALLS)?, rule(lab, REFUSES)?);
    if before.1.packets == 0 || before.1.connections != 0 || before.1.last_hit.is_none() {
        return unmet(format!("{:?}", before.1));
    }
    let n = ours(lab);
    lab.nodes[n].kill_daemon()?;
    transfer(lab)?;
    lab.nodes[n].start_daemon()?;
    lab.nodes[n].wait_ready()?;
    let after = (rule(lab, CALLS)?, rule(lab, REFUSES)?);
    if after.0.connections == before.0.connections + 1
        && after.0.bytes > before.0.bytes + SENT as u64
        && after.1.packets >= before.1.packets
    {
        return Ok(());
    }
    unmet(format!("{before:?} became {after:?}"))
}
