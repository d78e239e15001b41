//! Passwords out of files of this node. Nothing here is ever printed.

use bulkhead_bgp::Password;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// What each file said when it was read last: a key that is rotated is in force without anybody touching an object.
#[derive(Debug, Default)]
pub struct KeyFiles(BTreeMap<String, Result<Password, String>>);

impl KeyFiles {
    /// The files that are asked for, all of them; read anew.
    pub fn follow(&mut self, paths: BTreeSet<String>) {
        self.0 = paths.into_iter().map(|path| (path.clone(), read(&path))).collect();
    }

    /// The password, or why there is none.
    pub fn password(&self, path: &str) -> Result<Password, String> {
        self.0.get(path).cloned().unwrap_or_else(|| read(path))
    }

    /// Whether a file says something else now.
    pub fn has_news(&self) -> bool {
        self.0.iter().any(|(path, said)| read(path) != *said)
    }
}

/// The first line. What is wrong is told without any of it.
fn read(path: &str) -> Result<Password, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let line = text.lines().next().unwrap_or_default();
    let limit = Password::MAX_LEN;
    Password::new(line).ok_or_else(|| format!("the first line of {path} must have 1 to {limit} octets"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
