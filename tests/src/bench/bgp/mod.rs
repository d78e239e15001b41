//! The speaker: its own time, and beside BIRD, FRR and GoBGP, fed with the same octets.

mod add;
mod beside;
mod feed;
mod own;
mod receiver;

pub use receiver::{RECEIVER, receiver};

use super::attempt;
use crate::{Result, figure::Figure};

pub fn run() -> Result<Vec<Figure>> {
    let part = |name: &str, run: fn() -> Result<Vec<Figure>>| attempt(&format!("BGP: {name}"), run);
    let mut figures = part("by itself", own::run);
    let mut scaled = beside::run();
    scaled.extend(part("many sessions", beside::many));
    scaled.extend(add::run());
    // A row must not say more than it is.
    if scale() > 1 {
        scaled.iter_mut().for_each(|figure| figure.name += &format!(", / {}", scale()));
    }
    figures.extend(scaled);
    Ok(figures)
}

/// `BULKHEAD_BENCH_SCALE=100`: so many times less of everything, to see that it runs.
fn scale() -> usize {
    let asked = std::env::var("BULKHEAD_BENCH_SCALE").ok().and_then(|scale| scale.parse().ok());
    asked.unwrap_or(1).max(1)
}
