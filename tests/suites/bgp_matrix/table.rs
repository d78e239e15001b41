//! The matrix as a table of the docs.

use crate::{Cell, Row};
use bulkhead_lab::{Context, Result};
use std::{fmt::Write, process::Command};

const PAGE: &str = include_str!("../../../docs/bgp-matrix.md");

/// In the order of `Kind::ALL`: the column's head, the program that runs in its cells, and what that says of itself.
const ROUTERS: [(&str, &str, &str); 3] = [
    ("BIRD 2.0.12", "/usr/sbin/bird", "BIRD version 2.0.12"),
    ("FRR 8.4", "/usr/lib/frr/bgpd", "bgpd version 8.4."),
    ("GoBGP 3.10", "/usr/bin/gobgpd", "gobgpd version 3.10."),
];
/// Cells that are tested, and those where one side lacks something. Who takes a row away says so here.
const CELLS: (usize, usize) = (109, 11);

pub fn check(rows: &[&Row]) -> Result<()> {
    let head = PAGE.find("| feature |").expect("the page has a table");
    let table = PAGE[head..].split("\n\n").next().unwrap_or_default();
    assert_eq!(table.trim_end(), render(rows).trim_end(), "docs/bgp-matrix.md, and what is tested");
    let cells = || rows.iter().flat_map(|row| row.cells);
    let tested = cells().filter(|cell| matches!(cell, Cell::Tested(_))).count();
    assert_eq!((tested, cells().count() - tested), CELLS, "cells tested, and lacking");
    for (head, program, version) in ROUTERS {
        let said = Command::new(program).arg("--version").output().during(|| program.into())?;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with(version), "the column is {head}, and what runs is {said}");
    }
    Ok(())
}

fn render(rows: &[&Row]) -> String {
    let [bird, frr, gobgp] = ROUTERS.map(|(head, ..)| head);
    let mut table =
        format!("| feature | RFC | {bird} | {frr} | {gobgp} |\n| --- | --- | --- | --- | --- |\n");
    for row in rows {
        let cells = row.cells.map(|cell| match cell {
            Cell::Tested(_) => "✓",
            Cell::Lacks(why) => why,
        });
        let _ = writeln!(table, "| {} | {} | {} |", row.feature, row.rfc, cells.join(" | "));
    }
    table
}
