//! How a daemon ends: stopped under traffic, drained, uninstalled; and what it costs while it idles.

use crate::support::*;
use bulkhead_lab::{Lab, Result, enter::BPFFS, routes::RouteWatch, unmet, until};
use std::{fs, path::Path, process::Stdio, thread, time::Duration};

pub const CASES: &[Case] = &[
    ("SIGTERM under ADD and DEL ends what has begun; the route stays in the router", stopped_at_work),
    (
        "drain-routes withdraws, stays so while pods come and go and over a restart, until it is undone",
        drained,
    ),
    ("--uninstall leaves nothing, also of a state that cannot be read", uninstalled),
    ("a daemon whose log has no reader any more lives on", unread_log),
    ("figures: an idle daemon", idle),
];

fn stopped_at_work(lab: &mut Lab) -> Result<()> {
    let pods = pods_of(lab, 0);
    let stays = pods[0];
    add(lab, stays)?;
    let address = lab.pods[stays].v4.into();
    let known =
        |lab: &Lab| Ok(lab.bird.routes("n1v4")?.iter().any(|r| r.prefix.contains(address)).then_some(()));
    until("the router knows the block", SOON, || known(lab))?;
    let watch = RouteWatch::start(&lab.router)?;
    for round in 0..6u64 {
        let pid = lab.nodes[0].daemon_pid().expect("it runs");
        let node = &lab.nodes[0];
        let others: Vec<_> = lab.pods.iter_mut().filter(|p| p.node == 0).skip(1).collect();
        let outcomes: Vec<_> = thread::scope(|scope| {
            let runs: Vec<_> = others
                .into_iter()
                .map(|pod| {
                    scope.spawn(move || if round % 2 == 0 { pod.add(node).map(drop) } else { pod.del(node) })
                })
                .collect();
            thread::sleep(Duration::from_millis(30 + 9 * round));
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
            runs.into_iter().map(|r| r.join().expect("no panic")).collect()
        });
        lab.nodes[0].stop_daemon()?;
        // While nobody is there to clean up: every pod is whole or not begun.
        let wired = lab.nodes[0].interfaces()?.iter().filter(|i| i.starts_with("bh")).count();
        let records = names(&lab.nodes[0].state_dir().join("endpoints"))?.len();
        require(wired == records, &format!("{wired} interfaces and {records} records: {outcomes:?}"))?;
        maps_hold(&lab.nodes[0], records)?;
        node_reaches(&lab.nodes[0], &lab.pods[stays])?;
        lab.nodes[0].start_daemon()?;
    }
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
    until("the restart is over", LATER, || Ok(lab.bird.restarts_over(&["n1v4", "n1v6"])?.then_some(())))?;
    let gone = watch.stop()?;
    require(!gone.iter().any(|p| p.contains(address)), &format!("{gone:?} left the router"))
}

fn drained(lab: &mut Lab) -> Result<()> {
    let pods = pods_of(lab, 0);
    add(lab, pods[0])?;
    let routes = |lab: &Lab| Ok::<_, bulkhead_lab::Error>(lab.bird.routes("n1v4")?.len());
    until("a route", SOON, || Ok((routes(lab)? == 1).then_some(())))?;
    lab.nodes[0].cli(&["node", "drain-routes", "--all", "--withdraw-after", "0"])?;
    require(routes(lab)? == 0, "withdrawn when the command returns")?;
    add(lab, pods[1])?;
    require(routes(lab)? == 0, "no route comes with a pod")?;
    lab.nodes[0].stop_daemon()?;
    lab.nodes[0].start_daemon()?;
    lab.bird.wait_established(&["n1v4"], LATER)?;
    require(routes(lab)? == 0, "no route comes with the next daemon")?;
    lab.nodes[0].cli(&["node", "drain-routes", "--undo"])?;
    until("both routes are back", LATER, || Ok((routes(lab)? == 2).then_some(())))
}

fn uninstalled(lab: &mut Lab) -> Result<()> {
    for broken in [false, true] {
        let pods = pods_of(lab, 0);
        for pod in &pods {
            add(lab, *pod)?;
        }
        lab.nodes[0].stop_daemon()?;
        let state = lab.nodes[0].state_dir();
        if broken {
            fs::write(state.join("interner.json"), "{")?;
            let record = names(&state.join("endpoints"))?.remove(0);
            fs::write(state.join("endpoints").join(record), "{")?;
        }
        let (code, said) = daemon_run(&lab.nodes[0], &["--uninstall"])?;
        require(code == Some(0), &said)?;
        let left: Vec<_> = lab.nodes[0]
            .interfaces()?
            .into_iter()
            .filter(|i| i.starts_with("bh") || i.starts_with("bi"))
            .collect();
        require(left.is_empty(), &format!("interfaces: {left:?}"))?;
        for family in ["-4", "-6"] {
            let routes = bulkhead_lab::link::ip_output(
                Some(&lab.nodes[0].netns),
                &format!("{family} route show proto 66"),
            )?;
            require(routes.is_empty(), &routes)?;
        }
        require(!Path::new(BPFFS).join("node1").exists(), "pins are left")?;
        require(!state.exists(), "the state is left")?;
        require(claims(&lab.nodes[0])?.is_empty(), "claims are left")?;
        require(daemon_run(&lab.nodes[0], &["--uninstall"])?.0 == Some(0), "again")?;
        lab.nodes[0].start_daemon()?;
    }
    nothing_left(lab, 0)
}

fn unread_log(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].stop_daemon()?;
    let mut daemon = lab.nodes[0]
        .netns
        .command(bulkhead_lab::programs::find("bulkheadd")?)
        .arg("--config")
        .arg(configuration(&lab.nodes[0]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(daemon.stderr.take());
    let lives = until("it serves", SOON, || status(&lab.nodes[0]).map(Some)).and_then(|_| {
        let pod = pods_of(lab, 0)[0];
        add(lab, pod)?;
        lab.objects.write("web.yaml", "kind: [")?;
        until_refused(&lab.nodes[0], "web.yaml")?;
        del(lab, pod)
    });
    let ended = daemon.try_wait()?;
    daemon.kill()?;
    daemon.wait()?;
    lives?;
    require(ended.is_none(), &format!("ended: {ended:?}"))
}

/// Ticks of CPU (user and system) and resident KiB of a process.
fn cost(pid: u32) -> Result<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let Some(rss) =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
    else {
        return unmet("the process has no VmRSS");
    };
    Ok((ticks(11) + ticks(12), rss))
}

fn idle(lab: &mut Lab) -> Result<()> {
    for pod in pods_of(lab, 0) {
        add(lab, pod)?;
    }
    lab.bird.wait_established(&["n1v4", "n1v6"], LATER)?;
    let pid = lab.nodes[0].daemon_pid().expect("it runs");
    let (before, _) = cost(pid)?;
    thread::sleep(Duration::from_secs(12));
    let (after, rss) = cost(pid)?;
    println!("idle for 12 s: {} ms of CPU; {:.1} MiB resident", (after - before) * 10, rss as f64 / 1024.0);
    require(after - before < 60, "an idle daemon takes less than a twentieth of a core")
}
