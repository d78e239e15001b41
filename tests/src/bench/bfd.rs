//! A link that dies in silence: dropped both ways, the carrier up. How long each end goes on sending that way, with BFD at three
//! times 50 ms, until the route has left its kernel.

use crate::{
    Bfd, Bird, Error, Result,
    bgp::{
        Kind, Setup, THEIRS,
        rack::{BLOCK, Rack},
        site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
    },
    figure::Figure,
    routes::kernel_routes,
    unmet, until,
};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

const SESSION: &str =
    "{bfd: {minTransmitMilliseconds: 50, minReceiveMilliseconds: 50}, import: [{action: Accept}]}";
const INTERVAL: u32 = 50;
const ROUNDS: usize = 10;
/// A younger session may be one whose router has just restarted.
const STOOD: u64 = 6;

pub fn run() -> Result<Vec<Figure>> {
    let [ours, bird] = measure("bird", bird)?;
    let [ours_beside_frr, frr] = measure("frr", frr)?;
    Ok(vec![
        Figure::new("BFD: silent link, our route to BIRD, worst", ours, "ms").at_most(200.0),
        Figure::new("BFD: silent link, our route to FRR, worst", ours_beside_frr, "ms").at_most(200.0),
        Figure::new("BFD: silent link, BIRD's route to us, worst", bird, "ms").at_most(250.0),
        Figure::new("BFD: silent link, FRR's route to us, worst", frr, "ms").at_most(350.0),
    ])
}

/// The worst of all rounds at our end and at the router's, in ms. `start`: a router that watches the path, too.
fn measure<R>(title: &str, start: impl FnOnce(&Rack) -> Result<R>) -> Result<[f64; 2]> {
    let rack = Rack::create(&format!("silent{title}"), SESSION)?;
    let _bfd: Bfd = rack.bfd()?;
    let _router = start(&rack)?;
    let [mut ours, mut theirs] = [0.0f64; 2];
    for _ in 0..ROUNDS {
        all_up(&rack)?;
        let (node, router) = (Removals::of(&rack.node.netns)?, Removals::of(&rack.router)?);
        let mut link = Link::of(&rack.node.netns)?;
        let cut = link.cut()?;
        ours = ours.max(route_left(&node, THEIRS, cut)?);
        theirs = theirs.max(route_left(&router, BLOCK, cut)?);
        link.mend()?;
    }
    Ok([ours, theirs])
}

/// Both ends' sessions are up, and each has the other's route.
fn all_up(rack: &Rack) -> Result<()> {
    rack.wait_leaf("both sessions are up, and have been for a while", |leaf| {
        let stood = leaf.state == "Established" && leaf.since_seconds >= STOOD;
        stood && leaf.bfd.as_ref().is_some_and(|bfd| bfd.state == "Up")
    })?;
    for (netns, prefix) in [(&rack.node.netns, THEIRS), (&*rack.router, BLOCK)] {
        until(&format!("{prefix} is in the kernel of {}", netns.name()), DEADLINE, || {
            let there = kernel_routes(netns, "all")?;
            let has = there.iter().any(|route| route.prefix.to_string() == prefix && route.via.is_some());
            if has { Ok(Some(())) } else { Err(Error::Unmet(format!("{there:?}"))) }
        })?;
    }
    Ok(())
}

fn route_left(removals: &Removals, prefix: &str, since: Instant) -> Result<f64> {
    loop {
        match removals.seen.recv_timeout(DEADLINE) {
            Ok((line, at)) if line.contains(&format!(" {prefix} ")) => {
                return Ok(at.duration_since(since).as_secs_f64() * 1e3);
            }
            Ok(_) => {}
            Err(_) => return unmet(format!("the route to {prefix} stays on a dead link")),
        }
    }
}

/// Routes that leave a kernel, as they leave it.
struct Removals {
    monitor: Child,
    seen: Receiver<(String, Instant)>,
}

impl Removals {
    fn of(netns: &crate::Netns) -> Result<Self> {
        let mut monitor =
            netns.command("ip").args(["-o", "monitor", "route"]).stdout(Stdio::piped()).spawn()?;
        let Some(lines) = monitor.stdout.take() else { return unmet("ip monitor has no output") };
        let (told, seen) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(|line| line.ok()) {
                // The measurement may be over.
                let _ = told.send((line, Instant::now()));
            }
        });
        let removals = Self { monitor, seen };
        removals.listens(netns)?;
        Ok(removals)
    }

    /// Returns once it has heard of a route that comes and goes.
    fn listens(&self, netns: &crate::Netns) -> Result<()> {
        until("the monitor listens", DEADLINE, || {
            netns.ip("route add 192.0.2.1/32 dev lo")?;
            netns.ip("route del 192.0.2.1/32 dev lo")?;
            let heard = self.seen.recv_timeout(Duration::from_millis(500));
            Ok(heard.ok().map(drop))
        })?;
        // Only what goes from here on.
        while self.seen.recv_timeout(Duration::from_millis(20)).is_ok() {}
        Ok(())
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

/// The node's end of the cable. `nft` waits with open ears, so that a cut takes no process's start.
struct Link {
    nft: Child,
    orders: ChildStdin,
}

impl Link {
    fn of(netns: &crate::Netns) -> Result<Self> {
        let mut nft = netns.command("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let Some(orders) = nft.stdin.take() else { return unmet("nft takes no orders") };
        let mut link = Self { nft, orders };
        link.order(
            "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
             add chain inet cut out { type filter hook output priority 0; }",
        )?;
        until("the table is there", DEADLINE, || {
            let listed = netns.command("nft").args(["list", "table", "inet", "cut"]).output()?;
            Ok(listed.status.success().then_some(()))
        })?;
        Ok(link)
    }

    fn order(&mut self, text: &str) -> Result<()> {
        writeln!(self.orders, "{text}")?;
        Ok(self.orders.flush()?)
    }

    /// From when on the link is about to be dead.
    fn cut(&mut self) -> Result<Instant> {
        let since = Instant::now();
        self.order("add rule inet cut in drop; add rule inet cut out drop")?;
        Ok(since)
    }

    fn mend(mut self) -> Result<()> {
        self.order("delete table inet cut")?;
        drop(self.orders);
        self.nft.wait()?;
        Ok(())
    }
}

fn bird(rack: &Rack) -> Result<Bird> {
    let configuration = format!(
        "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
         protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         protocol static {{ ipv4; route {THEIRS} blackhole; }}\n\
         protocol bfd {{ interface \"*\" {{ interval {INTERVAL} ms; multiplier 3; }}; }}\n\
         protocol bgp node {{ local {ROUTER} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; bfd on; graceful restart on;\n\
         hold time 90; connect delay time 1; connect retry time 1; error wait time 1, 2;\n\
         ipv4 {{ import all; export where source = RTS_STATIC; next hop address {ROUTER}; }}; }}\n"
    );
    Bird::start(&rack.router, &rack.dir.join("bird"), &configuration)
}

fn frr(rack: &Rack) -> Result<Box<dyn crate::bgp::Router>> {
    let setup = Setup { bfd: Some(INTERVAL), hold_time: 90, ..Setup::DEFAULT };
    Kind::Frr.start_in(&rack.router, &rack.dir, &setup)
}
