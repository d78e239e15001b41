//! Bandwidth classes: Ethernet bytes delivered, TCP and UDP, both directions, on one node and across, the first second included.

use super::Held;
use crate::{
    Lab, Netns, Result,
    figure::Figure,
    traffic::rate::{self, Rate},
    unmet,
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
const TRIES: u16 = 3;

struct End<'a> {
    netns: &'a Netns,
    v4: Ipv4Addr,
}

/// What all measurements together came to.
#[derive(Default)]
struct Tally {
    count: u16,
    again: usize,
    /// Farthest from its class, as a part of it.
    worst: f64,
}

pub fn run(lab: &mut Lab) -> Result<Held> {
    let (mut tally, mut details) = (Tally::default(), Vec::new());
    for (class, limited, limit) in CLASSES {
        let limited = end(lab, limited)?;
        for (place, peer) in PEERS {
            let peer = end(lab, peer)?;
            let mut line = format!("{class:<10} {place:<9}");
            for (direction, from, to) in [("out", &limited, &peer), ("in", &peer, &limited)] {
                for protocol in ["TCP", "UDP"] {
                    let name = format!("{class} {place} {protocol} {direction}");
                    let rate =
                        within(&mut tally, &name, limit, |port| measure(protocol, from, to, port, limit))?;
                    line += &format!("  {protocol} {direction} {:.3}", rate / 1e9);
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

/// Too much is a fault at once. Too little may be the fault of a busy machine that cannot send or receive so fast: it is
/// measured again, and stands if it stays so.
fn within(
    tally: &mut Tally,
    name: &str,
    limit: f64,
    mut measure: impl FnMut(u16) -> Result<Rate>,
) -> Result<f64> {
    let mut tries = 0;
    loop {
        // Another port each time: the last one's connection may not be quite over.
        let rate = measure(PORT + tally.count * TRIES + tries)?;
        tries += 1;
        let off = rate.bits_per_second() / limit - 1.0;
        if off.abs() <= TOLERANCE {
            tally.count += 1;
            tally.worst = tally.worst.max(off.abs());
            return Ok(rate.bits_per_second());
        }
        if off > 0.0 || tries == TRIES {
            let found = rate.bits_per_second() / 1e9;
            return unmet(format!(
                "{name} {found:.3} Gbit/s is {:+.1} % off{}",
                off * 100.0,
                by_slice(&rate)
            ));
        }
        tally.again += 1;
    }
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

fn by_slice(rate: &Rate) -> String {
    let slices: Vec<String> = rate
        .slices
        .iter()
        .map(|bytes| format!("{:.2}", *bytes as f64 * 8.0 / rate::SLICE.as_secs_f64() / 1e9))
        .collect();
    format!(" (by 100 ms: {}; {} segments sent again)", slices.join(" "), rate.retransmits)
}
