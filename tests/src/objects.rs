//! The directory of YAML files that both daemons watch.

use crate::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// What the lab begins with.
const FILES: [(&str, &str); 5] = [
    ("bgp.yaml", include_str!("../lab/objects/bgp.yaml")),
    ("cluster.yaml", include_str!("../lab/objects/cluster.yaml")),
    ("payments.yaml", include_str!("../lab/objects/payments.yaml")),
    ("pods.yaml", include_str!("../lab/objects/pods.yaml")),
    ("web.yaml", include_str!("../lab/objects/web.yaml")),
];

#[derive(Debug)]
pub struct Objects {
    dir: PathBuf,
}

impl Objects {
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).during(|| dir.display().to_string())?;
        let objects = Self { dir: dir.into() };
        for (name, text) in FILES {
            objects.write(name, text)?;
        }
        Ok(objects)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.dir.join(name)).during(|| format!("reading {name}"))
    }

    /// As an editor saves: the whole file in place of the old one. The moment at which it stood there.
    pub fn write(&self, name: &str, text: &str) -> Result<Instant> {
        // A dot file is not an object; rename is what the daemons must notice.
        let temporary = self.dir.join(format!(".{name}.new"));
        fs::write(&temporary, text).during(|| format!("writing {name}"))?;
        fs::rename(&temporary, self.dir.join(name)).during(|| format!("writing {name}"))?;
        Ok(Instant::now())
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.dir.join(name)).during(|| format!("removing {name}"))
    }
}
