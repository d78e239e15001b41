//! Puts the plugin and its network configuration where the container runtime looks, once an ADD would work.
//!
//! ```text
//! an ADD would work? ─▶ plugin: copy, sync, rename ─▶ configuration: write, sync, rename ─▶ the kubelet says Ready
//! ```
//! In this order, so that a runtime never finds a configuration whose plugin is not there; each is whole or not there at
//! all, also for a runtime that executes the plugin while it is replaced. A restart leaves both: an ADD that comes
//! meanwhile is told to try again. Looked at now and then: what somebody took away is put back.

use crate::config::{CniInstall, Config};
use serde_json::json;
use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tracing::{info, warn};

pub const PLUGIN: &str = "bulkhead-cni";
/// Before what other plugins leave behind: the runtime takes the first by name.
pub const CONFIGURATION: &str = "05-bulkhead.conflist";

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot read the plugin {}: {source}", path.display())]
    Plugin { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}: is the folder of the container runtime mounted, and writable?", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot remove {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// What the plugin must know to find this daemon.
#[derive(Clone, Copy, Debug)]
pub struct Daemon<'a> {
    pub socket: &'a Path,
    pub state_dir: &'a Path,
}

/// Keeps both in place. Does nothing without a configuration.
#[derive(Debug)]
pub struct Installer {
    to: Option<CniInstall>,
    socket: PathBuf,
    state_dir: PathBuf,
    /// The failure that was told last.
    told: Option<String>,
    installed: bool,
}

impl Installer {
    pub fn new(config: &Config) -> Self {
        Self {
            to: config.cni.clone(),
            socket: config.socket.clone(),
            state_dir: config.state_dir.clone(),
            told: None,
            installed: false,
        }
    }

    /// Whether there is anything to keep in place at all.
    pub fn is_wanted(&self) -> bool {
        self.to.is_some()
    }

    /// Whether the kubelet still waits for it: then each change may be what makes an ADD work.
    pub fn is_awaited(&self) -> bool {
        self.is_wanted() && !self.installed
    }

    /// To be called now and then; it reads files, so nobody may wait for it. `ready`: an ADD would work. What was put in place
    /// stays also when it would not.
    pub fn look_after(&mut self, ready: bool) {
        let Some(to) = self.to.as_ref().filter(|_| ready) else { return };
        match install(to, Daemon { socket: &self.socket, state_dir: &self.state_dir }) {
            Ok(written) => {
                self.told = None;
                self.installed = true;
                if written {
                    info!(plugin = %to.bin_dir.display(), configuration = %to.conf_dir.display(), "CNI installed");
                }
            }
            Err(e) => {
                let message = e.to_string();
                if self.told.as_ref() != Some(&message) {
                    warn!("{message}; tried again");
                }
                self.told = Some(message);
            }
        }
    }
}

/// Says whether anything had to be written.
///
/// # Errors
/// Which file could not be read or written; what was there before is there still.
pub fn install(to: &CniInstall, daemon: Daemon<'_>) -> Result<bool, InstallError> {
    let plugin =
        fs::read(&to.plugin).map_err(|source| InstallError::Plugin { path: to.plugin.clone(), source })?;
    let copied = put(&to.bin_dir.join(PLUGIN), &plugin, 0o755)?;
    let configured = put(&to.conf_dir.join(CONFIGURATION), configuration(daemon).as_bytes(), 0o644)?;
    Ok(copied || configured)
}

/// The configuration first: from then on the runtime asks somebody else.
///
/// # Errors
/// Which file could not be removed.
pub fn remove(from: &CniInstall) -> Result<(), InstallError> {
    for path in [from.conf_dir.join(CONFIGURATION), from.bin_dir.join(PLUGIN)] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::Remove { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A network configuration list (CNI specification 1.1, section 1). A runtime that does not know `cniVersions` takes 1.0.0,
/// and goes without GC and STATUS.
fn configuration(daemon: Daemon<'_>) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "bulkhead",
        "plugins": [{
            "type": PLUGIN,
            "socket": daemon.socket,
            "stateDir": daemon.state_dir,
            "capabilities": {"bandwidth": true, "portMappings": true},
        }],
    });
    format!("{list:#}\n")
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    if fs::read(path).is_ok_and(|there| there == content) {
        return Ok(false);
    }
    let write = || {
        // Begins with a dot: no runtime takes it for a configuration.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let draft = path.with_file_name(format!(".{name}.part"));
        let mut file = File::create(&draft)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|source| InstallError::Write { path: path.into(), source })?;
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use serde_json::Value;

    fn daemon() -> Daemon<'static> {
        Daemon { socket: Path::new("/run/b.sock"), state_dir: Path::new("/var/lib/b") }
    }

    fn folders() -> (tempfile::TempDir, CniInstall) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "net.d"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("image-plugin"), "the plugin").unwrap();
        let to = CniInstall { plugin: at("image-plugin"), bin_dir: at("bin"), conf_dir: at("net.d") };
        (dir, to)
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    #[test]
    fn the_runtime_finds_a_plugin_it_can_execute_and_a_configuration_that_names_it() {
        let (_dir, to) = folders();
        assert!(install(&to, daemon()).unwrap());
        let plugin = to.bin_dir.join(PLUGIN);
        assert_eq!(fs::read(&plugin).unwrap(), b"the plugin");
        assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o777, 0o755);
        let list: Value =
            serde_json::from_slice(&fs::read(to.conf_dir.join(CONFIGURATION)).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["type"], PLUGIN);
        assert_eq!(list["plugins"][0]["socket"], "/run/b.sock");
        // Nobody chained behind it has to map ports.
        assert_eq!(list["plugins"][0]["capabilities"]["portMappings"], true);
        // No draft is left beside them.
        assert_eq!((names(&to.bin_dir).len(), names(&to.conf_dir).len()), (1, 1));
    }

    #[test]
    fn what_is_right_is_left_alone_and_what_is_not_is_put_right() {
        let (_dir, to) = folders();
        install(&to, daemon()).unwrap();
        assert!(!install(&to, daemon()).unwrap());
        fs::write(&to.plugin, "a newer plugin").unwrap();
        fs::remove_file(to.conf_dir.join(CONFIGURATION)).unwrap();
        assert!(install(&to, daemon()).unwrap());
        assert_eq!(fs::read(to.bin_dir.join(PLUGIN)).unwrap(), b"a newer plugin");
        assert!(to.conf_dir.join(CONFIGURATION).exists());
    }

    #[test]
    fn without_the_plugin_there_is_no_configuration() {
        let (_dir, mut to) = folders();
        to.bin_dir = to.bin_dir.join("not-mounted");
        let error = install(&to, daemon()).unwrap_err().to_string();
        assert!(error.contains("not-mounted"), "{error}");
        assert!(names(&to.conf_dir).is_empty());
    }

    #[test]
    fn nothing_is_put_in_place_before_a_pod_could_be_connected_and_nothing_is_taken_away_when_none_can() {
        let (_dir, to) = folders();
        let path = |path: &Path| path.to_path_buf();
        let (socket, state_dir) = (path(daemon().socket), path(daemon().state_dir));
        let mut installer =
            Installer { to: Some(to.clone()), socket, state_dir, told: None, installed: false };
        let there = || (names(&to.bin_dir), names(&to.conf_dir));
        installer.look_after(false);
        assert_eq!((there(), installer.is_awaited()), ((vec![], vec![]), true));
        installer.look_after(true);
        let both = (vec![PLUGIN.to_string()], vec![CONFIGURATION.to_string()]);
        assert_eq!((there(), installer.is_awaited()), (both.clone(), false));
        installer.look_after(false);
        assert_eq!(there(), both);
    }

    #[test]
    fn whoever_reads_meanwhile_reads_one_version_or_the_other_whole() {
        let (dir, _) = folders();
        let path = dir.path().join("net.d").join(CONFIGURATION);
        let versions = [b"a".repeat(1 << 20), b"b".repeat(1 << 20)];
        put(&path, &versions[0], 0o644).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut read = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) || read == 0 {
                    let seen = fs::read(&path).unwrap();
                    assert!(versions.contains(&seen), "{} bytes of one of them", seen.len());
                    read += 1;
                }
                read
            });
            for n in 0..20 {
                assert!(put(&path, &versions[(n + 1) % 2], 0o644).unwrap());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(read > 0);
    }

    #[test]
    fn removing_leaves_what_is_not_ours_and_may_be_done_twice() {
        let (_dir, to) = folders();
        install(&to, daemon()).unwrap();
        fs::write(to.conf_dir.join("10-other.conflist"), "{}").unwrap();
        remove(&to).unwrap();
        remove(&to).unwrap();
        assert_eq!(names(&to.conf_dir), ["10-other.conflist"]);
        assert!(names(&to.bin_dir).is_empty());
    }
}
