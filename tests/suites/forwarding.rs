//! The two paths of a packet, with real pods, nodes and translation: which connections pass the host's stack by, that nothing
//! else can tell, and that what the stack translates stays with it.
#![allow(clippy::expect_used, reason = "a suite fails by panicking")]

#[path = "forwarding/live.rs"]
mod live;
#[path = "forwarding/marks.rs"]
mod marks;
#[path = "forwarding/outsider.rs"]
mod outsider;
#[path = "forwarding/support.rs"]
mod support;
#[path = "forwarding/translated.rs"]
mod translated;

use bulkhead_lab::{Lab, Result, enter, until};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use support::{Live, Watch, alternative, bound, exchange, require, says, send_a_megabyte, wire};

type Case = fn(&mut Lab) -> Result<()>;

const CASES: &[(&str, Case)] = &[
    ("between pods the stack of neither node sees a connection", between_pods),
    (
        "what leaves for or comes from an address outside takes the stack unless the configuration says direct",
        outside,
    ),
    ("the stack answers at the end of a hop limit, and a hop is a hop", hop_limits),
    ("the stack answers what a route is too narrow for, and TCP finds its way", narrow_routes),
    ("a route's MTU that is not locked holds for packets of live connections, too", unlocked_mtus),
    ("a pod with a bandwidth takes the stack both ways", paced),
    ("datagrams and the errors they meet pass the stack by", live::datagrams),
    ("a router's error finds the direct connection that it speaks of", live::errors_of_routers),
    ("the stack may give no connection the ends of a live direct one", live::clash),
    ("a pod that has its share of connections keeps them, gets no other, and harms nobody", live::share),
    ("without its daemon and with the next one the ways to pods are what they were", live::another_daemon),
    ("an IPv4 route over an IPv6 next hop is a route", live::next_hop_of_the_other_family),
    ("a service's backend is reached on this node, on another, and on the pod itself", translated::services),
    ("a service's datagrams come back translated, from whichever port", translated::datagrams),
    ("a pod that nobody may call reaches itself through a service, and nobody else does", translated::itself),
    ("what is masqueraded on its way out is masqueraded, and its replies come back", translated::masqueraded),
    ("a backend of a node port judges who really calls, behind the node's address", translated::node_ports),
    ("nor does anybody pass as the node at a pod of another one", translated::another_node),
    ("whatever mark a pod sets itself opens nothing", marks::nobodys_but_the_hooks),
    (
        "what the node masquerades of a machine behind an interface that nobody marks is not the node's",
        outsider::whole,
    ),
    ("nor is it in pieces, and the node's own datagrams in pieces arrive", outsider::pieces),
];

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if arguments.list {
        libtest_mimic::run(&arguments, trials(&Arc::new(Mutex::new(Err("not started".into()))))).exit();
    }
    let _inside = enter()?;
    let lab = Arc::new(Mutex::new(start().map_err(|e| e.to_string())));
    let conclusion = libtest_mimic::run(&arguments, trials(&lab));
    let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
    if let (true, Ok(lab)) = (conclusion.has_failed(), &*lab) {
        eprintln!("{}", lab.logs(30));
    }
    *lab = Err("over".into());
    drop(lab);
    conclusion.exit()
}

type Shared = Arc<Mutex<std::result::Result<Lab, String>>>;

/// All pods wired, and one more without a limit on the first node.
fn start() -> Result<Lab> {
    let mut lab = Lab::start()?;
    support::with_connections(&mut lab.nodes[0], live::CONNECTIONS)?;
    wire(&mut lab)?;
    Ok(lab)
}

fn trials(lab: &Shared) -> Vec<Trial> {
    let trial = |(name, case): &(&'static str, Case)| {
        let (lab, case) = (lab.clone(), *case);
        Trial::test(*name, move || match &mut *lab.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(lab) => case(lab).map_err(Failed::from),
            Err(why) => Err(why.clone().into()),
        })
    };
    CASES.iter().map(trial).collect()
}

fn between_pods(lab: &mut Lab) -> Result<()> {
    let (cart, plain, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
    for v6 in [false, true] {
        for (from, to) in [(cart, plain), (plain, cart), (cart, far), (far, cart)] {
            let watches = [Watch::start(&lab.nodes[0])?, Watch::start(&lab.nodes[1])?];
            let seen = exchange(&from.netns, &to.netns, alternative(to, v6), 8080, None)?;
            require(seen == alternative(from, v6), &format!("the server saw {seen}"))?;
            for watch in watches {
                require(
                    watch.packets()? == 0,
                    &format!("{} forwarded some of it by its stack", watch.node()),
                )?;
            }
        }
    }
    Ok(())
}

fn outside(lab: &mut Lab) -> Result<()> {
    for direct in [false, true] {
        if direct {
            support::configure(&mut lab.nodes[0], "directTo: [172.30.9.0/24, \"fd00:30:9::/64\"]\n")?;
        }
        let (cart, db, node) = (lab.pod("shop/cart-0")?, lab.pod("payments/db-0")?, &lab.nodes[0]);
        for v6 in [false, true] {
            let vm = if v6 { lab.vm.v6.into() } else { lab.vm.v4.into() };
            let watch = Watch::start(node)?;
            let seen = exchange(&cart.netns, &lab.vm.netns, vm, 8080, None)?;
            require(seen == alternative(cart, v6), &format!("the server saw {seen}"))?;
            require((watch.packets()? == 0) == direct, "out: the other path was taken")?;
            let watch = Watch::start(node)?;
            let seen = exchange(&lab.vm.netns, &db.netns, alternative(db, v6), 20880, None)?;
            require(seen == vm, &format!("the server saw {seen}"))?;
            require((watch.packets()? == 0) == direct, "in: the other path was taken")?;
        }
    }
    Ok(())
}

fn hop_limits(lab: &mut Lab) -> Result<()> {
    let (cart, plain, far) = (lab.pod("shop/cart-0")?, lab.pod("shop/plain-0")?, lab.pod("shop/cart-1")?);
    let node = &lab.nodes[0];
    for (to, enough) in [(plain, 2), (far, 4)] {
        for v6 in [false, true] {
            let to = alternative(to, v6).to_string();
            let answer = says(&cart.netns, &["ping", "-n", "-c1", "-W2", "-t1", &to])?;
            let router = if v6 { node.v6.to_string() } else { node.v4.to_string() };
            let exceeded = answer.contains("exceeded") && answer.contains(&router);
            require(exceeded, &format!("the node does not answer: {answer}"))?;
            let [short, long] = [enough - 1, enough].map(|ttl: u32| format!("-t{ttl}"));
            let answer = says(&cart.netns, &["ping", "-n", "-c1", "-W2", &short, &to])?;
            require(answer.contains("exceeded"), &format!("a hop is missing: {answer}"))?;
            let answer = says(&cart.netns, &["ping", "-n", "-c1", "-W2", &long, &to])?;
            require(answer.contains("1 received"), &format!("a hop too many: {answer}"))?;
        }
    }
    Ok(())
}

fn narrow_routes(lab: &mut Lab) -> Result<()> {
    let (cart, far, node) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?, &lab.nodes[0]);
    for v6 in [false, true] {
        let to = alternative(far, v6);
        let (length, via) = if v6 { (128, "fd00:30:1::1") } else { (32, "172.30.1.1") };
        node.netns.ip(&format!("route add {to}/{length} via {via} dev eth0 mtu lock 1320"))?;
        let answer = says(&cart.netns, &["ping", "-n", "-c1", "-W2", "-Mdo", "-s1400", &to.to_string()])?;
        require(
            answer.contains("mtu = 1320") || answer.contains("mtu=1320"),
            &format!("no answer: {answer}"),
        )?;
        cart.netns.ip(&format!("{} route flush cache", if v6 { "-6" } else { "-4" }))?;
        let watch = Watch::start(node)?;
        send_a_megabyte(&cart.netns, &far.netns, to, 8081)?;
        require(watch.packets()? == 0, "TCP left the direct path")?;
        node.netns.ip(&format!("route del {to}/{length} via {via} dev eth0"))?;
        cart.netns.ip(&format!("{} route flush cache", if v6 { "-6" } else { "-4" }))?;
    }
    Ok(())
}

/// The daemon learns of the route; an established connection and its direct path stay.
fn unlocked_mtus(lab: &mut Lab) -> Result<()> {
    let (cart, far, node) = (lab.pod("shop/cart-0")?, lab.pod("shop/cart-1")?, &lab.nodes[0]);
    let to = far.v4.to_string();
    let ping = || says(&cart.netns, &["ping", "-n", "-c1", "-W1", "-Mdo", "-s1400", &to]);
    let flush = || cart.netns.ip("-4 route flush cache");
    let narrow = |what: &str| {
        until(what, Duration::from_secs(10), || {
            flush()?;
            let answer = ping()?;
            let told = answer.contains("mtu = 1320") || answer.contains("mtu=1320");
            Ok(told.then_some(()))
        })
    };
    let wide = |what: &str| {
        until(what, Duration::from_secs(10), || {
            flush()?;
            // What the daemon has not yet learned of the stack still forwards.
            let watch = Watch::start(node)?;
            Ok((ping()?.contains("1 received") && watch.packets()? == 0).then_some(()))
        })
    };
    // The last two: within a narrow route a wider one, and within that the narrow one again.
    let [host, wider, all] = [("32", " mtu 1320"), ("31", ""), ("30", " mtu 1320")].map(|(length, mtu)| {
        let network =
            ipnetwork::Ipv4Network::new(far.v4, length.parse().expect("a length")).expect("a network");
        (format!("route add {}/{length} via 172.30.1.1 dev eth0{mtu}", network.network()), length)
    });
    let mut live = Live::start(cart, far, 8082)?;
    live.exchange(3000)?;
    for (route, length) in [&all, &wider, &host] {
        node.netns.ip(route)?;
        let what = format!("the daemon learns of the route of length {length}");
        if *length == "31" {
            wide(&what)?
        } else {
            narrow(&what)?
        };
        let watch = Watch::start(node)?;
        live.exchange(300_000)?;
        send_a_megabyte(&cart.netns, &far.netns, far.v4.into(), 8081)?;
        // The stack only answers what is too long.
        require(watch.packets()? == 0, "TCP left the direct path")?;
    }
    for (route, _) in [&host, &wider, &all] {
        node.netns.ip(&route.replace("add", "del"))?;
    }
    wide("the routes are gone")
}

fn paced(lab: &mut Lab) -> Result<()> {
    const SENT: u8 = 16;
    let (cart, low) = (lab.pod("shop/cart-0")?, lab.pod("shop/low-0")?);
    for (from, to) in [(cart, low), (low, cart)] {
        for v6 in [false, true] {
            let watch = Watch::start(&lab.nodes[0])?;
            exchange(&from.netns, &to.netns, alternative(to, v6), 8080, None)?;
            require(watch.packets()? >= 8, "both directions belong in the queues")?;
            // What nobody answers, too: from the first packet to the last.
            let watch = Watch::start(&lab.nodes[0])?;
            let (server, client) =
                (bound(&to.netns, alternative(to, v6), 9125)?, bound(&from.netns, alternative(from, v6), 0)?);
            for n in 0..SENT {
                client.send_to(&[n], (alternative(to, v6), 9125))?;
                server.recv(&mut [0; 8])?;
            }
            require(watch.packets()? == u64::from(SENT), "some of it went past the queues")?;
        }
    }
    Ok(())
}
