//! The directory of YAML files that both daemons watch.

use crate::{Context, Result};
use std::{
    fmt::Write as _,
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

/// A group of more prefixes than the kernel's map of them has room for.
pub fn more_prefixes_than_fit() -> String {
    let mut text =
        "apiVersion: bulkhead.dev/v1alpha1\nkind: NetworkGroup\nmetadata: {name: many}\nspec:\n  cidrs:\n"
            .to_string();
    for n in 0..33_000 {
        let _ = writeln!(text, "  - 100.{}.{}.{}/32", 64 + n / 0x8000, n / 0x100 % 0x80, n % 0x100);
    }
    text
}
