//! Images for the cluster's machines: Bulkhead's, as `make image` leaves it, and one of busybox that every pod of a test runs.

use crate::{Context, Error, Result, programs, unmet};
use bulkhead_image::{Architecture, File, Image};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// `/bin/busybox`; without arguments it only stays, so it serves as the sandbox's image, too.
pub const BUSYBOX: &str = "bulkhead.dev/test/busybox:1";

/// Archives of all images, those made here in `dir`.
pub fn all(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(vec![programs::find("bulkhead.tar")?, busybox(dir)?])
}

fn busybox(dir: &Path) -> Result<PathBuf> {
    let content = fs::read("/bin/busybox").map_err(|_| Error::NotInstalled("busybox-static"))?;
    let programs = [File { path: "bin/busybox".into(), content }];
    let image = Image {
        name: BUSYBOX,
        architecture: Architecture::Amd64,
        programs: &programs,
        arguments: &["sleep", "1000000"],
    };
    let archive = image.to_archive().or_else(|e| unmet(format!("making {BUSYBOX}: {e}")))?;
    let path = dir.join("busybox.tar");
    fs::write(&path, archive).during(|| path.display().to_string())?;
    Ok(path)
}
