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
    let busybox = fs::read("/bin/busybox").map_err(|_| Error::NotInstalled("busybox-static"))?;
    let busybox = archive(dir, BUSYBOX, "busybox", busybox, &["sleep", "1000000"])?;
    let coredns = programs::find("coredns")?;
    let coredns = fs::read(&coredns).during(|| coredns.display().to_string())?;
    let coredns = archive(dir, COREDNS, "coredns", coredns, &[])?;
    Ok(vec![previous.archive()?, bulkhead, busybox, coredns])
}

/// Of the image `name`, whose one program is `/bin/PROGRAM`.
fn archive(dir: &Path, name: &str, program: &str, content: Vec<u8>, arguments: &[&str]) -> Result<Archive> {
    let programs = [File { path: format!("bin/{program}"), content }];
    let image = Image { name, architecture: Architecture::Amd64, programs: &programs, arguments };
    let archive = image.to_archive().or_else(|e| unmet(format!("making {name}: {e}")))?;
    let path = dir.join(program).with_extension("tar");
    fs::write(&path, archive).during(|| path.display().to_string())?;
    Ok(Archive { path, also: None })
}
