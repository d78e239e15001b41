//! Bandwidth classes: Ethernet bytes delivered, TCP and UDP, both directions, on one node and across, the first second included.

use super::Held;
use crate::{
    Error, Lab, Netns, Result,
    figure::Figure,
    traffic::rate::{self, Rate, Within},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// The first second.
const WINDOW: Duration = Duration::from_secs(1);
const TOLERANCE: f64 = 0.05;
/// Offered over UDP, in parts of the class.
const OFFER: f64 = 1.3;
const CLASSES: [(&str, &str, f64); 2] =
    [("low", "shop/low-0", 1e9), ("management", "shop/management-0", 0.5e9)];
const PEERS: [(&str, &str); 2] = [("same node", "shop/cart-0"), ("across", "shop/cart-1")];
const PORT: u16 = 5201;

struct End<'a> {
    netns: &'a Netns,
    v4: Ipv4Addr,
}

/// What all measurements together came to.
#[derive(Default)]
struct Tally {
    count: usize,
    again: u32,
    /// Farthest from its class, as a part of it.
    worst: f64,
}

impl Tally {
    fn add(&mut self, found: &Within, limit: f64) {
        self.count += 1;
        self.again += found.again;
        self.worst = self.worst.max((found.bits_per_second / limit - 1.0).abs());
    }
}

pub fn run(lab: &mut Lab) -> Result<Held> {
    let (mut tally, mut details, mut port) = (Tally::default(), Vec::new(), PORT);
    for (class, limited, limit) in CLASSES {
        let limited = end(lab, limited)?;
        for (place, peer) in PEERS {
            let peer = end(lab, peer)?;
            let mut line = format!("{class:<10} {place:<9}");
            for (direction, from, to) in [("out", &limited, &peer), ("in", &peer, &limited)] {
                for protocol in ["TCP", "UDP"] {
                    let found = rate::within(limit, TOLERANCE, || {
                        // Another port each time: the last one's connection may not be quite over.
                        port += 1;
                        measure(protocol, from, to, port, limit)
                    })
                    .map_err(|e| Error::Unmet(format!("{class} {place} {protocol} {direction}: {e}")))?;
                    line += &format!("  {protocol} {direction} {:.3}", found.bits_per_second / 1e9);
                    tally.add(&found, limit);
                }
            }
            details.push(line + " Gbit/s");
        }
    }
    let again = if tally.again > 0 { format!("; {} measured again", tally.again) } else { String::new() };
    let figure = format!(
        "{} rates of the first second, the farthest {:.1} % from its class{again}",
        tally.count,
        tally.worst * 100.0
    );
    let farthest =
        Figure::new("bandwidth_farthest_from_class", tally.worst * 100.0, "%").at_most(TOLERANCE * 100.0);
    Ok(Held { figure, details, figures: vec![farthest] })
}

fn end<'a>(lab: &'a Lab, reference: &str) -> Result<End<'a>> {
    lab.pod(reference).map(|p| End { netns: &p.netns, v4: p.v4 })
}

fn measure(protocol: &str, from: &End<'_>, to: &End<'_>, port: u16, limit: f64) -> Result<Rate> {
    let address = SocketAddr::new(to.v4.into(), port);
    match protocol {
        "TCP" => rate::tcp(from.netns, to.netns, address, WINDOW),
        _ => rate::udp(from.netns, to.netns, address, WINDOW, (limit * OFFER) as u64),
    }
}
