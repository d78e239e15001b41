//! What docs/ARCHITECTURE.md says of every map is what this daemon makes.

use super::{later_shapes, shapes};
use crate::config::CONNTRACK_ENTRIES_DEFAULT;
use bulkhead_ebpf_abi::{Connections, Sizes};
use std::collections::BTreeMap;

const ARCHITECTURE: &str = include_str!("../../../../docs/ARCHITECTURE.md");
const HEAD: &str = "| map | key | value | entries |";

#[test]
fn the_table_of_maps_has_each_with_its_key_value_and_entries() {
    let table = ARCHITECTURE.lines().skip_while(|line| !line.starts_with(HEAD)).skip(2);
    let cells = |line: &'static str| line.split('|').map(str::trim).skip(1).take(4).collect::<Vec<_>>();
    let told: BTreeMap<_, _> = table
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .map(|cells| (cells[0].trim_matches('`').to_string(), cells[1..].join(" ").replace(',', "")))
        .collect();
    let made = [shapes(&Sizes::DEFAULT, &Connections::of(CONNTRACK_ENTRIES_DEFAULT)), later_shapes()];
    let made: BTreeMap<_, _> = made
        .concat()
        .iter()
        .map(|s| (s.name.to_string(), format!("{} {} {}", s.key, s.value, s.entries)))
        .collect();
    assert_eq!(told, made);
}
