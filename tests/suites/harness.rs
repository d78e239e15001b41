//! The lab's own tools must hold what they promise before a suite may lean on them.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

use bulkhead_lab::{
    Bird, Netns, Result, enter,
    enter::BPFFS,
    link::{End, ip_output},
    routes::{Route, RouteWatch, kernel_routes},
    until, veth,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let trial = |name: &str, f: fn() -> Result<()>| Trial::test(name, move || f().map_err(Failed::from));
    let trials = vec![
        trial("the lab has no link to the machine", no_link_to_the_machine),
        trial("the lab has a bpffs and a run directory of its own", own_mounts),
        trial("a socket stays in the namespace it was made in", sockets_stay),
        trial("BIRD's routes are seen in BIRD and in its kernel", bird_and_kernel),
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
