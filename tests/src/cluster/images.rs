//! Images for the cluster's machines: Bulkhead's, as `make image` leaves it, the one that it takes the place of, and one of busybox
//! that every pod of a test runs.

use super::release::Release;
use crate::{Context, Error, Result, programs, unmet};
use bulkhead_image::{Architecture, File, Image};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// `/bin/busybox`; without arguments it only stays, so it serves as the sandbox's image, too.
pub const BUSYBOX: &str = "bulkhead.dev/test/busybox:1";

pub struct Archive {
    pub path: PathBuf,
    /// The name that it gives its image, and another one that the image is to have.
    pub also: Option<(&'static str, &'static str)>,
}

/// Archives of all images, in the order in which they are imported; those made here in `dir`.
pub fn all(dir: &Path, previous: &Release) -> Result<Vec<Archive>> {
    let bulkhead = Archive { path: programs::find("bulkhead.tar")?, also: None };
    Ok(vec![previous.archive()?, bulkhead, busybox(dir)?])
}

fn busybox(dir: &Path) -> Result<Archive> {
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
    Ok(Archive { path, also: None })
}
