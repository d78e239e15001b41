//! The reachability matrix of all pods, the vm and both nodes: every cell as it must be.

use super::{
    Held,
    expected::SERVICES,
    matrix::{grouped, holds},
};
use crate::{Lab, Result};
use std::time::Instant;

pub fn run(lab: &mut Lab) -> Result<Held> {
    let start = Instant::now();
    let tally = holds(lab, &SERVICES)?;
    Ok(Held::new(format!(
        "{} cells: {} allowed, {} denied; {:.1} s",
        grouped(tally.cells() as u64),
        grouped(tally.allowed as u64),
        grouped(tally.denied as u64),
        start.elapsed().as_secs_f64()
    )))
}
