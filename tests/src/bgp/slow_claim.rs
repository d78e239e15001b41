//! A claim whose answer comes when the test says so: a pipe in the place of its file. As long as nobody writes, who asks waits.

use super::site::DEADLINE;
use crate::{Result, until};
use nix::{libc::O_NONBLOCK, sys::stat::Mode, unistd::mkfifo};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub struct SlowClaim(PathBuf);

impl SlowClaim {
    /// The only one in `dir`, which is made.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir(dir)?;
        let pipe = dir.join(name);
        mkfifo(&pipe, Mode::S_IRWXU).map_err(io::Error::from)?;
        Ok(Self(pipe))
    }

    pub fn wait_asked(self) -> Result<AskedClaim> {
        let answer = until("the claim is asked for", DEADLINE, || {
            // It opens for writing while somebody reads.
            Ok(File::options().write(true).custom_flags(O_NONBLOCK).open(&self.0).ok())
        })?;
        Ok(AskedClaim { file: self.0, answer })
    }
}

/// Somebody waits for it.
pub struct AskedClaim {
    file: PathBuf,
    answer: File,
}

impl AskedClaim {
    /// Whoever asks later has the same answer, at once.
    pub fn answer(mut self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, &self.file)?;
        Ok(self.answer.write_all(text.as_bytes())?)
    }
}
