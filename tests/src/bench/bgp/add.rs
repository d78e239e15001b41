//! From the answer of an ADD that opens a new block to its UPDATE on the wire, and to the route in a router's kernel.

use super::scale;
use crate::{
    Bird, Pod, Result,
    bgp::{
        Kind, Setup,
        rack::Rack,
        site::{DEADLINE, NODE, NODE_AS, ROUTER, ROUTER_AS},
    },
    figure::Figure,
    routes::kernel_routes,
    unmet, until,
};
use bulkhead_bgp::wire::{Capability, Framer, Message, Open};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::mpsc,
    thread,
    time::Instant,
};

/// Each has a range of its own, so that its first pod opens a block.
const PARTITIONS: usize = 100;

pub fn run() -> Vec<Figure> {
    let partitions = (PARTITIONS / scale()).max(3);
    let p99 = |place: &str, times: Result<Vec<f64>>| {
        eprintln!("    an ADD's block: {place} was watched");
        let p99 = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
        });
        Figure::attempted(format!("BGP: ADD's answer to {place}, p99"), p99.map_err(|e| e.to_string()), "ms")
    };
    let frr = |rack: &Rack| {
        let router = Kind::Frr.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
        router.wait_established()?;
        Ok(router)
    };
    vec![
        p99("UPDATE on the wire", on_the_wire(partitions)).at_most(10.0),
        p99("route in BIRD's kernel", in_the_kernel("kernel", partitions, bird)).at_most(20.0),
        p99("route in FRR's kernel", in_the_kernel("frr", partitions, frr)),
    ]
}

fn partition(index: usize) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: Partition\nmetadata: {{name: p{index}}}\n\
         spec: {{policyID: {}, namespaces: [n{index}], podCIDRs: [10.{}.0.0/16]}}\n",
        index + 1,
        100 + index
    )
}

fn rack(title: &str, partitions: usize) -> Result<Rack> {
    let rack = Rack::create(title, "{}")?;
    for index in 0..partitions {
        fs::write(rack.dir.join(format!("objects/p{index}.yaml")), partition(index))?;
    }
    until("every partition is in force", DEADLINE, || {
        let there: Vec<serde_json::Value> = rack.node.get("/v1/partitions")?;
        Ok((there.len() > partitions).then_some(()))
    })?;
    Ok(rack)
}

/// Adds a pod to each partition; `seen` answers when the block of that number was seen, in ms since `epoch`.
fn adds(
    rack: &Rack,
    partitions: usize,
    epoch: Instant,
    mut seen: impl FnMut(usize) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for index in 0..partitions {
        let mut pod = Pod::create(0, &format!("n{index}"), &format!("{}{index}", rack.node.name))?;
        pod.add(&rack.node)?;
        let answered = epoch.elapsed().as_secs_f64() * 1e3;
        // It may well be there before the plugin has ended.
        times.push((seen(index)? - answered).max(0.0));
        pod.del(&rack.node)?;
    }
    Ok(times)
}

fn block(index: usize) -> String {
    format!("10.{}.0.0/26", 100 + index)
}

fn on_the_wire(partitions: usize) -> Result<Vec<f64>> {
    let rack = rack("wire", partitions)?;
    let listener = rack.router.run(|| Ok(TcpListener::bind((ROUTER, 179))?))?;
    let (mut stream, _) = listener.accept()?;
    let open = Open {
        asn: ROUTER_AS,
        hold_time: 600,
        router_id: Ipv4Addr::new(172, 31, 9, 1),
        capabilities: vec![
            Capability::Multiprotocol(bulkhead_bgp::Family::Ipv4Unicast),
            Capability::FourOctetAs(ROUTER_AS),
        ],
    };
    let context = super::feed::CONTEXT;
    stream.write_all(&Message::Open(open).encode(context))?;
    stream.write_all(&Message::Keepalive.encode(context))?;
    let epoch = Instant::now();
    let (told, events) = mpsc::channel();
    thread::spawn(move || {
        let (mut framer, mut bytes) = (Framer::default(), vec![0; 65_536]);
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            let at = epoch.elapsed().as_secs_f64() * 1e3;
            framer.push(&bytes[..count]);
            while let Some(Ok(message)) = framer.next(context) {
                let Message::Update(update) = message else { continue };
                let reach = update.announced.into_iter().flat_map(|announced| announced.reach);
                for prefix in reach.flat_map(|reach| reach.prefixes) {
                    // The measurement may be over.
                    let _ = told.send((prefix.to_string(), at));
                }
            }
        }
    });
    let mut seen: BTreeMap<String, f64> = BTreeMap::new();
    adds(&rack, partitions, epoch, |index| {
        while !seen.contains_key(&block(index)) {
            match events.recv_timeout(DEADLINE) {
                Ok((prefix, at)) => drop(seen.insert(prefix, at)),
                Err(_) => return unmet(format!("no UPDATE of {}", block(index))),
            }
        }
        Ok(seen[&block(index)])
    })
}

fn bird(rack: &Rack) -> Result<Bird> {
    let configuration = format!(
        "log stderr all;\nrouter id {ROUTER};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
         protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         protocol bgp node {{ local {ROUTER} as {ROUTER_AS}; neighbor {NODE} as {NODE_AS}; graceful restart on;\n\
         connect delay time 1; connect retry time 1; ipv4 {{ import all; export none; }}; }}\n"
    );
    let bird = Bird::start(&rack.router, &rack.dir.join("bird"), &configuration)?;
    bird.wait_established(&["node"], DEADLINE)?;
    Ok(bird)
}

/// `start`: a router that has its session when it is there.
fn in_the_kernel<R>(
    title: &str,
    partitions: usize,
    start: impl FnOnce(&Rack) -> Result<R>,
) -> Result<Vec<f64>> {
    let rack = rack(title, partitions)?;
    let _router = start(&rack)?;
    let epoch = Instant::now();
    let monitor = rack
        .router
        .command("ip")
        .args(["-o", "monitor", "route"])
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut monitor = monitor?;
    let Some(lines) = monitor.stdout.take() else { return unmet("ip monitor has no output") };
    let (told, events) = mpsc::channel();
    thread::spawn(move || {
        use std::io::BufRead;
        for line in std::io::BufReader::new(lines).lines().map_while(|line| line.ok()) {
            let at = epoch.elapsed().as_secs_f64() * 1e3;
            let _ = told.send((line, at));
        }
    });
    let times = adds(&rack, partitions, epoch, |index| {
        loop {
            match events.recv_timeout(DEADLINE) {
                Ok((line, at)) if line.starts_with(&format!("{} ", block(index))) => return Ok(at),
                Ok(_) => {}
                Err(_) => {
                    let there = kernel_routes(&rack.router, "all")?;
                    return unmet(format!("no route to {}: {there:?}", block(index)));
                }
            }
        }
    });
    let _ = monitor.kill();
    let _ = monitor.wait();
    times
}
