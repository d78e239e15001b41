//! `/metrics` of a real daemon beside a real router, held against the documented list and against what the router says.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite fails by panicking")]

use bulkhead_daemon::metrics::names;
use bulkhead_lab::bgp::{
    Kind, Setup,
    rack::Rack,
    site::{DEADLINE, NODE_AS, ROUTER, ROUTER_AS},
};
use bulkhead_lab::{Error, Result, enter, link::run, until};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
};

const ADDRESS: &str = "127.0.0.1:9650";
const DOCUMENTED: &str = include_str!("../../docs/metrics.md");

type Test = fn(&mut Rack) -> Result<()>;

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let _inside = enter()?;
    let tests: [(&str, Test); 3] = [
        ("without an address nothing listens", off),
        ("what is documented is exported, and nothing else", documented),
        ("numbers are those of the router and of the kernel", numbers),
    ];
    let trials = tests.map(|(name, test)| {
        let place: String = name.split(' ').filter_map(|word| word.chars().next()).collect();
        Trial::test(name, move || {
            let mut rack = Rack::create(&format!("m{place}"), "{}")?;
            let held = test(&mut rack);
            if held.is_err() {
                eprintln!("{}", rack.node.log_tail(30));
            }
            held.map_err(Failed::from)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit()
}

fn off(rack: &mut Rack) -> Result<()> {
    let listening = run(rack.node.netns.command("ss").args(["-Htln"]))?;
    let ports: BTreeSet<&str> =
        listening.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next()).collect();
    assert_eq!(ports, BTreeSet::from(["179"]), "{listening}");
    Ok(())
}

/// The daemon again, with an address to serve them at.
fn on(rack: &mut Rack) -> Result<()> {
    let mut configuration = OpenOptions::new().append(true).open(rack.node.dir().join("bulkheadd.yaml"))?;
    writeln!(configuration, "metricsAddress: {ADDRESS}")?;
    rack.node.stop_daemon()?;
    rack.node.start_daemon()
}

/// Samples by name and labels, after the page was read as Prometheus reads it.
fn scrape(rack: &Rack) -> Result<BTreeMap<String, f64>> {
    let page = rack.node.netns.run(|| {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })?;
    let (head, body) = page.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    let (mut samples, mut heads) = (BTreeMap::new(), BTreeMap::new());
    let mut current = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            let before = heads.insert(name.to_owned(), kind.to_owned());
            assert_eq!(before, None, "samples of {name} stand together");
            current = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().unwrap_or_default();
            assert!(name.starts_with(&current), "{name} under {current}");
            assert!(
                samples.insert(sample.to_owned(), value.parse().expect("a number")).is_none(),
                "{sample} twice"
            );
        }
    }
    samples.extend(heads.into_keys().map(|name| (format!("# {name}"), 0.0)));
    Ok(samples)
}

fn scraped(
    rack: &Rack,
    what: &str,
    wanted: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> Result<BTreeMap<String, f64>> {
    until(what, DEADLINE, || {
        let samples = scrape(rack)?;
        if wanted(&samples) { Ok(Some(samples)) } else { Err(Error::Unmet(format!("{samples:#?}"))) }
    })
}

fn families(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    samples.keys().filter_map(|name| name.strip_prefix("# ")).map(str::to_owned).collect()
}

/// With a router, BFD, a collector of BMP that is not there, and a service range.
fn configure(rack: &Rack) -> Result<()> {
    let text = format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
         spec: {{asn: {NODE_AS}, monitoring: [{{address: {ROUTER}, port: 11019}}]}}\n---\n\
         apiVersion: bulkhead.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: leaf}}\n\
         spec: {{peerAddress: {ROUTER}, peerASN: {ROUTER_AS}, connectRetrySeconds: 2, \
         session: {{bfd: {{}}, maxPrefixes: {{limit: 100}}}}}}\n"
    );
    Ok(fs::write(rack.dir.join("objects/bgp.yaml"), text)?)
}

/// A packet that no pod may send.
fn forge(rack: &Rack) -> Result<()> {
    rack.pod.netns.ip("address add 10.9.9.9/32 dev eth0")?;
    rack.pod.netns.run(|| {
        let socket = UdpSocket::bind("10.9.9.9:0")?;
        socket.send_to(&[0; 100], (ROUTER, 9))?;
        Ok(())
    })
}

fn documented(rack: &mut Rack) -> Result<()> {
    configure(rack)?;
    let _bfd = rack.bfd()?;
    on(rack)?;
    forge(rack)?;
    rack.node.cli(&["node", "drain-routes"])?;
    // Without a router there is an error to be told, with one BFD's detection time.
    let mut exported = families(&scraped(rack, "the error is told", |samples| {
        samples.contains_key("# bulkhead_bgp_peer_last_error_info")
            && samples.contains_key("# bulkhead_drop_bytes_total")
    })?);
    let _router =
        Kind::Bird.start_in(&rack.router, &rack.dir, &Setup { bfd: Some(300), ..Setup::DEFAULT })?;
    exported.extend(families(&scraped(rack, "BFD is up", |samples| {
        samples.get("bulkhead_bfd_up{peer=\"leaf\"}") == Some(&1.0)
    })?));
    let named: BTreeSet<String> = names::ALL.iter().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(exported, named, "everything that has a name is exported, and the other way round");
    // | `name` | type | `label`, `label` | what it says |
    let row = |line: &str| -> Option<[String; 4]> {
        let cells: Vec<String> =
            line.strip_prefix("| `")?.split('|').map(|c| c.replace('`', "").trim().to_owned()).collect();
        cells.get(..4)?.to_vec().try_into().ok()
    };
    let rows: Vec<[String; 4]> = DOCUMENTED.lines().filter_map(row).collect();
    let expected: Vec<[String; 4]> = names::ALL
        .iter()
        .map(|m| {
            let kind = format!("{:?}", m.kind).to_lowercase();
            let labels = if m.labels.is_empty() { "-".to_owned() } else { m.labels.join(", ") };
            [m.name.to_owned(), kind, labels, m.help.replace('`', "")]
        })
        .collect();
    assert_eq!(rows, expected, "docs/metrics.md lists them all, in their order");
    Ok(())
}

fn numbers(rack: &mut Rack) -> Result<()> {
    on(rack)?;
    let router = Kind::Bird.start_in(&rack.router, &rack.dir, &Setup::DEFAULT)?;
    let samples = scraped(rack, "both routes were sent and received", |samples| {
        ["advertised", "received"].iter().all(|direction| {
            samples.get(&format!("bulkhead_bgp_peer_prefixes{{peer=\"leaf\",direction=\"{direction}\"}}"))
                == Some(&2.0)
        })
    })?;
    let value = |samples: &BTreeMap<String, f64>, name: &str| {
        *samples.get(name).unwrap_or_else(|| panic!("no {name}"))
    };
    for (state, expected) in [("Established", 1.0), ("Idle", 0.0), ("OpenConfirm", 0.0)] {
        let name = format!("bulkhead_bgp_peer_state{{peer=\"leaf\",state=\"{state}\"}}");
        assert_eq!(value(&samples, &name), expected, "{name}");
    }
    assert_eq!(value(&samples, "bulkhead_bgp_peer_graceful_restart{peer=\"leaf\"}"), 1.0);
    assert_eq!(value(&samples, "bulkhead_endpoints{partition=\"default\"}"), 1.0);
    assert_eq!(value(&samples, "bulkhead_source_ready"), 1.0);
    assert!(value(&samples, "bulkhead_policy_compile_seconds_count") >= 1.0);
    // What BIRD counts as received from us, and we as sent: updates of two prefixes and two ends of RIB.
    let session = router.session()?;
    let (_, of_node) = session.split_once("\nnode ").expect("BIRD's own view of the session");
    // `Routes:         1 imported, 1 exported, 1 preferred`, for each address family.
    let counted = |word: &str| -> f64 {
        let lines = of_node.lines().filter_map(|line| line.trim().strip_prefix("Routes:"));
        let counts =
            lines.flat_map(|line| line.split(',')).filter_map(|count| count.trim().strip_suffix(word));
        counts.filter_map(|count| count.trim().parse::<f64>().ok()).sum()
    };
    for (ours, theirs) in [("advertised", "imported"), ("received", "exported")] {
        let prefixes = format!("bulkhead_bgp_peer_prefixes{{peer=\"leaf\",direction=\"{ours}\"}}");
        assert_eq!(value(&samples, &prefixes), counted(theirs), "{ours}; BIRD: {session}");
    }
    let updates =
        value(&samples, "bulkhead_bgp_peer_messages_total{peer=\"leaf\",direction=\"sent\",type=\"update\"}");
    assert!(updates >= 4.0, "{updates} updates; BIRD: {session}");
    let up = "bulkhead_bgp_peer_established_total{peer=\"leaf\"}";
    assert_eq!(value(&samples, up), 1.0);
    drop(router);
    let down = scraped(rack, "the session is over", |samples| {
        samples.keys().any(|name| name.starts_with("bulkhead_bgp_peer_last_error_info{peer=\"leaf\""))
    })?;
    assert_eq!(value(&down, up), 1.0);
    let history = rack.node.cli(&["bgp", "history", "leaf"])?;
    assert!(history.contains("down") && history.contains("the connection was lost"), "{history}");
    let dropped = |samples: &BTreeMap<String, f64>| -> f64 {
        samples
            .iter()
            .filter(|(name, _)| name.starts_with("bulkhead_drop_packets_total{"))
            .map(|(_, v)| v)
            .sum()
    };
    let before = dropped(&scrape(rack)?);
    forge(rack)?;
    scraped(rack, "the forged packet is counted", |samples| dropped(samples) > before).map(drop)
}
