//! Services over the life of the daemon: updates under calls, kills, pins of before, the end.

use crate::site::{CLIENT, Case, FAR, NEAR, Site, at, require, service};
use bulkhead_lab::{Result, link::run, programs};
use std::{
    fs,
    io::ErrorKind,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

pub const CASES: &[(&str, Case)] = &[
    ("no call meets a service half changed", updates),
    ("services go on without the daemon, and the next one goes on with them", killed),
    ("a socket sees the service that it called, whatever daemons come and go meanwhile", callers),
    ("pins of a daemon that knew no services are adopted, and its pods get them", older_pins),
    ("a pod that is gone leaves nothing, and uninstalling takes the hooks away", uninstalled),
];

const TCP: &str = "protocol: TCP, port: 80";

fn web(site: &Site, endpoints: &[&str]) -> Result<()> {
    site.set(&[service("web", 1, TCP, ""), site.slice("web", false, endpoints)?])
}

/// Between two sets, of which every call must find one.
fn updates(site: &mut Site) -> Result<()> {
    web(site, &[NEAR])?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR])?;
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = thread::scope(|scope| {
        let caller = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                site.call(CLIENT, at(1, false))?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let changed = (|| -> Result<()> {
            for round in 0..20 {
                let endpoints: &[&str] = if round % 2 == 0 { &[FAR] } else { &[NEAR, "shop/plain-1"] };
                web(site, endpoints)?;
                site.until_answered_by(CLIENT, at(1, false), endpoints)?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let called = caller.join().expect("no panic");
        changed.and(called)
    });
    failed?;
    require(calls.load(Ordering::Relaxed) > 100, "hardly anybody has called")
}

fn killed(site: &mut Site) -> Result<()> {
    web(site, &[NEAR])?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR])?;
    site.lab.nodes[0].kill_daemon()?;
    for _ in 0..8 {
        require(site.call(CLIENT, at(1, false))? == NEAR, "another answers")?;
    }
    web(site, &[FAR])?;
    require(site.call(CLIENT, at(1, false))? == NEAR, "nobody was there to change it")?;
    site.lab.nodes[0].start_daemon()?;
    site.until_answered_by(CLIENT, at(1, false), &[FAR])?;
    // What is gone meanwhile goes.
    site.lab.nodes[0].kill_daemon()?;
    site.set(&[])?;
    site.lab.nodes[0].start_daemon()?;
    let gone = |site: &Site| site.call_error(CLIENT, at(1, false)).is_ok();
    bulkhead_lab::wait::until_true("the service is gone", crate::site::SOON, || Ok(gone(site)))
}

/// Also where the daemon before marked no sockets.
fn callers(site: &mut Site) -> Result<()> {
    web(site, &[NEAR])?;
    let to = at(1, false);
    site.until_answered_by(CLIENT, to, &[NEAR])?;
    let connected = |site: &Site| -> Result<TcpStream> {
        let stream = site.netns(CLIENT)?.run(|| Ok(TcpStream::connect(to)?))?;
        require(stream.peer_addr()? == to, "the peer is another than was called")?;
        Ok(stream)
    };
    let before = connected(site)?;
    site.lab.nodes[0].kill_daemon()?;
    fs::remove_file(site.lab.nodes[0].pins().join("maps/SERVICE_CALLER"))?;
    site.lab.nodes[0].start_daemon()?;
    let marked = connected(site)?;
    require(before.peer_addr()? == to, "a socket of before shows its backend")?;
    site.lab.nodes[0].kill_daemon()?;
    site.lab.nodes[0].start_daemon()?;
    require(marked.peer_addr()? == to, "a socket that was marked shows its backend")
}

/// As an older daemon leaves them: no maps and links of services, records without the namespace's cookie.
fn older_pins(site: &mut Site) -> Result<()> {
    site.lab.nodes[0].stop_daemon()?;
    let node = &site.lab.nodes[0];
    let maps = [
        "POD_NETNS",
        "NODE_ADDRESS",
        "FRONTEND",
        "BACKEND",
        "MEMBER",
        "AFFINITY",
        "TRANSLATED",
        "SERVICE_CALLER",
    ];
    for map in maps {
        fs::remove_file(node.pins().join("maps").join(map))?;
    }
    let mut links = 0;
    for link in fs::read_dir(node.pins().join("links"))?.flatten() {
        if link.file_name().to_string_lossy().starts_with("service_") {
            fs::remove_file(link.path())?;
            links += 1;
        }
    }
    require(links == 8, &format!("{links} hooks were attached"))?;
    for record in fs::read_dir(node.state_dir().join("endpoints"))?.flatten() {
        let text = fs::read_to_string(record.path())?;
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("a record");
        require(value["netnsCookie"].as_u64().is_some_and(|c| c != 0), "a record without its cookie")?;
        value.as_object_mut().expect("a record").remove("netnsCookie");
        fs::write(record.path(), value.to_string())?;
    }
    web(site, &[NEAR, FAR])?;
    site.lab.nodes[0].start_daemon()?;
    site.until_answered_by(CLIENT, at(1, false), &[NEAR, FAR])
}

/// A service without a backend is refused at once wherever the hooks are: a process whose pod is gone has no network at all.
fn uninstalled(site: &mut Site) -> Result<()> {
    web(site, &[])?;
    site.until_fails(CLIENT, at(1, false), ErrorKind::ConnectionRefused)?;
    let node = &site.lab.nodes[0];
    site.lab.pod(CLIENT)?.del(node)?;
    let error = site.call_error(CLIENT, at(1, false))?;
    require(error.kind() == ErrorKind::NetworkUnreachable, &format!("of a pod that is gone: {error}"))?;
    site.until_fails(NEAR, at(1, false), ErrorKind::ConnectionRefused)?;
    site.lab.nodes[0].stop_daemon()?;
    let node = &site.lab.nodes[0];
    let configuration = node.log().with_file_name("bulkheadd.yaml");
    let program = programs::find("bulkheadd")?;
    run(node.netns.command(program).arg("--config").arg(&configuration).arg("--uninstall"))?;
    let error = site.call_error(NEAR, at(1, false))?;
    require(error.kind() == ErrorKind::NetworkUnreachable, &format!("after uninstalling: {error}"))
}
