//! Tables depend on the objects alone: whatever came before, they are those of a compile from scratch, but for numbers.
#![allow(clippy::unwrap_used, reason = "a failed look-up is a failed test")]

#[path = "oracle/cases.rs"]
#[allow(dead_code, reason = "packets are the oracle's")]
mod cases;
mod common;

use bulkhead_ebpf_abi::Cell;
use bulkhead_policy::{Compiled, Interner, Local, LocalPod, Objects, compile};
use cases::any_objects;
use common::*;
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use std::fmt::Debug;

fn pods(objects: &Objects) -> Vec<LocalPod> {
    objects.pods.iter().filter(|(_, p)| !p.host_network).map(|(key, _)| local(objects, key)).collect()
}

/// Every snapshot compiled and switched to in turn, the last one until nothing is left of those before.
fn after(history: &[Objects]) -> Compiled {
    let mut interner = Interner::default();
    let mut former: Option<Compiled> = None;
    for objects in history.iter().chain(std::iter::repeat_n(history.last().unwrap(), 4)) {
        let pods = pods(objects);
        let local = Local { pods: &pods, former: former.as_ref(), ..HERE };
        former = Some(compile(objects, &mut interner, &local).unwrap());
        interner.switched();
    }
    former.unwrap()
}

/// Cells with the rule's name in its number's place.
fn named(compiled: &Compiled) -> Vec<(String, Cell)> {
    let name = |cell: &Cell| compiled.rules.get(cell.rule).unwrap().name.clone();
    compiled.tables.cells.iter().map(|cell| (name(cell), Cell { rule: 0, ..*cell })).collect()
}

/// Behind the policies in use there may be closed ones, for numbers that are free.
fn begins_with<T: PartialEq + Debug>(table: &[T], scratch: &[T]) -> Result<(), TestCaseError> {
    prop_assert_eq!(&table[..scratch.len().min(table.len())], scratch);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_of_changes_ends_in_the_tables_of_a_compile_from_scratch(
        history in prop::collection::vec(any_objects(), 1..5),
    ) {
        let objects = history.last().unwrap();
        let (found, scratch) = (after(&history), compiled_for(objects, &pods(objects)));
        begins_with(&named(&found), &named(&scratch))?;
        begins_with(&found.tables.rows, &scratch.tables.rows)?;
        begins_with(&found.tables.port_directories, &scratch.tables.port_directories)?;
        begins_with(&found.tables.port_pages, &scratch.tables.port_pages)?;
        for pod in pods(objects) {
            let policy = |c: &Compiled| c.tables.policies[c.place(objects, &pod).unwrap().policy as usize];
            prop_assert_eq!(policy(&found), policy(&scratch));
        }
        for (partition, number) in &scratch.policies {
            let number_found = found.policies[partition] as usize;
            prop_assert_eq!(found.tables.policies[number_found], scratch.tables.policies[*number as usize]);
        }
        let class = |c: &Compiled, id: u32| c.tables.classes[id as usize];
        prop_assert!(found.prefixes.keys().eq(scratch.prefixes.keys()) && found.exact.keys().eq(scratch.exact.keys()));
        for (a, b) in found.prefixes.values().zip(scratch.prefixes.values()).chain(found.exact.values().zip(scratch.exact.values())) {
            prop_assert_eq!((class(&found, a.id), a.flags), (class(&scratch, b.id), b.flags));
        }
    }
}
