//! The API server is away for long: half of the time nobody listens at its address, then nothing that is sent there is answered.

use crate::site::{Case, SOON, Site};
use bulkhead_lab::{Context, Error, Netns, Pod, Result, link::run, traffic::Connection, unmet, until};
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

pub const CASES: &[(&str, Case)] = &[(
    "an outage of the API server changes nothing on the node, and is made up for with a new token",
    outage,
)];

const EVERY: Duration = Duration::from_millis(200);
const ROUND: Duration = Duration::from_secs(20);
/// With those who answer, on a busy machine; and with those who do not.
const PATIENCE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(1)];
const DATABASE: u16 = 5432;
const OTHER: u16 = 5433;
const CATCH_UP: Duration = Duration::from_secs(180);
/// In MiB, more than before.
const MEMORY: u64 = 24;
/// Lines of a daemon whose API server goes and comes back: each watch says so once for each reason.
const LINES: usize = 100;
/// In a minute: each watch tries again after half a minute at most.
const ATTEMPTS: u64 = 80;

/// What grows where something is not bounded.
struct Spent {
    memory: u64,
    lines: usize,
    attempts: u64,
}

impl Spent {
    fn of(site: &Site) -> Result<Self> {
        let path = format!("/proc/{}/status", site.node.daemon_pid().unwrap());
        let status = fs::read_to_string(&path).during(|| path)?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        // But for those of each pod that comes and goes.
        let log = fs::read_to_string(site.node.log())?;
        let lines = log.lines().filter(|line| !line.contains("bulkhead_daemon::node::cni")).count();
        Ok(Self { memory: number(memory)? / 1024, lines, attempts: attempts(&site.node.netns)? })
    }
}

fn number(text: &str) -> Result<u64> {
    let number = text.trim().trim_end_matches(" kB").parse();
    number.map_err(|_| Error::Unmet(format!("{text} is no number")))
}

/// Connections that somebody in this namespace has asked for.
fn attempts(netns: &Netns) -> Result<u64> {
    let counters = netns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let rows: Vec<Vec<&str>> =
        counters.lines().filter_map(|line| Some(line.strip_prefix("Tcp: ")?.split(' ').collect())).collect();
    let column = rows[0].iter().position(|name| *name == "ActiveOpens").unwrap();
    number(rows[1][column])
}

fn pod(name: &str, role: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: harbour, labels: {{role: {role}}}}}\n\
         spec: {{nodeName: node1, containers: [{{name: c, image: none}}]}}\n---\n"
    )
}

const POLICY: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: harbour}\n---\n\
    apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: database, namespace: harbour}\n\
    spec:\n  podSelector: {matchLabels: {role: database}}\n  ingress: [{from: [{podSelector: {matchLabels: {role: front}}}]}]\n---\n";

struct Harbour {
    database: Pod,
    front: Pod,
    stranger: Pod,
    /// Known before, and comes and goes.
    lorry: Pod,
    listener: TcpListener,
}

impl Harbour {
    fn open(site: &Site) -> Result<Self> {
        let pods = [("database", "database"), ("front", "front"), ("stranger", "none"), ("lorry", "front")];
        let objects: String = pods.map(|(name, role)| pod(name, role)).concat();
        site.control.apply(&(POLICY.to_string() + &objects))?;
        let create = |name: &str| Pod::create(0, "harbour", name);
        let wired = |name: &str| {
            let mut pod = create(name)?;
            until(&format!("{name} is wired"), SOON, || pod.add(&site.node).map(|_| Some(())))?;
            Ok::<_, Error>(pod)
        };
        let database = wired("database")?;
        let address = SocketAddr::new(database.v4.into(), OTHER);
        let listener = database.netns.run(|| Ok(TcpListener::bind(address)?))?;
        Ok(Self {
            front: wired("front")?,
            stranger: wired("stranger")?,
            lorry: create("lorry")?,
            database,
            listener,
        })
    }

    fn reach(&self, from: &Pod, allowed: bool) -> Result<()> {
        let to = SocketAddr::new(self.database.v4.into(), OTHER);
        let patience = PATIENCE[usize::from(!allowed)];
        let begin = Instant::now();
        let reached = from.netns.run(|| Ok(TcpStream::connect_timeout(&to, patience).is_ok()))?;
        if reached != allowed {
            return unmet(format!("{} reaches the database: {reached}", from.reference()));
        }
        if reached {
            println!("{} reaches it within {:?}", from.reference(), begin.elapsed());
            self.listener.accept()?;
        }
        Ok(())
    }

    /// What must hold at any time of the outage.
    fn hold(&mut self, site: &Site) -> Result<()> {
        self.lorry.add(&site.node)?;
        for (pod, allowed) in [(&self.lorry, true), (&self.front, true), (&self.stranger, false)] {
            self.reach(pod, allowed)?;
        }
        self.database.check(&site.node)?;
        self.lorry.del(&site.node)?;
        let mut unknown = Pod::create(0, "harbour", "unknown")?;
        match unknown.add(&site.node) {
            Err(Error::Command { stderr, .. }) if stderr.contains("is not known yet") => Ok(()),
            other => unmet(format!("a pod of which nobody has told: {other:?}")),
        }
    }
}

/// From now on nothing that is sent to the API server is answered, or again.
fn silence(site: &Site, silent: bool) -> Result<()> {
    let table = if silent {
        "add table inet outage { chain input { type filter hook input priority 0; tcp dport 6443 iifname != \"lo\" drop; }; }"
    } else {
        "delete table inet outage"
    };
    run(site.control.netns.command("nft").arg(table)).map(drop)
}

/// One round; `BULKHEAD_AWAY_MINUTES=60` for as many minutes.
fn outage(site: &mut Site) -> Result<()> {
    let minutes = std::env::var("BULKHEAD_AWAY_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let away = Duration::from_secs(60 * minutes);
    site.renew_token("10m")?;
    site.node.kill_daemon()?;
    site.node.start_daemon()?;
    let mut harbour = Harbour::open(site)?;
    let address = SocketAddr::new(harbour.database.v4.into(), DATABASE);
    let connection = Connection::start(&harbour.front.netns, &harbour.database.netns, address, EVERY)?;
    let front = site.control.kubectl(&["-n", "harbour", "get", "pod", "front", "-o", "json"])?;
    site.revoke_token()?;
    site.wait_sound()?;
    let before = Spent::of(site)?;

    site.control.kill_apiserver()?;
    let begin = Instant::now();
    site.wait_told("cannot watch NetworkPolicy objects")?;
    let (mut most, mut silent) = (before.memory, false);
    loop {
        let heard = connection.heard();
        harbour.hold(site)?;
        let spent = Spent::of(site)?;
        most = most.max(spent.memory);
        let lines = spent.lines - before.lines;
        println!(
            "after {:?}: {} MiB, {lines} lines, {} attempts, {} octets",
            begin.elapsed(),
            spent.memory,
            spent.attempts - before.attempts,
            connection.heard()
        );
        if begin.elapsed() >= away && silent {
            break;
        }
        if begin.elapsed() >= away / 2 && !silent {
            silence(site, true)?;
            silent = true;
        }
        if minutes > 0 {
            thread::sleep(ROUND);
        }
        if connection.heard() == heard {
            return unmet("the connection that there was says nothing any more");
        }
    }
    let report = connection.finish()?;
    if report.lost > 0 || report.received != report.sent {
        return unmet(format!("the connection that there was: {report:?}"));
    }
    let after = Spent::of(site)?;
    let (lines, attempts) = (after.lines - before.lines, after.attempts - before.attempts);

    // Nobody tells of it.
    let mut strange: Value = serde_json::from_str(&front).unwrap();
    strange["metadata"]["labels"]["role"] = "none".into();
    site.control.put([("pods/harbour/front".to_string(), strange)])?;
    site.control.compact()?;
    silence(site, false)?;
    site.control.start_apiserver()?;
    let back = Instant::now();
    // The token has expired; whoever writes a new one had to wait, too.
    site.wait_told("Unauthorized")?;
    site.renew_token("2h")?;
    // A watch begins anew after half a minute at most, and a file of a token is read each minute.
    let front = harbour.front.v4.to_string();
    until("the change of that time is in force", CATCH_UP, || {
        Ok((!site.explain(&front, &harbour.database.v4.to_string(), OTHER)?.allowed).then_some(()))
    })?;
    site.wait_sound()?;
    let caught_up = Spent::of(site)?;
    println!(
        "{minutes} min: {} MiB before, at most {most} MiB, {} MiB when it had caught up after {:?}; {lines} lines logged and {attempts} \
         connections asked for meanwhile, {} lines after; {} octets of the connection, none lost",
        before.memory,
        caught_up.memory,
        back.elapsed(),
        caught_up.lines - after.lines,
        report.received,
    );
    println!("{}", site.node.log_tail(caught_up.lines - before.lines));
    if most > before.memory + MEMORY
        || lines > LINES
        || attempts > ATTEMPTS * (2 + begin.elapsed().as_secs() / 60)
    {
        return unmet("the daemon takes more than it may while the API server is away");
    }
    for pod in [&harbour.database, &harbour.front, &harbour.stranger] {
        pod.del(&site.node)?;
    }
    let all = ["-n", "harbour", "delete", "networkpolicy,pod", "--all", "--force", "--grace-period=0"];
    site.control.kubectl(&all).map(drop)
}
