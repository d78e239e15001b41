//! The figures that Bulkhead promises, in groups that can be measured alone.
//!
//! A group is a function that measures and returns its figures; a new one is a file here and a line in [`GROUPS`]. Each
//! group runs in namespaces of its own, and measures what it compares in one interleaved run.

mod bfd;
mod bgp;
mod cni;
mod compile;
mod daemon;
mod demo;
mod packet;
mod paths;
mod services;

pub use bgp::{RECEIVER, receiver};

use crate::{Context, Result, enter, figure::Figure, unmet};
use std::{fs, path::Path};

pub struct Group {
    pub name: &'static str,
    pub what: &'static str,
    run: fn() -> Result<Vec<Figure>>,
}

pub const GROUPS: &[Group] = &[
    Group { name: "bfd", what: "a link that dies in silence: who leaves it when", run: bfd::run },
    Group { name: "bgp", what: "the speaker, beside BIRD, FRR and GoBGP", run: bgp::run },
    Group { name: "cni", what: "the plugin: its size, and its own time in a call", run: cni::run },
    Group {
        name: "compile",
        what: "compile and switch at scale, through the kernel's maps",
        run: compile::run,
    },
    Group {
        name: "daemon",
        what: "a whole daemon at scale: its memory, and a change from its file to the kernel",
        run: daemon::run,
    },
    Group { name: "demo", what: "the data centre of the demo, step by step", run: demo::run },
    Group { name: "packet", what: "a packet at a hook, beside the bare look-up", run: packet::run },
    Group { name: "paths", what: "between pods of one node, beside a bridge and nftables", run: paths::run },
    Group { name: "services", what: "a call of a service, beside a call without hooks", run: services::run },
];

/// Measures all groups, or `only` one; prints the figures and writes them to `results.jsonl`, where the rows of other groups stay.
/// Whether every target is met. A group that fails is a row that is not met, and loses nothing of the others.
pub fn run(directory: &Path, only: Option<&str>) -> Result<bool> {
    let chosen: Vec<_> = GROUPS.iter().filter(|g| only.is_none_or(|name| g.name == name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = GROUPS.iter().map(|g| g.name).collect();
        return unmet(format!(
            "no group of figures is called {}; there are: {}",
            only.unwrap_or(""),
            names.join(", ")
        ));
    }
    let _inside = enter()?;
    let mut all_met = true;
    for group in chosen {
        eprintln!("==> {}: {}", group.name, group.what);
        let figures = attempt(group.name, group.run);
        figures.iter().for_each(show);
        all_met &= figures.iter().all(|f| f.met != Some(false));
        write(directory, group, &figures)?;
    }
    Ok(all_met)
}

/// A row instead, if it fails: what comes after it is measured all the same.
fn attempt(name: &str, run: impl FnOnce() -> Result<Vec<Figure>>) -> Vec<Figure> {
    run().unwrap_or_else(|e| vec![Figure::failed(name, "", e.to_string())])
}

/// The rows of a group into its own file, and those of all groups into one.
fn write(directory: &Path, group: &Group, figures: &[Figure]) -> Result<()> {
    let of = |group: &Group| directory.join("groups").join(group.name).with_extension("jsonl");
    let row = |f: &Figure| {
        serde_json::to_string(f)
            .map(|row| row + "\n")
            .map_err(|source| crate::Error::Json { what: f.name.clone(), source })
    };
    let text = figures.iter().map(row).collect::<Result<String>>()?;
    let path = of(group);
    fs::create_dir_all(directory.join("groups")).during(|| directory.display().to_string())?;
    fs::write(&path, text).during(|| path.display().to_string())?;
    let all: String = GROUPS.iter().filter_map(|group| fs::read_to_string(of(group)).ok()).collect();
    let path = directory.join("results.jsonl");
    fs::write(&path, all).during(|| path.display().to_string())
}

fn show(figure: &Figure) {
    let Figure { name, unit, .. } = figure;
    let beside = figure.reference.map_or(String::new(), |r| format!("beside {}", number(r)));
    let ratio = figure.ratio.map_or(String::new(), |r| format!("{r:.2}"));
    let met = match figure.met {
        Some(true) => "met",
        Some(false) => "NOT MET",
        None => "",
    };
    let error = figure.error.as_ref().map_or(String::new(), |error| format!(" ({error})"));
    let line = format!(
        "    {name:<40}{:>10} {unit:<6} {beside:<18}{ratio:<8}{:<24}{met}{error}",
        number(figure.ours),
        figure.promise()
    );
    println!("{}", line.trim_end());
}

fn number(value: f64) -> String {
    if value.is_nan() {
        return "-".into();
    }
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
