//! What goes wrong on the wire and at the other end, and what a whole daemon makes of it: right state, clear words, no busy
//! loop, bounded memory. What each router makes of it is in `bgp_matrix`; a path that dies in silence, in `bgp_bfd`.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_api::messages::{BgpPeerInfo, Status};
use bulkhead_lab::bgp::{
    Kind, Setup,
    rack::{BLOCK, Rack, trial},
    site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Bird, Error, Result, enter, until};
use libtest_mimic::Arguments;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

type Test = fn(&mut Rack) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let all: [(&str, Test); 9] = [
        ("a link that flaps costs little, and the session is back when it has stopped", flapping),
        ("a peer that connects again and again and says nothing holds one connection", silent),
        ("a peer that says what is no BGP is refused in words, and waits its turn", babbling),
        ("a router of another AS, or with this node's router id, is told, and tried calmly", refusing),
        ("a router with another password is told, and tried calmly", locked),
        ("hold times of 3 s and of none hold a session, calmly", held),
        ("a connection that this end alone still holds is replaced, calmly", half_open),
        ("another BGP daemon on the node is told of, and waited for", port_taken),
        ("a router that resets every connection is tried at the set pace", resetting),
    ];
    let trials = all.map(|(name, test)| trial(name, "{}", test));
    libtest_mimic::run(&arguments, trials.into()).exit()
}

/// What the daemon has used: processor time, and memory now in kB.
fn used(rack: &Rack) -> Result<(Duration, u64)> {
    let pid = rack.node.daemon_pid().expect("a daemon");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok());
    Ok((Duration::from_millis(ticks * 10), resident.expect("VmRSS")))
}

/// Runs `what`, during which the daemon may neither spin nor grow.
fn calmly<T>(rack: &mut Rack, what: impl FnOnce(&mut Rack) -> Result<T>) -> Result<T> {
    let ((busy, memory), begin) = (used(rack)?, Instant::now());
    let done = what(rack)?;
    let (now, elapsed) = (used(rack)?, begin.elapsed());
    let spent = now.0.saturating_sub(busy);
    // A loop that never waits takes all that a processor has.
    assert!(spent < elapsed / 2, "{spent:?} of processor time in {elapsed:?}");
    assert!(now.1 < memory + 32 * 1024, "{memory} kB before, {} after", now.1);
    Ok(done)
}

/// For so long something is looked at that nothing ends.
fn a_while(rack: &Rack, what: &str, seconds: u64, holds: impl Fn(&BgpPeerInfo) -> bool) -> Result<()> {
    let begin = Instant::now();
    until(what, Duration::from_secs(4 * seconds), || {
        let leaf = rack.leaf()?;
        assert!(holds(&leaf), "{what}: {leaf:?}");
        Ok((begin.elapsed() >= Duration::from_secs(seconds)).then_some(()))
    })
}

fn refusing(rack: &mut Rack) -> Result<()> {
    let of = |rack: &Rack, setup: &Setup, told: &[&str]| {
        let router = Kind::Bird.start_in(&rack.router, &rack.dir, setup)?;
        let is_told = |leaf: &BgpPeerInfo| {
            let error = leaf.last_error.as_deref().unwrap_or_default();
            leaf.state != "Established" && told.iter().any(|words| error.contains(words))
        };
        rack.wait_leaf("it is told", is_told)?;
        a_while(rack, "it goes on to be told", 5, is_told)?;
        assert!(!router.established()?);
        Ok(())
    };
    calmly(rack, |rack| of(rack, &Setup { node_as: 65_088, ..Setup::DEFAULT }, &["NOTIFICATION 2/2"]))?;
    calmly(rack, |rack| of(rack, &Setup { router_as: 65_088, ..Setup::DEFAULT }, &["is AS 65088"]))?;
    // Within one AS, and the address that the node's id is taken from.
    let file = rack.dir.join("objects/bgp.yaml");
    let inside = std::fs::read_to_string(&file)?.replace(&ROUTER_AS.to_string(), &NODE_AS.to_string());
    std::fs::write(file, inside)?;
    calmly(rack, |rack| {
        let text = format!(
            "log stderr all;\nrouter id {NODE};\nprotocol device {{}}\n\
             protocol bgp node {{ local {ROUTER} as {NODE_AS}; neighbor {NODE} as {NODE_AS}; connect delay time 1;\n\
             connect retry time 2; error wait time 1, 2; ipv4 {{ import all; export none; }}; }}\n"
        );
        let _bird = Bird::start(&rack.router, &rack.dir.join("same"), &text)?;
        let is_told = |leaf: &BgpPeerInfo| {
            let error = leaf.last_error.as_deref().unwrap_or_default();
            error.contains(&format!("router id {NODE} is not usable")) || error.contains("NOTIFICATION 2/3")
        };
        rack.wait_leaf("it is told", is_told)?;
        a_while(rack, "it goes on to be told", 5, |leaf| leaf.state != "Established")
    })
}

fn locked(rack: &mut Rack) -> Result<()> {
    let file = rack.dir.join("key");
    std::fs::write(&file, "correct-horse\n")?;
    rack.peer(&format!("{{passwordFile: {}}}", file.display()))?;
    let with = |password| Setup { password: Some(password), ..Setup::DEFAULT };
    calmly(rack, |rack| {
        let router = Kind::Bird.start_in(&rack.router, &rack.dir, &with("wrong-horse"))?;
        rack.wait_leaf("it is told", |leaf| {
            leaf.meaning.as_ref().is_some_and(|said| said.contains("password"))
        })?;
        a_while(rack, "there is no session", 5, |leaf| leaf.state != "Established")?;
        assert!(!router.established()?);
        Ok(())
    })?;
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &with("correct-horse"))?;
    router.wait_seen(BLOCK).map(drop)
}

fn held(rack: &mut Rack) -> Result<()> {
    let file = rack.dir.join("objects/bgp.yaml");
    let text = std::fs::read_to_string(&file)?;
    for (hold_time, seconds) in [(3, 7), (0, 4)] {
        let wanted = text
            .replace("connectRetrySeconds", &format!("holdTimeSeconds: {hold_time}, connectRetrySeconds"));
        std::fs::write(&file, wanted)?;
        calmly(rack, |rack| {
            let setup = Setup { hold_time, ..Setup::DEFAULT };
            let router = Kind::Bird.start_in(&rack.router, &rack.dir, &setup)?;
            router.wait_seen(BLOCK)?;
            let up = |leaf: &BgpPeerInfo| leaf.state == "Established";
            rack.wait_leaf("the session is up", up)?;
            router.wait_words(&["Hold timer:", &format!("/{hold_time}\n")])?;
            a_while(rack, "it stays up", seconds, up)
        })?;
    }
    Ok(())
}

fn half_open(rack: &mut Rack) -> Result<()> {
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
    router.wait_seen(BLOCK)?;
    rack.cut()?;
    drop(router);
    // Else its kernel goes on to say that it has ended.
    bulkhead_lab::link::run(rack.router.command("ss").args(["-K", "-t", "dst", NODE]))?;
    calmly(rack, |rack| a_while(rack, "we hold it", 3, |leaf| leaf.state == "Established"))?;
    rack.mend()?;
    calmly(rack, |rack| {
        let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
        router.wait_seen(BLOCK)?;
        rack.wait_leaf("ours is another session", |leaf| {
            leaf.state == "Established" && leaf.since_seconds <= 3
        })?;
        assert_eq!(open_connections(rack)?, 1);
        Ok(())
    })
}

fn flapping(rack: &mut Rack) -> Result<()> {
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
    router.wait_seen(BLOCK)?;
    calmly(rack, |rack| {
        for _ in 0..10 {
            rack.router.ip("link set downlink down")?;
            std::thread::sleep(Duration::from_millis(200));
            rack.router.ip("link set downlink up")?;
            std::thread::sleep(Duration::from_millis(200));
        }
        rack.wait_leaf("the session is there", |leaf| leaf.state == "Established")?;
        Ok(())
    })?;
    router.wait_seen(BLOCK).map(drop)
}

/// As the router, to the daemon.
fn connect(rack: &Rack) -> Result<TcpStream> {
    let to: SocketAddr = format!("{NODE}:179").parse().unwrap();
    let stream = rack.router.run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Connections from the router's address that the daemon has open.
fn open_connections(rack: &Rack) -> Result<usize> {
    let arguments = ["-Htn", "state", "established", "sport", "=", ":179"];
    let shown = bulkhead_lab::link::run(rack.node.netns.command("ss").args(arguments))?;
    Ok(shown.lines().filter(|line| line.contains(ROUTER)).count())
}

fn silent(rack: &mut Rack) -> Result<()> {
    calmly(rack, |rack| {
        let streams: Vec<TcpStream> = (0..300).map(|_| connect(rack)).collect::<Result<_>>()?;
        until("one of them is held", DEADLINE, || match open_connections(rack)? {
            1 => Ok(Some(())),
            count => Err(Error::Unmet(format!("{count} are"))),
        })?;
        drop(streams);
        Ok(())
    })?;
    let leaf = rack.leaf()?;
    assert_ne!(leaf.state, "Established", "{leaf:?}");
    // And the router's real session is not kept out.
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
    router.wait_seen(BLOCK).map(drop)
}

fn babbling(rack: &mut Rack) -> Result<()> {
    let mut stream = connect(rack)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    // Our OPEN, and then NOTIFICATION 1/1: connection not synchronized.
    assert!(answer.ends_with(&[0, 21, 3, 1, 1]), "{answer:02x?}");
    let leaf = rack.wait_leaf("it is told", |leaf| {
        leaf.last_error.as_deref().is_some_and(|error| error.contains("NOTIFICATION 1/1"))
    })?;
    assert_ne!(leaf.state, "Established");
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
    router.wait_seen(BLOCK).map(drop)
}

fn resetting(rack: &mut Rack) -> Result<()> {
    let listener = rack.router.run(|| Ok(TcpListener::bind((ROUTER, 179))?))?;
    let begin = Instant::now();
    let attempts = calmly(rack, |_| {
        let mut attempts = 0u32;
        while attempts < 4 {
            let (stream, _) = listener.accept()?;
            drop(stream);
            attempts += 1;
        }
        Ok(attempts)
    })?;
    // It waits longer each time, up to the two seconds that are configured, less their jitter.
    assert!(begin.elapsed() > Duration::from_secs(2), "{attempts} attempts in {:?}", begin.elapsed());
    let leaf = rack.leaf()?;
    assert!(leaf.last_error.is_some() && leaf.state != "Established", "{leaf:?}");
    Ok(())
}

fn port_taken(rack: &mut Rack) -> Result<()> {
    rack.node.kill_daemon()?;
    let other = rack.node.netns.run(|| Ok(TcpListener::bind("0.0.0.0:179")?))?;
    rack.node.start_daemon()?;
    until("the status tells of it", DEADLINE, || {
        let status: Status = rack.node.get("/v1/status")?;
        let said: Vec<String> = status.errors.iter().map(ToString::to_string).collect();
        let words = "0.0.0.0:179 is taken by another process: is another BGP daemon running on this node?";
        let told = said.iter().any(|error| error.contains(words));
        if told { Ok(Some(())) } else { Err(Error::Unmet(format!("{said:?}"))) }
    })?;
    drop(other);
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::default())?;
    router.wait_seen(BLOCK).map(drop)
}
