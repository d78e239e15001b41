//! What the demo's steps measure, and how long they take.

use crate::{Lab, Result, demo::STEPS, figure::Figure};
use std::time::Instant;

pub fn run() -> Result<Vec<Figure>> {
    let start = Instant::now();
    let mut lab = Lab::start()?;
    let mut figures = Vec::new();
    for (n, step) in STEPS.iter().enumerate() {
        eprintln!("    step {}: {}", n + 1, step.title);
        figures.extend((step.run)(&mut lab)?.figures);
    }
    drop(lab);
    figures.push(Figure::new("demo_duration", start.elapsed().as_secs_f64(), "s").at_most(90.0));
    Ok(figures)
}
