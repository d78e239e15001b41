//! Passwords out of Secrets of the daemons' own namespace.
//!
//! Each Secret is watched by its name, so that a role which names it is all the right that it takes. What was read is kept in
//! memory and, for a daemon that starts while the API server is away, in a file that root alone may read, beside the daemon's
//! socket: in `/run`, which goes with the machine's power. Nothing here is ever printed.

use crate::source::kubernetes::reason;
use bulkhead_api::objects::BGPPasswordSecret;
use bulkhead_bgp::Password;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{sync::Notify, task::JoinHandle};
use tracing::warn;

type Keys = BTreeMap<String, String>;

pub struct Secrets {
    /// Absent where there is no cluster.
    client: Option<Client>,
    shared: Arc<Shared>,
    watches: BTreeMap<String, JoinHandle<()>>,
}

struct Shared {
    /// By Secret: what it holds, or why that is not known.
    read: Mutex<BTreeMap<String, Result<Keys, String>>>,
    file: PathBuf,
    news: AtomicBool,
    attention: Arc<Notify>,
}

impl Secrets {
    /// `attention` is woken when [`Self::has_news`] has something to say.
    pub fn new(client: Option<Client>, file: PathBuf, attention: Arc<Notify>) -> Self {
        let before = if client.is_some() { remembered(&file) } else { BTreeMap::new() };
        let read = before.into_iter().map(|(name, keys)| (name, Ok(keys))).collect();
        let shared = Shared { read: Mutex::new(read), file, news: AtomicBool::new(false), attention };
        Self { client, shared: Arc::new(shared), watches: BTreeMap::new() }
    }

    /// The Secrets that are asked for, all of them.
    pub fn follow(&mut self, names: &BTreeSet<String>) {
        self.watches.retain(|name, watch| {
            let stays = names.contains(name);
            if !stays {
                watch.abort();
            }
            stays
        });
        let mut read = self.shared.read();
        let before = read.len();
        read.retain(|name, _| names.contains(name));
        if read.len() != before {
            self.shared.remember(&read);
        }
        drop(read);
        let Some(client) = &self.client else { return };
        for name in names {
            let watch = || tokio::spawn(watch(client.clone(), name.clone(), self.shared.clone()));
            self.watches.entry(name.clone()).or_insert_with(watch);
        }
    }

    /// The password, or why there is none.
    pub fn password(&self, secret: &BGPPasswordSecret) -> Result<Password, String> {
        let BGPPasswordSecret { name, key } = secret;
        let Some(client) = &self.client else {
            return Err("there are no Secrets without a cluster: set passwordFile".into());
        };
        let what = format!("Secret {}/{name}", client.default_namespace());
        let read = self.shared.read();
        let keys = match read.get(name) {
            None => return Err(format!("{what} has not been read yet")),
            Some(Err(why)) => return Err(format!("{what}: {why}")),
            Some(Ok(keys)) => keys,
        };
        let text = keys.get(key).ok_or_else(|| format!("{what} has no key `{key}`"))?;
        let limit = Password::MAX_LEN;
        let line = text.lines().next().unwrap_or_default();
        Password::new(line)
            .ok_or_else(|| format!("the first line of `{key}` in {what} must have 1 to {limit} octets"))
    }

    /// Whether a Secret says something else than when this was asked last.
    pub fn has_news(&self) -> bool {
        self.shared.news.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.watches.values().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn read(&self) -> MutexGuard<'_, BTreeMap<String, Result<Keys, String>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, name: &str, said: Result<Keys, String>) {
        let mut read = self.read();
        if read.get(name) == Some(&said) {
            return;
        }
        read.insert(name.to_owned(), said);
        self.remember(&read);
        drop(read);
        self.news.store(true, Ordering::Relaxed);
        self.attention.notify_one();
    }

    fn remember(&self, read: &BTreeMap<String, Result<Keys, String>>) {
        let known = read.iter().filter_map(|(name, said)| Some((name, said.as_ref().ok()?)));
        if let Err(error) = remember(&self.file, &known.collect()) {
            warn!(file = %self.file.display(), %error, "cannot remember passwords; a restart without the API server would lack them");
        }
    }

    /// What is known counts on.
    fn failed(&self, name: &str, why: String) {
        if !matches!(self.read().get(name), Some(Ok(_))) {
            self.say(name, Err(why));
        }
    }
}

async fn watch(client: Client, name: String, shared: Arc<Shared>) {
    let secrets: Api<Secret> = Api::default_namespaced(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = Box::pin(watcher::watcher(secrets, config).default_backoff());
    let missing = || Err("there is none".to_owned());
    let mut listed = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed = false,
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                listed = true;
                shared.say(&name, Ok(keys(secret)));
            }
            Ok(Event::InitDone) if listed => {}
            Ok(Event::InitDone | Event::Delete(_)) => shared.say(&name, missing()),
            Err(
                watcher::Error::InitialListFailed(e)
                | watcher::Error::WatchStartFailed(e)
                | watcher::Error::WatchFailed(e),
            ) => shared.failed(&name, format!("{}; is it named in the Role of the daemons?", reason(&e))),
            Err(error) => shared.failed(&name, error.to_string()),
        }
    }
}

fn keys(secret: Secret) -> Keys {
    let data = secret.data.unwrap_or_default();
    data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect()
}

fn remembered(file: &Path) -> BTreeMap<String, Keys> {
    let read = fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    read.unwrap_or_default()
}

fn remember(file: &Path, known: &BTreeMap<&String, &Keys>) -> io::Result<()> {
    let new = file.with_extension("new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    to.write_all(&serde_json::to_vec(known)?)?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_remembered_is_for_root_alone_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwords.json");
        let (name, keys) =
            ("bulkhead-bgp".to_owned(), Keys::from([("leaf".to_owned(), "correct-horse".to_owned())]));
        for _ in 0..2 {
            remember(&file, &BTreeMap::from([(&name, &keys)])).unwrap();
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(remembered(&file), BTreeMap::from([(name.clone(), keys.clone())]));
        }
    }

    #[test]
    fn without_a_cluster_there_are_no_secrets() {
        let secrets = Secrets::new(None, PathBuf::new(), Arc::default());
        let secret = BGPPasswordSecret { name: "bulkhead-bgp".into(), key: "leaf".into() };
        assert!(secrets.password(&secret).unwrap_err().contains("set passwordFile"));
    }
}
