//! Every command of the command line, with a daemon and without.

use crate::support::*;
use bulkhead_api::messages::{Explanation, Status};
use bulkhead_lab::{Lab, Result, programs, unmet};
use std::{
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

pub const CASES: &[Case] = &[
    ("every command answers, as a table and as JSON, and says so when nobody is there", every_command),
    (
        "explain tells the connection that lives of a flow, the bandwidth of its ends, and network groups",
        explained,
    ),
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
    let number = lab.nodes[0].get::<Status>("/v1/status")?.generation.to_string();
    let (code, table, said) = bulkhead(lab, &["policy", "generations", &number])?;
    require(code == Some(0), &format!("generation {number}: {said}"))?;
    contains(&table, &["\n  Partition/web\n", "\n  NetworkGroup/"])?;
    let (code, _, said) = bulkhead(lab, &["policy", "generations", "4000000000"])?;
    require(code == Some(1), "a generation that is not kept is refused")?;
    contains(&said, &["4000000000", "policy generations"])?;
    require(bulkhead(lab, &["explain", "10.65.0.1", "10.65.0.2"])?.0 == Some(2), "wrong usage is 2")?;
    let (code, json, _) = bulkhead(lab, &["node", "drain-routes", "-o", "json"])?;
    require(code == Some(0) && serde_json::from_str::<serde_json::Value>(&json).is_ok(), &json)?;
    lab.nodes[0].kill_daemon()?;
    for arguments in COMMANDS.into_iter().chain([["node", "drain-routes"].as_slice()]) {
        let (code, out, said) = bulkhead(lab, arguments)?;
        require(
            code == Some(2) && out.is_empty(),
            &format!("{arguments:?} without a daemon: {code:?} {out}"),
        )?;
        contains(&said, &["bulkheadd.sock", "does bulkheadd run"])?;
    }
    Ok(())
}

/// What it says as JSON, after it has said it as a table, too.
fn explain(lab: &Lab, arguments: &[&str]) -> Result<(Explanation, String)> {
    let arguments = [&["explain"], arguments].concat();
    let (code, table, said) = bulkhead(lab, &arguments)?;
    require(code == Some(0), &format!("{arguments:?}: {code:?} {said}"))?;
    let (_, json, _) = bulkhead(lab, &[arguments.as_slice(), &["-o", "json"]].concat())?;
    let told = serde_json::from_str(&json);
    Ok((told.map_err(|source| bulkhead_lab::Error::Json { what: json, source })?, table))
}

fn explained(lab: &mut Lab) -> Result<()> {
    let [db, front, low] = ["payments/db-0", "web/front-0", "shop/low-0"].map(|name| index(lab, name));
    for pod in [db, front, low] {
        add(lab, pod)?;
    }
    let (db, front) = (&lab.pods[db], &lab.pods[front]);
    let flow = ["web/front-0", "payments/db-0", "--proto", "tcp", "--port", "8080"];
    let (told, table) = explain(lab, &flow)?;
    require(told.connections_found == 0, "nobody has called yet")?;
    contains(&table, &["no live connection", "(web.yaml:", "(payments.yaml:"])?;
    let file = |name: &str| lab.objects.read(name);
    let line_of = |text: &str, rule: &str| text.lines().position(|l| l.contains(rule)).map_or(0, |n| n + 1);
    let origins: Vec<_> = told.decisions.iter().map(|d| d.rule.file.clone().unwrap_or_default()).collect();
    let expected = [
        format!("web.yaml:{}", line_of(&file("web.yaml")?, "name: to-payments")),
        format!("payments.yaml:{}", line_of(&file("payments.yaml")?, "name: calls-from-web")),
    ];
    require(origins == expected, &format!("{origins:?}, not {expected:?}"))?;

    let listener = db.netns.run(|| Ok(TcpListener::bind(("::", 8080))?))?;
    let mut called = front.netns.run(|| Ok(TcpStream::connect((db.v4, 8080))?))?;
    let (mut served, _) = listener.accept()?;
    called.write_all(b"ping")?;
    served.read_exact(&mut [0; 4])?;
    served.write_all(b"pong")?;
    called.read_exact(&mut [0; 4])?;
    let (told, table) = explain(lab, &flow)?;
    let [connection] = told.connections.as_slice() else {
        return unmet(format!("one connection lives, and not {:?}", told.connections));
    };
    let own = (IpAddr::V4(front.v4), called.local_addr()?.port(), IpAddr::V4(db.v4));
    require((connection.from, connection.from_port, connection.to) == own, &format!("{connection:?}"))?;
    let is = (connection.state.as_str(), connection.path.as_str(), told.connections_found);
    require(is == ("established", "direct", 1), &format!("{connection:?}"))?;
    require(connection.packets >= 6 && connection.bytes >= 6 * 40, &format!("{connection:?}"))?;
    let admitted = connection.admitted.iter().map(|a| (a.direction.as_str(), a.generation, &a.rule));
    let decided = told.decisions.iter().map(|d| (d.direction.as_str(), told.generation, &d.rule));
    require(admitted.eq(decided), &format!("{:?}, not as {:?}", connection.admitted, told.decisions))?;
    contains(&table, &["1 live connection\n", "established", "egress in generation"])?;

    let (told, table) = explain(lab, &["shop/low-0", "web/front-0", "--port", "80"])?;
    let bandwidth = told.from.bandwidth.unwrap_or_default();
    let rate = bandwidth.egress.map(|r| (r.rate, r.origin));
    require(rate == Some((1_000_000_000, "annotation".into())), &format!("{rate:?}"))?;
    contains(
        &table,
        &["shop/low-0   class low  in 1 Gbit/s (annotation)", "web/front-0  no class   in unlimited"],
    )?;

    let (told, table) = explain(lab, &["NetworkGroup/legacy", "payments/db-0", "--port", "20880"])?;
    require(told.allowed && told.otherwise.is_empty(), &format!("{told:?}"))?;
    contains(&table, &["NetworkGroup/legacy", "dubbo-from-legacy"])?;
    let (code, _, said) = bulkhead(lab, &["explain", "NetworkGroup/nobody", "payments/db-0", "--port", "1"])?;
    require(code == Some(1), &said)?;
    contains(&said, &["there is no NetworkGroup/nobody"])
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
