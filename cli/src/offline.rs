//! `diff --objects`: the comparison on files alone, without a daemon.
//!
//! The directory stands for what is in force, as a daemon would read it; no connection is known.

use bulkhead_api::messages::{DiffRequest, ObjectError, PolicyDiff};
use bulkhead_policy::{
    EAGER_PARTITIONS, Interner, Local, Objects, Witness, admit, changes, compile,
    diff::{Diff, Side},
    files::{self, Snapshot},
    strays,
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

/// What a node's configuration says besides the objects.
#[derive(clap::Args, Debug)]
pub struct Cluster {
    /// With --objects: range of the default partition, as the daemons' `podCIDRs`
    #[arg(long = "pod-cidr", requires = "objects")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// With --objects: an address that answers cluster DNS, as the daemons' `clusterDNS`
    #[arg(long, requires = "objects")]
    pub cluster_dns: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{}", lines(.0))]
    Refused(Vec<ObjectError>),
    #[error(transparent)]
    TooLarge(#[from] bulkhead_policy::CompileError),
    #[error("the change would not come into force: {0}")]
    NoRoom(#[from] bulkhead_policy::NoRoom),
}

fn lines(errors: &[ObjectError]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    format!("refused:\n{}", lines.join("\n"))
}

pub fn diff(directory: &Path, request: &DiffRequest, cluster: &Cluster) -> Result<PolicyDiff, OfflineError> {
    let before = read(directory)?;
    let after = files::edited(&before, request).map_err(|e| OfflineError::Refused(vec![e]))?;
    let before = admitted(&Objects::default(), before, cluster)?;
    let after = admitted(&before, after, cluster)?;
    check_room(&after)?;
    let mut interner = Interner::default();
    let mut side = |objects| Side::of(objects, &mut interner, "", &[]);
    let (was, is) = (side(&before)?, side(&after)?);
    let diff = Diff::of(&was, &is);
    Ok(PolicyDiff { changed: changes(&before, &after), changes: diff.changes, cut_connections: 0 })
}

/// Of what every node's tables hold; what a node's own pods ask besides is for its daemon to say.
fn check_room(objects: &Objects) -> Result<(), OfflineError> {
    let none = BTreeSet::new();
    let partitions = (objects.partitions.len() > EAGER_PARTITIONS).then_some(&none);
    let local = Local { node: "", pods: &[], partitions, former: None };
    Ok(compile(objects, &mut Interner::default(), &local)?.check_room()?)
}

/// As in a cluster, where pods are told of and nodes have claimed their addresses.
fn admitted(before: &Objects, snapshot: Snapshot, cluster: &Cluster) -> Result<Objects, OfflineError> {
    let mut objects = snapshot.policy;
    objects.default_pod_cidrs.clone_from(&cluster.pod_cidrs);
    objects.cluster_dns.clone_from(&cluster.cluster_dns);
    match admit(before, objects) {
        (objects, errors) if errors.is_empty() => {
            let (strays, _) = strays(&objects, &snapshot.blocks, Witness::Pod);
            Ok(Objects { strays, ..objects })
        }
        (_, errors) => Err(OfflineError::Refused(errors)),
    }
}

fn read(directory: &Path) -> Result<Snapshot, OfflineError> {
    let at = |path: &Path, source| OfflineError::Read { path: path.display().to_string(), source };
    let mut files = Vec::new();
    let mut errors = Vec::new();
    for entry in fs::read_dir(directory).map_err(|e| at(directory, e))? {
        let path = entry.map_err(|e| at(directory, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| files::is_object_file(n))
        else {
            continue;
        };
        let text = fs::read_to_string(&path).map_err(|e| at(&path, e))?;
        match files::parse(name, &text) {
            Ok(objects) => files.push((name.to_string(), objects)),
            Err(error) => errors.push(error),
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let (snapshot, twice) =
        files::snapshot(files.iter().map(|(name, objects)| (name.as_str(), objects.as_slice())));
    errors.extend(twice);
    if errors.is_empty() { Ok(snapshot) } else { Err(OfflineError::Refused(errors)) }
}
