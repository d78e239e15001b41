//! Where the programs under test are.

use crate::{Error, Result};
use std::{
    env,
    path::{Path, PathBuf},
};

/// Directories to look in, in this order, separated by `:`; the Makefile sets it.
pub const PATH: &str = "BULKHEAD_BIN_PATH";
/// `bulkhead-cni` is built apart from the others: small profile, static target.
const CNI_DIR: &str = "x86_64-unknown-linux-musl/cni";
/// Kubernetes' own programs, of `make kubernetes`.
const KUBERNETES_DIR: &str = "kubernetes";
/// The image, of `make image`.
const IMAGE_DIR: &str = "image";
/// What a virtual machine boots, of `make kernel`.
const KERNEL_DIR: &str = "kernel";

/// One of `bulkheadd`, `bulkhead-bfd`, `bulkhead-controller`, `bulkhead`, `bulkhead-cni`, or of Kubernetes' programs. Without [`PATH`]: beside the
/// running program, then where the release build of the plugin and the programs of Kubernetes go.
pub fn find(name: &'static str) -> Result<PathBuf> {
    let dirs = match env::var_os(PATH) {
        Some(path) => env::split_paths(&path).collect(),
        None => beside(&env::current_exe()?),
    };
    let found = dirs.iter().map(|d| d.join(name)).find(|p| p.is_file());
    let looked = || dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| Error::NotBuilt(name, looked()))
}

/// `target/debug/deps/lab-0123` and `target/debug/bulkhead-demo` both have `target/debug` beside them.
fn beside(exe: &Path) -> Vec<PathBuf> {
    let Some(dir) = exe.parent() else { return Vec::new() };
    let profile = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    let mut dirs = vec![profile.to_path_buf()];
    let target = profile.parent();
    dirs.extend(
        target.into_iter().flat_map(|t| [CNI_DIR, KUBERNETES_DIR, IMAGE_DIR, KERNEL_DIR].map(|d| t.join(d))),
    );
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_and_the_demo_find_the_same_programs() {
        let expected =
            ["/t/debug", "/t/x86_64-unknown-linux-musl/cni", "/t/kubernetes", "/t/image", "/t/kernel"]
                .map(PathBuf::from);
        assert_eq!(beside(Path::new("/t/debug/deps/lab-0123")), expected);
        assert_eq!(beside(Path::new("/t/debug/bulkhead-demo")), expected);
    }
}
