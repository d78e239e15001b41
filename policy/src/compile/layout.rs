//! Where everything stands in the tables. Equal port pages, port tables and rows are stored once.
//!
//! What the former tables have already stays in its place, so that a change writes little: the tables of one history may
//! differ from those of another, but only in where things stand.

use super::{
    CompileError,
    classes::{Classes, is_same},
    policy::Policy,
    port_table::{PAGE, PortTable},
    ports::Run,
    rows::{Row, Rows},
    spans::{Hashed, Map, Spans, write},
};
use crate::{Chunked, tables::Tables};
use bulkhead_ebpf_abi::{
    Cell, DIR_EGRESS, DIR_INGRESS, PORT_SLOTS, PolicyDir, PortDirectory, PortPage, Sizes,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A list of rows that is placed has room for an eighth more classes than it needs: where new ones make it outgrow its place
/// all others do, too, and the whole table is written.
fn roomy(classes: u32) -> u32 {
    (classes + classes / 8).next_multiple_of(32)
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Layout {
    pub tables: Tables,
    policies: Vec<Arc<Policy>>,
    classes: Arc<Classes>,
    /// By policy and direction.
    rows: BTreeMap<(u32, u32), Arc<Rows>>,
    port_tables: Spans<Hashed<Vec<Run>>>,
    pages: Spans<Hashed<PortPage>>,
    cells: Spans<Row>,
    /// One for each policy and direction.
    lists: Spans<(u32, u32)>,
}

impl Layout {
    /// `policies` without those that are closed.
    pub fn of(
        policies: Vec<Arc<Policy>>,
        classes: &Arc<Classes>,
        former: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, CompileError> {
        let same = |f: &&Arc<Self>| Arc::ptr_eq(&f.classes, classes) && is_same(&f.policies, &policies);
        if let Some(former) = former.filter(same) {
            return Ok(former.clone());
        }
        let mut layout = Self::made(&with_closed(&policies), classes, former)?;
        layout.policies = policies;
        Ok(Arc::new(layout))
    }

    fn made(
        policies: &[Arc<Policy>],
        classes: &Arc<Classes>,
        former: Option<&Arc<Self>>,
    ) -> Result<Self, CompileError> {
        let rows = rows(policies, classes, former)?;
        let partition = || policies.iter().max_by_key(|p| p.rules.len()).map_or("", |p| p.partition.as_str());
        Self::place(rows, classes, former)
            .ok_or_else(|| CompileError::TooLarge { partition: partition().into() })
    }

    /// None: it grows beyond 32-bit offsets.
    fn place(
        rows: BTreeMap<(u32, u32), Arc<Rows>>,
        classes: &Arc<Classes>,
        former: Option<&Arc<Self>>,
    ) -> Option<Self> {
        let was = former.map(|f| &f.tables);
        let all = || rows.values();
        let by_runs: Map<&Hashed<Vec<Run>>, &PortTable> =
            all().map(|r| (&r.port_table.runs, &*r.port_table)).collect();
        let pages = all().flat_map(|r| &r.port_table.pages).map(|page| (page.clone(), 1));
        let pages = Spans::of(former.map(|f| &f.pages), pages)?;
        let port_tables = all().map(|r| (r.port_table.runs.clone(), PORT_SLOTS));
        let port_tables = Spans::of(former.map(|f| &f.port_tables), port_tables)?;
        let cells = all().flat_map(|r| &r.rows).map(|row| (row.clone(), row.len() as u32));
        let cells = Spans::of(former.map(|f| &f.cells), cells)?;
        let lists = || rows.iter().map(|(key, rows)| (*key, rows.of_class.len() as u32));
        let mut placed = Spans::with_room(former.map(|f| &f.lists), lists(), roomy)?;
        if placed.end() > Sizes::DEFAULT.rows as usize {
            placed = Spans::of(None, lists())?;
        }
        let lists = placed;
        let page_kept = |page: &Hashed<PortPage>| pages.kept(former.map(|f| &f.pages), page);
        let table_kept = |runs: &Hashed<Vec<Run>>| {
            port_tables.kept(former.map(|f| &f.port_tables), runs)
                && by_runs.get(runs).is_some_and(|t| t.pages.iter().all(page_kept))
        };
        let row_kept = |row: &Row| cells.kept(former.map(|f| &f.cells), row);
        let contents =
            |runs: &Hashed<Vec<Run>>| by_runs.get(runs).map_or_else(Vec::new, |t| directories(t, &pages));
        let tables = Tables {
            classes: classes.by_identity.clone(),
            port_directories: write(
                was.map(|t| &t.port_directories),
                [0; PAGE],
                &port_tables,
                table_kept,
                contents,
            ),
            port_pages: write(was.map(|t| &t.port_pages), [0; PAGE], &pages, page_kept, |p| vec![**p]),
            cells: write(was.map(|t| &t.cells), Cell::default(), &cells, row_kept, |row| row.to_vec()),
            rows: row_lists(&rows, &cells, &lists, former),
            policies: Arc::new(policy_table(&rows, &port_tables, &lists)),
        };
        let (policies, classes) = (Vec::new(), classes.clone());
        Some(Self { tables, policies, classes, rows, port_tables, pages, cells, lists })
    }
}

/// A number between those in use may stand in a pod's entry that is about to be rewritten: nothing passes.
fn with_closed(policies: &[Arc<Policy>]) -> Vec<Arc<Policy>> {
    let used: BTreeSet<u32> = policies.iter().map(|p| p.number).collect();
    let last = used.last().copied().unwrap_or_default();
    let holes = (0..last).filter(|n| !used.contains(n));
    let closed = holes.flat_map(|n| [DIR_EGRESS, DIR_INGRESS].map(|dir| Arc::new(Policy::closed(n, dir))));
    policies.iter().cloned().chain(closed).collect()
}

fn rows(
    policies: &[Arc<Policy>],
    classes: &Arc<Classes>,
    former: Option<&Arc<Layout>>,
) -> Result<BTreeMap<(u32, u32), Arc<Rows>>, CompileError> {
    let changed = former.map_or_else(Vec::new, |f| changed(&f.classes, classes));
    let one = |policy: &Arc<Policy>| {
        let key = (policy.number, policy.dir);
        let known = former.and_then(|f| f.rows.get(&key)).filter(|r| same(&r.policy, policy));
        let rows = match known {
            Some(rows) if changed.is_empty() => rows.clone(),
            Some(rows) => rows.with(classes, &changed).map_or_else(|| rows.clone(), Arc::new),
            None => Arc::new(Rows::of(policy, classes)?),
        };
        Ok((key, rows))
    };
    policies.iter().map(one).collect()
}

/// A closed policy is made anew each time.
fn same(a: &Arc<Policy>, b: &Arc<Policy>) -> bool {
    Arc::ptr_eq(a, b) || (a.rules.len() == 1 && a == b)
}

/// Classes that are others than before.
fn changed(before: &Arc<Classes>, now: &Arc<Classes>) -> Vec<usize> {
    if Arc::ptr_eq(before, now) {
        return Vec::new();
    }
    let (old, new) = (&before.atoms, &now.atoms);
    let at = |all: &[Option<Arc<[_]>>], class: usize| all.get(class).cloned().flatten();
    (0..old.len().max(new.len())).filter(|class| at(old, *class) != at(new, *class)).collect()
}

/// Six directories for each port table.
fn directories(table: &PortTable, pages: &Spans<Hashed<PortPage>>) -> Vec<PortDirectory> {
    let places: Vec<u32> = table.pages.iter().map(|page| pages.at(page)).collect();
    let slots = table.of_ports.chunks(PAGE);
    slots.map(|slot| std::array::from_fn(|high| slot.get(high).map_or(0, |p| places[*p as usize]))).collect()
}

/// Offsets of rows by class. A list whose policy, rows and place are the former's is there already.
fn row_lists(
    rows: &BTreeMap<(u32, u32), Arc<Rows>>,
    cells: &Spans<Row>,
    lists: &Spans<(u32, u32)>,
    former: Option<&Arc<Layout>>,
) -> Chunked<u32> {
    let mut table = former.map(|f| f.tables.rows.clone()).unwrap_or_default();
    table.resize(lists.end(), 0);
    for (key, own) in rows {
        let there = former.is_some_and(|f| {
            f.lists.at(key) == lists.at(key) && f.rows.get(key).is_some_and(|r| Arc::ptr_eq(r, own))
        });
        if there && own.rows.iter().all(|row| cells.kept(former.map(|f| &f.cells), row)) {
            continue;
        }
        let offsets: Vec<u32> = own.rows.iter().map(|row| cells.at(row)).collect();
        let list: Vec<u32> = own.of_class.iter().map(|row| offsets[*row as usize]).collect();
        table.write(lists.at(key) as usize, &list);
    }
    table
}

fn policy_table(
    rows: &BTreeMap<(u32, u32), Arc<Rows>>,
    port_tables: &Spans<Hashed<Vec<Run>>>,
    lists: &Spans<(u32, u32)>,
) -> Vec<[PolicyDir; 2]> {
    let last = rows.keys().map(|(number, _)| *number as usize).max().unwrap_or_default();
    let mut table = vec![[PolicyDir::default(); 2]; last + 1];
    for ((number, dir), rows) in rows {
        table[*number as usize][*dir as usize] = PolicyDir {
            port_table: port_tables.at(&rows.port_table.runs) / PORT_SLOTS,
            row_base: lists.at(&(*number, *dir)),
            row_count: rows.of_class.len() as u32,
            flags: rows.policy.flags,
        };
    }
    table
}
