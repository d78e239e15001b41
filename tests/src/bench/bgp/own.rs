//! The speaker's own time: reading UPDATEs, and holding what they say.
//!
//! Bytes as a router sends them go through the codec, and through a whole neighbour; sockets are left out.

use super::feed::{PACKED, few, update};
use crate::{Result, figure::Figure, unmet};
use bulkhead_bgp::{
    Family,
    export::NextHops,
    filter::Filter,
    fsm::{ConnId, Connection, Input, Restart, Settings, Timers},
    neighbour::{Neighbour, Policy},
    wire::{Attributes, Capability, Context, Framer, Message, Open},
};
use nix::time::{ClockId, clock_gettime};
use std::{fs, hint::black_box, net::IpAddr, net::Ipv4Addr, time::Duration};

const CONTEXT: Context = Context {
    four_octet_as: true,
    external: true,
    extended_messages: false,
    add_path: [false; 2],
    link_local: false,
};

pub fn run() -> Result<Vec<Figure>> {
    let mut figures = vec![
        Figure::new("BGP: decode, each packed prefix", decode_prefixes()?, "ns").at_most(15.0),
        Figure::new("BGP: decode, an UPDATE with 8 attributes", decode_attributes()?, "ns").at_most(500.0),
    ];
    for (count, each, octets) in [(200_000, PACKED, 40.0), (1_000_000, PACKED, 130.0), (200_000, 5, 60.0)] {
        let what = format!("BGP: receive {count}, {each} a set");
        let (cpu, memory) = receive(count, each)?;
        figures.push(Figure::new(format!("{what}, CPU"), cpu.as_secs_f64() * 1e3, "ms"));
        figures.push(Figure::new(format!("{what}, memory"), memory, "MB").at_most(octets));
    }
    Ok(figures)
}

fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Resident, in MB.
fn resident() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.map_or_else(|| unmet("no resident pages"), |pages| Ok(pages * 4096.0 / 1e6))
}

/// CPU for one reading of `bytes`, in ns.
fn decode(bytes: &[u8], times: u32) -> Result<f64> {
    let mut framer = Framer::default();
    let start = cpu()?;
    for _ in 0..times {
        framer.push(bytes);
        if !matches!(black_box(framer.next(CONTEXT)), Some(Ok(_))) {
            return unmet("an UPDATE that cannot be read");
        }
    }
    Ok((cpu()? - start).as_nanos() as f64 / f64::from(times))
}

fn decode_prefixes() -> Result<f64> {
    Ok(decode(&update(0, PACKED, &few()), 20_000)? / PACKED as f64)
}

/// ORIGIN, AS_PATH, NEXT_HOP, MED and communities of all three kinds; the eighth is LOCAL_PREF, as from inside.
fn decode_attributes() -> Result<f64> {
    let attributes = Attributes {
        med: Some(30),
        local_pref: Some(100),
        communities: vec![1, 2, 3],
        extended_communities: vec![1, 2],
        large_communities: vec![[1, 2, 3]],
        ..few()
    };
    decode(&update(0, 1, &attributes), 500_000)
}

/// CPU and memory of a neighbour that is told `count` prefixes.
fn receive(count: usize, each: usize) -> Result<(Duration, f64)> {
    let id = ConnId(1);
    let mut neighbour = established(id);
    let stream = super::feed::stream(0, count, each);
    let (memory, start) = (resident()?, cpu()?);
    for part in stream.chunks(65_536) {
        black_box(neighbour.handle(Duration::ZERO, Input::Received(id, part.to_vec())));
    }
    let used = (cpu()? - start, resident()? - memory);
    if neighbour.received().len() == count { Ok(used) } else { unmet("not all was received") }
}

fn established(id: ConnId) -> Neighbour {
    let settings = Settings {
        local_asn: 65020,
        router_id: Ipv4Addr::new(10, 0, 0, 10),
        peer_asn: 65010,
        timers: Timers { hold: 90, connect_retry: 5, send_hold: 0 },
        families: Family::ALL.to_vec(),
        restart: Restart { time: 60, restarting: false, forwarding_preserved: false },
        passive: true,
        add_path: false,
        extended_next_hop: false,
        link_local: false,
        seed: 1,
    };
    let policy = Policy {
        asn: 65020,
        remove_private_as: false,
        next_hops: NextHops::default(),
        export: Filter::ACCEPT,
        import: Filter::REJECT,
        allow_own_as: 0,
        prefix_limit: None,
        leaving: Default::default(),
    };
    let mut neighbour = Neighbour::new(settings, policy, Duration::ZERO);
    let open = Open {
        asn: 65010,
        hold_time: 90,
        router_id: Ipv4Addr::new(10, 0, 0, 20),
        capabilities: vec![Capability::Multiprotocol(Family::Ipv4Unicast), Capability::FourOctetAs(65010)],
    };
    let connection = Connection { id, local: IpAddr::from([192, 0, 2, 2]) };
    let received = |message: Message| Input::Received(id, message.encode(CONTEXT));
    let inputs = [
        Input::Start,
        Input::Incoming(connection),
        received(Message::Open(open)),
        received(Message::Keepalive),
    ];
    inputs.into_iter().for_each(|input| drop(neighbour.handle(Duration::ZERO, input)));
    neighbour
}
