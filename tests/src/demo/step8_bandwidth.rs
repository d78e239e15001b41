//! Bandwidth classes: Ethernet bytes delivered, TCP and UDP, both directions, on one node and across, the first second included.

use super::Held;
use crate::{
    Lab, Netns, Result,
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

struct End<'a> {
    netns: &'a Netns,
    v4: Ipv4Addr,
}

pub fn run(lab: &mut Lab) -> Result<Held> {
    let (mut worst, mut count, mut details, mut port): (f64, usize, Vec<String>, u16) =
        (0.0, 0, Vec::new(), PORT);
    for (class, limited, limit) in CLASSES {
        let limited = end(lab, limited)?;
        for (place, peer) in PEERS {
            let peer = end(lab, peer)?;
            let mut line = format!("{class:<10} {place:<9}");
            for (direction, from, to) in [("out", &limited, &peer), ("in", &peer, &limited)] {
                for protocol in ["TCP", "UDP"] {
                    // Another port each time: the last one's connection may not be quite over.
                    port += 1;
                    let rate = measure(protocol, from, to, port, limit)?;
                    let off = rate.bits_per_second() / limit - 1.0;
                    line += &format!("  {protocol} {direction} {:.3}", rate.bits_per_second() / 1e9);
                    if off.abs() > TOLERANCE {
                        return unmet(format!(
                            "{line} Gbit/s is {:+.1} % off{}",
                            off * 100.0,
                            by_slice(&rate)
                        ));
                    }
                    worst = worst.max(off.abs());
                    count += 1;
                }
            }
            details.push(line + " Gbit/s");
        }
    }
    Ok(Held {
        figure: format!(
            "{count} rates of the first second, the farthest {:.1} % from its class",
            worst * 100.0
        ),
        details,
    })
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
    format!(" (by 100 ms: {})", slices.join(" "))
}
