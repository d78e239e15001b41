//! The lab's own tools must hold what they promise before a suite may lean on them.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use bulkhead_lab::{
    Bird, Capture, Netns, Result, enter,
    enter::BPFFS,
    link::{End, ip_output, run},
    probe::{Cell, Family, Service, Site, Verdict, probe},
    routes::{Route, RouteWatch, kernel_routes},
    traffic::{Connection, Sequence, rate},
    until, veth,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

const PACE: Duration = Duration::from_millis(1);

fn main() -> Result<()> {
    // What measures must not be disturbed by its neighbours.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let _inside = enter()?;
    let trial = |name: &str, f: fn() -> Result<()>| Trial::test(name, move || f().map_err(Failed::from));
    let trials = vec![
        trial("the lab has no link to the machine", no_link_to_the_machine),
        trial("the lab has a bpffs and a run directory of its own", own_mounts),
        trial("a socket stays in the namespace it was made in", sockets_stay),
        trial("BIRD's routes are seen in BIRD and in its kernel", bird_and_kernel),
        trial("a probe tells denied from unanswered", probe_verdicts),
        trial("a capture sees the addresses on the wire", capture_sees),
        trial("a lost datagram is counted", losses_counted),
        trial("a lost segment is counted, though every byte arrives", lost_segments_counted),
        trial("a shaped link is measured at its rate, TCP and UDP", rates),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

fn no_link_to_the_machine() -> Result<()> {
    let links = ip_output(None, "-o link show")?;
    assert!(links.lines().all(|l| l.contains(" lo: ") || !l.contains("state UP")), "{links}");
    assert_eq!(ip_output(None, "route show")?, "");
    Ok(())
}

fn own_mounts() -> Result<()> {
    // The kernel itself may put `maps.debug` and `progs.debug` there; others' pins would be in directories.
    assert!(fs::read_dir(BPFFS)?.flatten().all(|e| !e.path().is_dir()));
    assert_eq!(std::process::id(), 1);
    assert_eq!(fs::read_dir("/run")?.count(), 2, "netns and lab");
    Ok(())
}

fn cable(a: &str, b: &str, net: &str) -> Result<(Netns, Netns)> {
    let (left, right) = (Netns::create(a)?, Netns::create(b)?);
    let [one, two] = [format!("{net}.1/24"), format!("{net}.2/24")];
    veth(
        End { netns: &left, name: "eth0", addresses: &[&one] },
        End { netns: &right, name: "eth0", addresses: &[&two] },
    )?;
    Ok((left, right))
}

fn sockets_stay() -> Result<()> {
    let (left, right) = cable("left", "right", "172.31.1")?;
    let listener = left.run(|| Ok(TcpListener::bind("172.31.1.1:7000")?))?;
    let mut client = right.run(|| Ok(TcpStream::connect("172.31.1.1:7000")?))?;
    let (mut server, from) = listener.accept()?;
    assert_eq!(from.ip().to_string(), "172.31.1.2");
    client.write_all(b"ahoy")?;
    let mut heard = [0; 4];
    server.read_exact(&mut heard)?;
    assert_eq!(&heard, b"ahoy");
    Ok(())
}

fn bird_and_kernel() -> Result<()> {
    let (left, right) = cable("bird-a", "bird-b", "172.31.2")?;
    let configuration = |local: u32, peer: u32| {
        format!(
            "router id 172.31.2.{local};\nprotocol device {{}}\n\
             protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
             protocol static {{ ipv4; route 10.{local}.0.0/16 blackhole; }}\n\
             protocol bgp peer {{ local 172.31.2.{local} as 6500{local}; neighbor 172.31.2.{peer} as 6500{peer};\n\
             connect delay time 1; ipv4 {{ import all; export all; }}; }}\n"
        )
    };
    let a = Bird::start(&left, Path::new("/run/lab/bird-a"), &configuration(1, 2))?;
    let b = Bird::start(&right, Path::new("/run/lab/bird-b"), &configuration(2, 1))?;
    for bird in [&a, &b] {
        bird.wait_established(&["peer"], Duration::from_secs(20))?;
    }
    let expected = vec![Route {
        prefix: "10.2.0.0/16".parse().expect("a prefix"),
        via: Some("172.31.2.2".parse().expect("an address")),
    }];
    until("BIRD learns", Duration::from_secs(5), || Ok((a.routes("peer")? == expected).then_some(())))?;
    until("the kernel learns", Duration::from_secs(5), || {
        Ok((kernel_routes(&left, "bird")? == expected).then_some(()))
    })?;
    let watch = RouteWatch::start(&left)?;
    b.birdc("disable static1")?;
    until("the kernel forgets", Duration::from_secs(5), || {
        Ok(kernel_routes(&left, "bird")?.is_empty().then_some(()))
    })?;
    assert_eq!(watch.stop()?, [expected[0].prefix], "a route that leaves is noticed");
    Ok(())
}

fn site<'a>(netns: &'a Netns, name: &'a str, host: u8) -> Site<'a> {
    let v6 = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, u16::from(host));
    Site { name, netns, v4: Ipv4Addr::new(172, 31, 3, host), v6 }
}

fn probe_verdicts() -> Result<()> {
    let (left, right) = cable("probe-a", "probe-b", "172.31.3")?;
    for (netns, host) in [(&left, 1), (&right, 2)] {
        netns.ip(&format!("address add fd00:31::{host}/64 dev eth0 nodad"))?;
    }
    // What the sender's own rules swallow never arrives; what the receiver's swallow is never answered.
    for family in ["-4", "-6"] {
        for rule in ["ipproto tcp dport 7002", "ipproto udp dport 7002"] {
            left.ip(&format!("{family} rule add {rule} blackhole"))?;
        }
        for rule in ["ipproto tcp sport 7003", "ipproto udp sport 7003"] {
            right.ip(&format!("{family} rule add {rule} blackhole"))?;
        }
    }
    let sites = [site(&left, "left", 1), site(&right, "right", 2)];
    let (mut cells, mut expected) = (Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        for (service, verdict) in [
            (Service::Ping, Verdict::Allowed),
            (Service::Tcp(7001), Verdict::Allowed),
            (Service::Udp(7001), Verdict::Allowed),
            (Service::Tcp(7002), Verdict::Denied),
            (Service::Udp(7002), Verdict::Denied),
            (Service::Tcp(7003), Verdict::OneWay),
            (Service::Udp(7003), Verdict::OneWay),
        ] {
            cells.push(Cell { from: 0, to: 1, family, service });
            expected.push(verdict);
        }
    }
    assert_eq!(probe(&sites, &cells)?, expected);
    Ok(())
}

fn capture_sees() -> Result<()> {
    let (left, right) = cable("tap-a", "tap-b", "172.31.4")?;
    let capture = Capture::start(&right, "eth0")?;
    let sequence = Sequence::start(&left, &right, "172.31.4.2:7000".parse().expect("an address"), PACE)?;
    until("datagrams flow", Duration::from_secs(5), || Ok((sequence.heard() > 10).then_some(())))?;
    let report = sequence.finish()?;
    assert_eq!(report.lost, 0);
    let frames = capture.stop()?;
    let seen = frames.iter().filter_map(|f| f.ip).filter(|ip| ip.ports.is_some_and(|p| p.1 == 7000)).count();
    assert_eq!(seen as u64, report.sent);
    assert!(frames.iter().filter_map(|f| f.ip).all(|ip| ip.protocol != 4), "{frames:?}");
    Ok(())
}

fn losses_counted() -> Result<()> {
    let (left, right) = cable("loss-a", "loss-b", "172.31.5")?;
    let address = "172.31.5.2:7000".parse().expect("an address");
    let sequence = Sequence::start(&left, &right, address, PACE)?;
    until("datagrams flow", Duration::from_secs(5), || Ok((sequence.heard() > 10).then_some(())))?;
    // Swallowed on arrival for a while, then let in again; the rule must come before that of local delivery.
    right.ip("rule add pref 10 lookup local")?;
    right.ip("rule del pref 0")?;
    right.ip("rule add pref 5 ipproto udp dport 7000 blackhole")?;
    let silent = sequence.heard();
    until("datagrams are lost", Duration::from_secs(5), || {
        Ok(sequence.last_heard().filter(|t| t.elapsed() > Duration::from_millis(50)))
    })?;
    right.ip("rule del pref 5")?;
    until("datagrams flow again", Duration::from_secs(5), || {
        Ok((sequence.heard() > silent + 20).then_some(()))
    })?;
    let report = sequence.finish()?;
    assert!(report.lost >= 10 && report.longest_gap >= Duration::from_millis(50), "{report:?}");
    Ok(())
}

fn lost_segments_counted() -> Result<()> {
    let (left, right) = cable("segment-a", "segment-b", "172.31.7")?;
    let address = "172.31.7.2:7000".parse().expect("an address");
    let healthy = Connection::start(&left, &right, address, PACE)?;
    until("bytes flow", Duration::from_secs(5), || Ok((healthy.heard() > 80).then_some(())))?;
    assert_eq!(healthy.finish()?.lost, 0);
    let address = "172.31.7.2:7001".parse().expect("an address");
    let connection = Connection::start(&left, &right, address, PACE)?;
    until("bytes flow", Duration::from_secs(5), || Ok((connection.heard() > 80).then_some(())))?;
    // A queue that takes no packet: what is sent is lost before it can arrive.
    run(left.command("tc").args("qdisc add dev eth0 root bfifo limit 1".split(' ')))?;
    until("segments are lost", Duration::from_secs(5), || Ok((connection.missing()? > 2).then_some(())))?;
    run(left.command("tc").args("qdisc del dev eth0 root".split(' ')))?;
    let before = connection.heard();
    until("bytes flow again", Duration::from_secs(15), || {
        Ok((connection.heard() > before + 80).then_some(()))
    })?;
    let report = connection.finish()?;
    assert_eq!(report.received, report.sent);
    assert!(report.lost > 2, "{report:?}");
    Ok(())
}

fn rates() -> Result<()> {
    let (left, right) = cable("rate-a", "rate-b", "172.31.6")?;
    let shape = "qdisc add dev eth0 root tbf rate 500mbit burst 128kb latency 20ms";
    run(left.command("tc").args(shape.split(' ')))?;
    let window = Duration::from_secs(1);
    let at = |port| SocketAddr::new(Ipv4Addr::new(172, 31, 6, 2).into(), port);
    let mut ports = 7001..;
    let mut port = || at(ports.next().expect("a port"));
    rate::within(500e6, 0.05, || rate::tcp(&left, &right, port(), window))?;
    rate::within(500e6, 0.05, || rate::udp(&left, &right, port(), window, 700_000_000))?;
    Ok(())
}
