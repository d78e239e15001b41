//! `bulkhead-bfd` against BIRD's BFD, each in a namespace of its own. What counts is what both say of the session.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_bgp::bfd::{
    Diagnostic, Key, Settings, State,
    control::{Report, Request, SessionInfo, Wanted},
    session::Change,
};
use bulkhead_lab::{
    Bfd, Bird, Error, Netns, Result,
    bfd::Client,
    enter,
    link::{End, run},
    until, veth,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const NODE: &str = "172.31.9.2";
const NODE6: &str = "fd00:31:9::2";
const ROUTER: &str = "172.31.9.1";
const ROUTER6: &str = "fd00:31:9::1";
const DEADLINE: Duration = Duration::from_secs(20);
const FAST: Settings = every(50, 3);
/// Found dead after 30 s only: what is down earlier was told.
const PATIENT: Settings = every(1000, 30);

const fn every(millis: u64, detect_mult: u8) -> Settings {
    let interval = Duration::from_millis(millis);
    Settings { desired_min_tx: interval, required_min_rx: interval, detect_mult }
}

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let trial = |name: &str, f: fn(&Site) -> Result<()>| {
        let title = name.to_owned();
        Trial::test(name, move || Site::create(&title).and_then(|site| f(&site)).map_err(Failed::from))
    };
    let trials = vec![
        trial("sessions of both IP versions come up with the intervals both sides agreed on", come_up),
        trial("a multihop session comes up", multihop),
        trial("a path that dies in silence is found by both sides", silent_death),
        trial("a path that comes back is up again", back_again),
        trial("sessions go on when the client that asked for them is gone", client_gone),
        trial("new intervals do not take a session down", new_intervals),
        trial("a session that is wanted no more is told down at once", unwanted),
        trial("a process that is told to stop tells its neighbours down at once", stopped),
        trial("a neighbour that stops on purpose is told apart from a dead path", neighbour_stops),
        trial("packets have a thread of real time, and memory that stays", real_time),
        trial("no session falls while the machine is busier than it can be", under_load),
        trial("two ends that were held up together do not take that for silence", held_up),
        trial("a second process is refused and says why", second),
        trial("what is no request is refused, and the sessions stay", refused),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

fn real_time(site: &Site) -> Result<()> {
    let bfd = Bfd::start(&site.node, &site.dir)?;
    let process = PathBuf::from(format!("/proc/{}", bfd.pid()));
    // `pid (comm) state …`: the 41st field is the policy.
    let policy = |stat: String| {
        let (head, rest) = stat.rsplit_once(") ")?;
        Some((head.split_once('(')?.1.to_owned(), rest.split(' ').nth(38)?.parse().ok()?))
    };
    until("the thread of packets is SCHED_FIFO, and no other", DEADLINE, || {
        let tasks = fs::read_dir(process.join("task"))?.flatten();
        let threads: Vec<(String, i32)> =
            tasks.filter_map(|task| policy(fs::read_to_string(task.path().join("stat")).ok()?)).collect();
        let of_fifo = threads.iter().filter(|(_, policy)| *policy == libc::SCHED_FIFO);
        let is_alone = of_fifo.map(|(name, _)| name.as_str()).eq(["packets"]);
        if is_alone { Ok(Some(())) } else { Err(Error::Unmet(format!("{threads:?}"))) }
    })?;
    let status = fs::read_to_string(process.join("status"))?;
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or_default();
    assert!(locked.trim().trim_end_matches(" kB").parse::<u64>().is_ok_and(|kib| kib > 0), "{locked}");
    Ok(())
}

struct Site {
    node: Netns,
    router: Netns,
    dir: PathBuf,
}

impl Site {
    fn create(title: &str) -> Result<Self> {
        let short: String = title.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let machine = |kind: &str| {
            let netns = Netns::create(&format!("{kind}-{short}"))?;
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            Ok::<_, Error>(netns)
        };
        let (node, router) = (machine("node")?, machine("router")?);
        let [n4, n6] = [format!("{NODE}/24"), format!("{NODE6}/64")];
        let [r4, r6] = [format!("{ROUTER}/24"), format!("{ROUTER6}/64")];
        veth(
            End { netns: &node, name: "uplink", addresses: &[&n4, &n6] },
            End { netns: &router, name: "downlink", addresses: &[&r4, &r6] },
        )?;
        Ok(Self { node, router, dir: Path::new("/run/lab").join(short) })
    }

    fn bird(&self, settings: Settings, neighbours: &str) -> Result<Bird> {
        let interval = settings.desired_min_tx.as_millis();
        let multiplier = settings.detect_mult;
        let timers = format!("{{ interval {interval} ms; multiplier {multiplier}; }}");
        Bird::start(
            &self.router,
            &self.dir,
            &format!(
                "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\n\
                 protocol bfd {{ interface \"*\" {timers}; multihop {timers}; {neighbours} }}\n"
            ),
        )
    }

    /// Both processes, and a session over IPv4 that is up.
    fn up(&self, settings: Settings) -> Result<(Bird, Bfd, Client)> {
        let bird = self.bird(settings, &format!("neighbor {NODE};"))?;
        let bfd = Bfd::start(&self.node, &self.dir)?;
        let mut client = bfd.client()?;
        client.configure(&[Wanted::new(key(ROUTER), settings)])?;
        wait_up(&mut client, 1)?;
        until("BIRD's session is up", DEADLINE, || Ok((bird_states(&bird)? == ["Up"]).then_some(())))?;
        Ok((bird, bfd, client))
    }

    /// Everything is dropped in both directions, and the carrier stays.
    fn cut(&self) -> Result<()> {
        let rules = "table inet cut { chain in { type filter hook input priority 0; policy drop; }; \
                     chain out { type filter hook output priority 0; policy drop; }; }";
        run(self.node.command("nft").arg(rules)).map(drop)
    }

    fn mend(&self) -> Result<()> {
        run(self.node.command("nft").arg("delete table inet cut")).map(drop)
    }
}

fn key(peer: &str) -> Key {
    Key { peer: peer.parse().unwrap(), local: None, ifindex: None, multihop: None }
}

fn wait_up(client: &mut Client, count: usize) -> Result<Vec<SessionInfo>> {
    until("our sessions are up", DEADLINE, || {
        let sessions = client.list()?;
        let up = sessions.iter().filter(|s| s.state == State::Up).count();
        if up == count { Ok(Some(sessions)) } else { Err(Error::Unmet(format!("{sessions:?}"))) }
    })
}

/// Column `State` of `show bfd sessions`.
fn bird_states(bird: &Bird) -> Result<Vec<String>> {
    let text = bird.birdc("show bfd sessions")?;
    let rows = text.lines().filter(|l| l.starts_with("172.") || l.starts_with("fd00:"));
    Ok(rows.filter_map(|l| l.split_whitespace().nth(2).map(str::to_owned)).collect())
}

fn next_change(client: &mut Client) -> Result<Change> {
    client.hear_of(|report| match report {
        Report::Changed { change, .. } => Some(*change),
        _ => None,
    })
}

fn come_up(site: &Site) -> Result<()> {
    let bird = site.bird(every(80, 3), &format!("neighbor {NODE}; neighbor {NODE6};"))?;
    let bfd = Bfd::start(&site.node, &site.dir)?;
    let mut client = bfd.client()?;
    client.configure(&[Wanted::new(key(ROUTER), FAST), Wanted::new(key(ROUTER6), FAST)])?;
    wait_up(&mut client, 2)?;
    until("both sides have agreed on the slower one's intervals", DEADLINE, || {
        let sessions = client.list()?;
        let agreed = sessions
            .iter()
            .all(|s| s.transmit_interval_micros == Some(80_000) && s.detection_time_micros == 240_000);
        let bird = bird.birdc("show bfd sessions")?;
        let rows =
            bird.lines().filter(|l| l.contains("Up") && l.contains("0.080") && l.contains("0.240")).count();
        if agreed && rows == 2 { Ok(Some(())) } else { Err(Error::Unmet(format!("{sessions:?}\n{bird}"))) }
    })
}

fn multihop(site: &Site) -> Result<()> {
    let bird = site.bird(FAST, &format!("neighbor {NODE} local {ROUTER} multihop on;"))?;
    let bfd = Bfd::start(&site.node, &site.dir)?;
    let mut client = bfd.client()?;
    let local = Some(NODE.parse().unwrap());
    // BIRD sends over several hops with its system's TTL, 64.
    client.configure(&[Wanted::new(Key { local, multihop: Some(60), ..key(ROUTER) }, FAST)])?;
    wait_up(&mut client, 1)?;
    until("BIRD's session is up", DEADLINE, || Ok((bird_states(&bird)? == ["Up"]).then_some(())))
}

fn silent_death(site: &Site) -> Result<()> {
    let (bird, _bfd, mut client) = site.up(FAST)?;
    site.cut()?;
    let change = next_change(&mut client)?;
    assert_eq!((change.from, change.to), (State::Up, State::Down));
    assert_eq!(change.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    assert!(!change.neighbor_admin_down);
    until("BIRD's session is down", DEADLINE, || Ok((bird_states(&bird)? == ["Down"]).then_some(())))
}

fn back_again(site: &Site) -> Result<()> {
    let (bird, _bfd, mut client) = site.up(FAST)?;
    site.cut()?;
    assert_eq!(next_change(&mut client)?.to, State::Down);
    site.mend()?;
    wait_up(&mut client, 1)?;
    until("BIRD's session is up", DEADLINE, || Ok((bird_states(&bird)? == ["Up"]).then_some(())))
}

fn client_gone(site: &Site) -> Result<()> {
    let (bird, bfd, client) = site.up(FAST)?;
    drop(client);
    let mut other = bfd.client()?;
    let before = bird.birdc("show bfd sessions")?;
    // Many detection times of packets that were sent and heard.
    std::thread::sleep(FAST.desired_min_tx * 20);
    assert_eq!(other.list()?[0].state, State::Up);
    // The column `Since` tells of every change.
    assert_eq!(bird.birdc("show bfd sessions")?, before);
    Ok(())
}

fn new_intervals(site: &Site) -> Result<()> {
    let (bird, _bfd, mut client) = site.up(FAST)?;
    client.configure(&[Wanted::new(key(ROUTER), every(200, 5))])?;
    until("BIRD knows", DEADLINE, || {
        let text = bird.birdc("show bfd sessions")?;
        // BIRD waits for five of ours.
        if text.contains("Up") && text.contains("1.000") { Ok(Some(())) } else { Err(Error::Unmet(text)) }
    })?;
    client.configure(&[Wanted::new(key(ROUTER), FAST)])?;
    until("BIRD knows", DEADLINE, || {
        let text = bird.birdc("show bfd sessions")?;
        if text.contains("Up") && text.contains("0.150") { Ok(Some(())) } else { Err(Error::Unmet(text)) }
    })?;
    let log = fs::read_to_string(site.dir.join("bfd.log"))?;
    assert!(!log.contains("to=Down"), "{log}");
    Ok(())
}

fn unwanted(site: &Site) -> Result<()> {
    let (bird, _bfd, mut client) = site.up(PATIENT)?;
    client.configure(&[])?;
    until("BIRD was told", DEADLINE, || Ok((bird_states(&bird)? == ["Down"]).then_some(())))
}

fn stopped(site: &Site) -> Result<()> {
    let (bird, bfd, _client) = site.up(PATIENT)?;
    bfd.terminate()?;
    until("BIRD was told", DEADLINE, || Ok((bird_states(&bird)? == ["Down"]).then_some(())))
}

/// BIRD 2.0.12 falls silent when it is stopped, without a word: the neighbour is one of ours.
fn neighbour_stops(site: &Site) -> Result<()> {
    let ours = Bfd::start(&site.node, &site.dir)?;
    let theirs = Bfd::start(&site.router, &site.dir.join("router"))?;
    let mut client = ours.client()?;
    client.configure(&[Wanted::new(key(ROUTER), PATIENT)])?;
    theirs.client()?.configure(&[Wanted::new(key(NODE), PATIENT)])?;
    wait_up(&mut client, 1)?;
    theirs.client()?.configure(&[])?;
    let down = client.hear_of(|report| match report {
        Report::Changed { change, .. } if change.from == State::Up => Some(*change),
        _ => None,
    })?;
    assert_eq!((down.to, down.diagnostic), (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN));
    assert!(down.neighbor_admin_down, "{down:?}");
    Ok(())
}

/// A minute at 3 x 50 ms; `BULKHEAD_BFD_MINUTES=120` for as many, `BULKHEAD_BFD_INTERVAL=300` for as many milliseconds. Both ends
/// are ours: a router's BFD is an ordinary process, and falls first.
fn under_load(site: &Site) -> Result<()> {
    let told = |name, unless| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(unless);
    let (minutes, interval) = (told("BULKHEAD_BFD_MINUTES", 1), told("BULKHEAD_BFD_INTERVAL", 50));
    let settings = every(interval, 3);
    let mut ours = Bfd::start(&site.node, &site.dir)?;
    let mut theirs = Bfd::start(&site.router, &site.dir.join("router"))?;
    let mut client = ours.client()?;
    client.configure(&[Wanted::new(key(ROUTER), settings), Wanted::new(key(ROUTER6), settings)])?;
    theirs.client()?.configure(&[Wanted::new(key(NODE), settings), Wanted::new(key(NODE6), settings)])?;
    wait_up(&mut client, 2)?;
    let load = Load::start()?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60 * minutes) {
        std::thread::sleep(Duration::from_secs(5));
        let sessions = client.list()?;
        let held = sessions.len() == 2 && sessions.iter().all(|s| s.state == State::Up && s.fell.is_none());
        let logs = || [&ours.log, &theirs.log].map(|log| fs::read_to_string(log).unwrap_or_default());
        assert!(held, "after {:?}: {sessions:?}\n{}", begin.elapsed(), logs().concat());
    }
    let turns = load.stop();
    let before = fs::read_to_string(&ours.log)? + &fs::read_to_string(&theirs.log)?;
    assert!(!before.contains("from=Up"), "{before}");
    // At its end each says what it has not said yet.
    ours.stop()?;
    theirs.stop()?;
    let logs = fs::read_to_string(&ours.log)? + &fs::read_to_string(&theirs.log)?;
    let sum = |field| logs.lines().filter_map(|line| number(line, field)).sum::<u64>();
    println!(
        "{minutes} min, two sessions at 3 x {interval} ms, four turns of load for each processor: {turns} turns, \
         held up {} times, {} ms in all",
        sum("times="),
        sum("total_ms=")
    );
    Ok(())
}

fn number(line: &str, field: &str) -> Option<u64> {
    line.split_once(field)?.1.split_whitespace().next()?.parse().ok()
}

/// As of two virtual machines on a host that paused them.
fn held_up(site: &Site) -> Result<()> {
    let ours = Bfd::start(&site.node, &site.dir)?;
    let theirs = Bfd::start(&site.router, &site.dir.join("router"))?;
    let mut client = ours.client()?;
    client.configure(&[Wanted::new(key(ROUTER), FAST)])?;
    theirs.client()?.configure(&[Wanted::new(key(NODE), FAST)])?;
    wait_up(&mut client, 1)?;
    for _ in 0..5 {
        ours.stands_still()?;
        theirs.stands_still()?;
        // Several detection times.
        std::thread::sleep(Duration::from_millis(600));
        theirs.goes_on()?;
        ours.goes_on()?;
        until("it answers again", DEADLINE, || Ok(Some(client.list()?)))?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let sessions = client.list()?;
    assert!(sessions.iter().all(|s| s.state == State::Up && s.fell.is_none()), "{sessions:?}");
    assert!(fs::read_to_string(&ours.log)?.contains("held up"));
    Ok(())
}

/// Four threads for each processor that compute, allocate and write.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = 4 * std::thread::available_parallelism()?.get();
        let one = |_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut turns = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut memory = vec![turns as u8; 1 << 20];
                    memory.iter_mut().for_each(|octet| *octet = octet.wrapping_mul(31).wrapping_add(7));
                    let _ = fs::write("/dev/null", std::hint::black_box(&memory));
                    turns += 1;
                }
                turns
            })
        };
        let threads = (0..count).map(one).collect();
        Ok(Self { stop, threads })
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    }
}

fn second(site: &Site) -> Result<()> {
    let first = Bfd::start(&site.node, &site.dir)?;
    let ends = |socket: &Path| {
        let program = bulkhead_lab::programs::find("bulkhead-bfd")?;
        let output = site.node.command(program).arg(socket).output()?;
        assert!(!output.status.success());
        Ok::<_, Error>(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let same = ends(&first.socket)?;
    assert!(same.contains("another bulkhead-bfd runs"), "{same}");
    let other = ends(&site.dir.join("other.sock"))?;
    assert!(other.contains("UDP port 3784 is taken"), "{other}");
    Ok(())
}

fn refused(site: &Site) -> Result<()> {
    let (_bird, _bfd, mut client) = site.up(FAST)?;
    let wrong = Wanted { detect_mult: 0, ..Wanted::new(key(ROUTER), FAST) };
    client.say(&Request::Configure(vec![wrong]))?;
    let message = client.hear_of(|report| match report {
        Report::Refused { message } => Some(message.clone()),
        _ => None,
    })?;
    assert_eq!(message, "172.31.9.1: a detection multiplier of 0: give at least 1");
    assert_eq!(client.list()?[0].state, State::Up);
    Ok(())
}
