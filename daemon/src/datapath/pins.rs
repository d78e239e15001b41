//! What stands in the BPF file system, and under which names.
//!
//! ```text
//! <pin_dir>/maps/<MAP>                    adopted, with their contents
//!          /programs/<hook>               replaced by every start
//!          /links/<interface>-<hook>      adopted, pointed to the new program in one step
//!                /service_<call>          the same, of the hooks of socket calls
//! ```
//! `maps/ABI` holds the layout version and is written last: without it the pins are of a start that never finished.

use super::{DatapathError, links::Hook, services, sys};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Makes the folders.
    pub fn prepare(&self) -> Result<(), DatapathError> {
        for dir in [self.maps(), self.programs(), self.links()] {
            fs::create_dir_all(&dir).map_err(|e| error("cannot make", &dir, e))?;
        }
        let found = statfs(&self.root)
            .map_err(|e| error("cannot look at the file system of", &self.root, e.into()))?;
        if found.filesystem_type() == BPF_FS_MAGIC {
            return Ok(());
        }
        Err(DatapathError::Other(format!(
            "{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf",
            self.root.display()
        )))
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn program(&self, hook: Hook) -> PathBuf {
        self.programs().join(hook.name())
    }

    pub fn link(&self, ifname: &str, hook: Hook) -> PathBuf {
        self.links().join(format!("{}-{}", encode(ifname), hook.name()))
    }

    /// Of a hook of socket calls.
    pub fn service_link(&self, hook: &str) -> PathBuf {
        self.links().join(hook)
    }

    /// Every link that is pinned, by interface and hook. A file with another name is not ours and left alone.
    pub fn all_links(&self) -> Result<Vec<(String, Hook)>, DatapathError> {
        let links = self.links();
        let mut found = Vec::new();
        let entries = match fs::read_dir(&links) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(e) => return Err(error("cannot list", &links, e)),
        };
        for entry in entries {
            let name = entry.map_err(|e| error("cannot list", &links, e))?.file_name();
            let Some(name) = name.to_str() else { continue };
            found.extend(Hook::ALL.iter().find_map(|hook| {
                let ifname = name.strip_suffix(hook.name())?.strip_suffix('-')?;
                Some((decode(ifname), *hook))
            }));
        }
        found.sort();
        Ok(found)
    }

    /// Removes every map; those of a start that never finished.
    pub fn clear_maps(&self) -> Result<(), DatapathError> {
        clear(&self.maps())
    }

    /// Removes everything: links first, so that no program runs on maps that nobody can reach.
    pub fn clear(&self) -> Result<(), DatapathError> {
        for (ifname, hook) in self.all_links()? {
            release(&self.link(&ifname, hook))?;
        }
        services::release_all(self)?;
        for dir in [self.links(), self.programs(), self.maps()] {
            clear(&dir)?;
            remove(fs::remove_dir, &dir)?;
        }
        remove(fs::remove_dir, &self.root)
    }
}

fn clear(dir: &Path) -> Result<(), DatapathError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error("cannot list", dir, e)),
    };
    for entry in entries {
        unpin(&entry.map_err(|e| error("cannot list", dir, e))?.path())?;
    }
    Ok(())
}

/// Detaches a pinned link and removes its pin; succeeds also when there is none.
pub fn release(link: &Path) -> Result<(), DatapathError> {
    sys::detach_pinned_link(link).map_err(|e| error("cannot detach", link, e))?;
    unpin(link)
}

/// Removes a pin; succeeds also when there is none.
pub fn unpin(path: &Path) -> Result<(), DatapathError> {
    remove(fs::remove_file, path)
}

fn remove(how: fn(PathBuf) -> io::Result<()>, path: &Path) -> Result<(), DatapathError> {
    match how(path.to_path_buf()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(error("cannot remove", path, e)),
    }
}

pub fn error(what: &'static str, path: &Path, source: io::Error) -> DatapathError {
    DatapathError::Pin { what, path: path.to_path_buf(), source }
}

/// The BPF file system refuses dots in names; interfaces may have them (`eth0.100`).
fn encode(ifname: &str) -> String {
    ifname.replace('%', "%25").replace('.', "%2e")
}

fn decode(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_name_has_a_pin_name_without_dots() {
        for name in ["eth0", "eth0.100", "a%2eb", "%25.", "bh-a-b"] {
            assert!(!encode(name).contains('.'));
            assert_eq!(decode(&encode(name)), name);
        }
    }
}
