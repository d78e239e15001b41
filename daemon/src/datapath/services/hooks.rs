//! The hooks of socket calls: on the root of the cgroup2 hierarchy, so that no process is in none of them; pinned like all
//! others, and replaced in one step.

use super::super::{
    Datapath, DatapathError,
    pins::{self, Pins, release},
    sys, verified,
};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};
use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

/// Programs, and the names of their links' pins. What comes back is attached before what goes out.
pub const HOOKS: [&str; 8] = [
    "service_getpeername4",
    "service_getpeername6",
    "service_recvmsg4",
    "service_recvmsg6",
    "service_sendmsg4",
    "service_sendmsg6",
    "service_connect4",
    "service_connect6",
];

/// Inode of the root of a kernfs hierarchy; a cgroup namespace shows another below it.
const ROOT_INODE: u64 = 1;

/// Where the whole cgroup2 hierarchy is mounted.
pub fn find_cgroup() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let is_root = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.ino() == ROOT_INODE);
    Ok(cgroup2_mounts(&mounts).find(is_root))
}

fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let at = mount.split(' ').nth(4)?;
        kind.starts_with("cgroup2 ").then(|| at.replace("\\040", " ").into())
    })
}

pub fn load(object: &mut Ebpf) -> Result<(), DatapathError> {
    for hook in HOOKS {
        let program = program(object, hook)?;
        verified::load(hook, || program.load())?;
    }
    Ok(())
}

fn program<'a>(object: &'a mut Ebpf, hook: &str) -> Result<&'a mut CgroupSockAddr, DatapathError> {
    let program = object
        .program_mut(hook)
        .ok_or_else(|| DatapathError::Other(format!("the object has no program {hook}")))?;
    program.try_into().map_err(|source| DatapathError::Program { what: format!("program {hook}"), source })
}

/// Takes all of them away; succeeds also when there are none.
pub fn release_all(pins: &Pins) -> Result<(), DatapathError> {
    HOOKS.iter().rev().try_for_each(|hook| release(&pins.service_link(hook)))
}

impl Datapath {
    /// Attaches the hooks of socket calls to a cgroup and pins the links; those of a daemon before us get the new programs.
    pub fn attach_services(&mut self, cgroup: &Path) -> Result<(), DatapathError> {
        let unreadable = |e| pins::error("cannot open the cgroup", cgroup, e);
        let file = File::open(cgroup).map_err(unreadable)?;
        let id = file.metadata().map_err(unreadable)?.ino();
        HOOKS.iter().try_for_each(|hook| self.attach_service(hook, &file, id))
    }

    fn attach_service(&mut self, hook: &str, cgroup: &File, id: u64) -> Result<(), DatapathError> {
        let path = self.pins.service_link(hook);
        let failed = |source| DatapathError::Program { what: format!("attaching {hook}"), source };
        let program = program(&mut self.object, hook)?;
        match sys::pinned_link_cgroup(&path).map_err(|e| pins::error("cannot read", &path, e))? {
            Some(found) if found == id => {
                let new = program.fd().map_err(failed)?;
                return sys::update_pinned_link(&path, new.as_fd())
                    .map_err(|e| pins::error("cannot adopt", &path, e));
            }
            // Of another cgroup, or one that is gone.
            Some(_) => release(&path)?,
            None => {}
        }
        // Links stand beside those of others, whatever is said here.
        let attached = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
        let link: FdLink = program
            .take_link(attached)
            .map_err(failed)?
            .try_into()
            .map_err(|e| DatapathError::Other(format!("{hook}: {e}")))?;
        link.pin(&path).map(drop).map_err(|e| pins::error("cannot pin", &path, io::Error::other(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_among_the_mounts() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                    40 30 0:36 / /sys/fs/cgroup/uni\\040fied rw shared:10 - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = cgroup2_mounts(text).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/uni fied")]);
    }
}
