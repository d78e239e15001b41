//! Compile and switch at scale: the promised set through admission, compiler and the kernel's maps, read back.

pub mod set;

use crate::{Context, Result, enter::BPFFS, figure::Figure, unmet};
use bulkhead_daemon::{
    datapath::{Datapath, Generation},
    source::{Snapshot, parse},
    store,
};
use bulkhead_ebpf_abi::{Connections, Sizes};
use bulkhead_policy::{
    Admitted, Compiled, Interner, Local, LocalPod, NodeInfo, Objects, admit_change, compile,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const CHANGES: usize = 200;
/// Of the storm.
const PACE: Duration = Duration::from_millis(50);
const NODE: &str = "node-1";

pub fn run() -> Result<Vec<Figure>> {
    let snapshot = set::snapshot();
    let folder = tempfile::tempdir().during(|| "a folder for the numbers".into())?;
    let mut bench = Bench::new(snapshot, folder.path())?;
    let mut figures = bench.full()?;
    figures.extend(bench.rules()?);
    figures.extend(bench.storm()?);
    figures.extend(bench.pods()?);
    Ok(figures)
}

/// What a node does with a change, without its pods' interfaces.
struct Bench {
    snapshot: Snapshot,
    in_force: Objects,
    clean: bool,
    interner: Interner,
    compiled: Option<Compiled>,
    pods: Vec<LocalPod>,
    datapath: Datapath,
    numbers: PathBuf,
}

impl Bench {
    fn new(snapshot: Snapshot, folder: &Path) -> Result<Self> {
        let pins = Path::new(BPFFS).join("bench-compile");
        let opened = Datapath::open(&pins, Sizes::DEFAULT, Connections::of(1024));
        let datapath = opened.or_else(|e| unmet(e.to_string()))?.datapath;
        Ok(Self {
            snapshot,
            in_force: Objects::default(),
            clean: false,
            interner: Interner::default(),
            compiled: None,
            pods: set::local_pods().map(|(partition, pod)| local(partition, pod)).collect(),
            datapath,
            numbers: folder.join("interner.json"),
        })
    }

    /// From the objects to the switched generation. Whether it was new to somebody, and how long it took.
    fn change(&mut self) -> Result<(bool, Duration)> {
        let start = Instant::now();
        let mut candidate = self.snapshot.policy.clone();
        candidate.default_pod_cidrs = vec!["10.64.0.0/16".parse().or_else(|_| unmet("a range"))?];
        let own = NodeInfo { addresses: vec![[172, 31, 255, 1].into()], ..NodeInfo::default() };
        candidate.nodes.insert(NODE.into(), Arc::new(own));
        let Admitted { objects, errors, clean } = admit_change(&self.in_force, self.clean, candidate);
        if let Some(error) = errors.first() {
            return unmet(error.to_string());
        }
        let mut interner = self.interner.clone();
        let none = BTreeSet::new();
        let former = self.compiled.as_ref();
        let local = Local { node: NODE, pods: &self.pods, partitions: Some(&none), former };
        let compiled = compile(&objects, &mut interner, &local).or_else(|e| unmet(e.to_string()))?;
        let new = !interner.says_the_same(&self.interner);
        if new {
            store::write_beside_maps(&self.numbers, &interner).or_else(|e| unmet(e.to_string()))?;
        }
        let Compiled { tables, prefixes, exact, .. } = &compiled;
        let wanted = Generation { tables, prefixes, exact };
        let same = former.is_some_and(|f| f.tables == *tables) && objects.same_rules(&self.in_force);
        self.interner = interner;
        if same {
            self.datapath.follow(&wanted).or_else(|e| unmet(e.to_string()))?;
        } else {
            self.datapath.apply(&wanted).or_else(|e| unmet(e.to_string()))?;
            self.interner.switched();
        }
        let took = start.elapsed();
        (self.in_force, self.clean, self.compiled) = (objects, clean, Some(compiled));
        Ok((!same, took))
    }

    fn insert(&mut self, text: &str) -> Result<()> {
        let objects = parse("change.yaml", text).or_else(|e| unmet(e.to_string()))?;
        objects.into_iter().for_each(|object| self.snapshot.insert(object));
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.datapath.settle().or_else(|e| unmet(e.to_string()))
    }

    fn full(&mut self) -> Result<Vec<Figure>> {
        // The mark of the highest use of memory begins anew.
        fs::write("/proc/self/clear_refs", "5").during(|| "beginning anew with the peak of memory".into())?;
        let (_, took) = self.change()?;
        self.settle()?;
        let peak = peak_memory()?;
        Ok(vec![
            Figure::new("compile_full", took.as_secs_f64(), "s").at_most(1.0),
            Figure::new("compile_full_memory", peak, "MB").at_most(150.0),
        ])
    }

    /// One rule of one partition that has a pod here, again and again.
    fn rules(&mut self) -> Result<Vec<Figure>> {
        let mut times = Vec::new();
        for edit in 1..=CHANGES {
            times.push(self.edit(edit)?);
            self.settle()?;
        }
        Ok(vec![
            Figure::new("change_rule_p50", quantile(&mut times, 50), "ms").at_most(10.0),
            Figure::new("change_rule_p99", quantile(&mut times, 99), "ms").at_most(50.0),
        ])
    }

    fn edit(&mut self, edit: usize) -> Result<Duration> {
        let partitions: Vec<usize> = set::local_pods().map(|(partition, _)| partition).collect();
        let text = set::partition(partitions[edit % partitions.len()], edit);
        self.insert(&text)?;
        Ok(self.change()?.1)
    }

    /// Twenty changes a second, each due at its time however long those before took.
    fn storm(&mut self) -> Result<Vec<Figure>> {
        let start = Instant::now();
        let mut last = Duration::ZERO;
        for n in 0..CHANGES as u32 {
            let due = start + PACE * n;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.edit(CHANGES + n as usize)?;
            last = due.elapsed();
            self.settle()?;
        }
        Ok(vec![Figure::new("change_rule_storm_last", last.as_secs_f64() * 1e3, "ms").at_most(150.0)])
    }

    /// Pods that come to other nodes, in namespaces that this node's policies look at.
    fn pods(&mut self) -> Result<Vec<Figure>> {
        let (mut known, mut new) = (Vec::new(), Vec::new());
        let namespaces: Vec<usize> = set::local_pods().map(|(partition, _)| partition).collect();
        for n in 0..4 * CHANGES {
            let partition = namespaces[n % namespaces.len()];
            self.insert(&set::newcomer(partition, n / namespaces.len()))?;
            let (generation, took) = self.change()?;
            if generation { &mut new } else { &mut known }.push(took);
            self.settle()?;
        }
        if known.is_empty() || new.is_empty() {
            return unmet(format!("{} pods were known and {} new", known.len(), new.len()));
        }
        eprintln!("    {} pods of known identities, {} of new ones", known.len(), new.len());
        Ok(vec![
            Figure::new("pod_known_p99", quantile(&mut known, 99), "ms").at_most(5.0),
            Figure::new("pod_new_p99", quantile(&mut new, 99), "ms").at_most(30.0),
        ])
    }
}

fn local(partition: usize, pod: usize) -> LocalPod {
    let (namespace, name) = set::pod_name(partition, pod);
    let [a, b, c, _] = set::range(partition).octets();
    let addresses = vec![[a, b, c, pod as u8].into()];
    LocalPod { namespace, name, partition: format!("p-{partition:04}"), addresses }
}

/// Milliseconds.
pub(super) fn quantile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

/// Of this process: the objects, the compile, and all it made.
fn peak_memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").during(|| "reading the peak of memory".into())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    match kilobytes {
        Some(kilobytes) => Ok(kilobytes / 1e3),
        None => unmet("the kernel does not say how much memory was used"),
    }
}
