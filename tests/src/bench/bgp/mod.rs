//! The speaker: its own time, and beside BIRD, FRR and GoBGP, fed with the same octets.

mod add;
mod beside;
mod feed;
mod own;
mod receiver;

pub use receiver::{RECEIVER, receiver};

use crate::{Result, figure::Figure};

pub fn run() -> Result<Vec<Figure>> {
    let mut scaled = beside::run()?;
    scaled.extend(beside::many()?);
    scaled.extend(add::run()?);
    // A row must not say more than it is.
    if scale() > 1 {
        scaled.iter_mut().for_each(|figure| figure.name += &format!(", / {}", scale()));
    }
    let mut figures = own::run()?;
    figures.extend(scaled);
    Ok(figures)
}

/// `BULKHEAD_BENCH_SCALE=100`: so many times less of everything, to see that it runs.
fn scale() -> usize {
    let asked = std::env::var("BULKHEAD_BENCH_SCALE").ok().and_then(|scale| scale.parse().ok());
    asked.unwrap_or(1).max(1)
}
