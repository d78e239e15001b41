//! Images for the cluster's machines: Bulkhead's, as `make image` leaves it, the one that it takes the place of, one of CoreDNS, and one
//! of busybox that every other pod of a test runs.

use super::release::Release;
use crate::{Context, Error, Result, programs, unmet};
use bulkhead_image::{Architecture, File, Image};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// `/bin/busybox`; without arguments it only stays, so it serves as the sandbox's image, too.
pub const BUSYBOX: &str = "bulkhead.dev/test/busybox:1";
/// Named by the manifests beside its program.
const COREDNS: &str = "bulkhead.dev/test/coredns:1";

pub struct Archive {
    pub path: PathBuf,
    /// The name that it gives its image, and another one that the image is to have.
    pub also: Option<(&'static str, &'static str)>,
}

/// Archives of all images, in the order in which they are imported; those made here in `dir`.
pub fn all(dir: &Path, previous: &Release) -> Result<Vec<Archive>> {
    let bulkhead = Archive { path: programs::find("bulkhead.tar")?, also: None };
    let program = |path: &str, content| [File { path: path.into(), content }];
    let busybox = program("bin/busybox", read_busybox()?);
    let busybox = archive(dir, "busybox.tar", BUSYBOX, &busybox, &["sleep", "1000000"])?;
    let coredns = programs::find("coredns")?;
    let coredns = program("bin/coredns", fs::read(&coredns).during(|| coredns.display().to_string())?);
    let coredns = archive(dir, "coredns.tar", COREDNS, &coredns, &[])?;
    Ok(vec![previous.archive()?, bulkhead, busybox, coredns])
}

/// flannel's two, by the names that its manifest gives them.
pub fn flannel(dir: &Path, manifest: &str) -> Result<[Archive; 2]> {
    let program = |path: &str, name| -> Result<File> {
        let from = programs::find(name)?;
        let content = fs::read(&from).during(|| from.display().to_string())?;
        Ok(File { path: path.into(), content })
    };
    let made = |file: &str, image: &str, program| {
        let named =
            |line: &str| line.trim().strip_prefix("image: ").filter(|n| n.contains(image)).map(str::to_owned);
        let Some(name) = manifest.lines().find_map(named) else {
            return unmet(format!("flannel's manifest names no image {image}"));
        };
        let copy = File { path: "bin/cp".into(), content: read_busybox()? };
        archive(dir, file, &name, &[copy, program], &[])
    };
    Ok([
        made("flanneld.tar", "/flannel:", program("opt/bin/flanneld", "flanneld")?)?,
        made("flannel-plugin.tar", "/flannel-cni-plugin:", program("flannel", "flannel")?)?,
    ])
}

fn read_busybox() -> Result<Vec<u8>> {
    fs::read("/bin/busybox").map_err(|_| Error::NotInstalled("busybox-static"))
}

fn archive(dir: &Path, file: &str, name: &str, programs: &[File], arguments: &[&str]) -> Result<Archive> {
    let image = Image { name, architecture: Architecture::Amd64, programs, arguments };
    let archive = image.to_archive().or_else(|e| unmet(format!("making {name}: {e}")))?;
    let path = dir.join(file);
    fs::write(&path, archive).during(|| path.display().to_string())?;
    Ok(Archive { path, also: None })
}
