//! The cgroups of a lab's kubelets. They are not in a namespace, so they outlive the lab until somebody removes them.
//!
//! Each lab has a group of its own in every hierarchy, named after its pid namespace; each node one inside it.

use crate::{Context, Result, until};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

const HIERARCHIES: &str = "/sys/fs/cgroup";
/// Dead processes leave their groups a little later.
const EMPTY: Duration = Duration::from_secs(20);

/// `/bulkhead-lab-4026532200`, of the lab in this pid namespace (`pid:[4026532200]`).
pub fn name(pid_namespace: &str) -> String {
    let number: String = pid_namespace.chars().filter(char::is_ascii_digit).collect();
    format!("/bulkhead-lab-{number}")
}

/// As [`name`], of the lab that this process is in.
pub fn own() -> Result<String> {
    let link = "/proc/self/ns/pid";
    Ok(name(&fs::read_link(link).during(|| link.into())?.display().to_string()))
}

/// Makes this group in every hierarchy.
pub fn create(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut at = hierarchy;
        for part in group.split('/').filter(|part| !part.is_empty()) {
            let parent = at.clone();
            at.push(part);
            fs::create_dir_all(&at).during(|| at.display().to_string())?;
            // A new cpuset has no processor and no memory, and takes no process.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(all) = fs::read_to_string(parent.join(file)) {
                    fs::write(at.join(file), all.trim()).during(|| at.join(file).display().to_string())?;
                }
            }
        }
    }
    Ok(())
}

/// Removes this group and all in it, from every hierarchy, when their processes are gone.
pub fn remove(group: &str) -> Result<()> {
    let group = group.trim_start_matches('/');
    until(&format!("the cgroups {group} are removed"), EMPTY, || {
        for hierarchy in hierarchies()? {
            let at = hierarchy.join(group);
            if at.exists() {
                remove_tree(&at).during(|| at.display().to_string())?;
            }
        }
        Ok(Some(()))
    })
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(HIERARCHIES).during(|| HIERARCHIES.into())?.flatten();
    Ok(entries.map(|e| e.path()).filter(|p| p.is_dir() && !p.is_symlink()).collect())
}

/// The files of a cgroup's directory go with it.
fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten().filter(|e| e.path().is_dir()) {
        remove_tree(&entry.path())?;
    }
    fs::remove_dir(dir)
}
