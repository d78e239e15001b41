//! Passwords out of files of this node. Nothing here is ever printed.

use bulkhead_bgp::Password;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
};

const LONGEST: u64 = 4096;

/// What each file said when it was read last: a key that is rotated is in force without anybody touching an object.
#[derive(Debug, Default)]
pub struct KeyFiles(BTreeMap<String, Result<Password, String>>);

impl KeyFiles {
    /// The files that are asked for, all of them; read anew.
    pub fn follow(&mut self, paths: BTreeSet<String>) {
        self.0 = paths.into_iter().map(|path| (path.clone(), read(&path))).collect();
    }

    /// The password, or why there is none. Of a file that is followed.
    pub fn password(&self, path: &str) -> Result<Password, String> {
        self.0.get(path).cloned().unwrap_or_else(|| Err(format!("{path} has not been read")))
    }

    /// Whether a file says something else now.
    pub fn has_news(&self) -> bool {
        self.0.iter().any(|(path, said)| read(path) != *said)
    }
}

/// The first line. What is wrong is told without any of it.
fn read(path: &str) -> Result<Password, String> {
    let text = text(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let line = text.lines().next().unwrap_or_default();
    let limit = Password::MAX_LEN;
    Password::new(line).ok_or_else(|| format!("the first line of {path} must have 1 to {limit} octets"))
}

/// Nobody may be kept waiting: neither by a pipe nor by a file without end.
fn text(path: &str) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_no_file_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let why = read(&pipe.display().to_string()).unwrap_err();
        assert!(why.ends_with("it is no file"), "{why}");
    }

    #[test]
    fn a_file_that_says_something_else_is_news_until_it_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leaf.key").display().to_string();
        let mut keys = KeyFiles::default();
        let mut reread = || {
            let news = keys.has_news();
            keys.follow([path.clone()].into());
            (news, keys.password(&path))
        };
        assert!(matches!(reread(), (false, Err(why)) if why.starts_with("cannot read ")));
        for (text, password) in
            [("first\n", Some("first")), ("second\nnever read", Some("second")), ("\n", None)]
        {
            fs::write(&path, text).unwrap();
            let (news, said) = reread();
            assert_eq!((news, said.ok()), (true, password.and_then(Password::new)), "{text:?}");
        }
        fs::write(&path, "\nanother second line").unwrap();
        assert!(!reread().0, "what is read is the same");
    }
}
