//! The speaker of this node, kept in step with the objects in force and the blocks the node owns.
//!
//! Stopping is restarting: [`Bgp::stop`] closes the sessions without a word, and the routers keep the routes until the
//! next daemon has announced them again. Withdrawal is [`Bgp::drain`], or a block that is released.

mod meaning;
mod reader;
pub mod why;

pub use reader::Reader;

use crate::{
    announce::{self, Routes},
    bfd::Bfd,
    learning::Learning,
    net::{Kernel, Sources},
    source::Snapshot,
    store,
};
use bulkhead_api::messages::{ErrorReply, ObjectError, code};
use bulkhead_bgp::{Password, PeerConfig, Speaker, SpeakerConfig};
use ipnetwork::IpNetwork;
use meaning::Md5;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};
use tracing::{error, info};

const PORT: u16 = 179;

/// What a speaker cannot change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed {
    asn: u32,
    restart_time: u16,
}

pub struct Bgp {
    node: String,
    uplink: Sources,
    /// Remembers what was last announced: a restart, and not a first start, when there is something in it.
    announced: PathBuf,
    /// The pins were found and verified: packets were forwarded all the time (RFC 4724 F bit).
    forwarding_preserved: bool,
    speaker: Option<(Speaker, Fixed)>,
    routes: Routes,
    bfd: Bfd,
    learning: Learning,
    /// Speakers that were started.
    starts: u64,
    /// As the kernel had counted when the daemon began.
    md5: Md5,
    /// As they were last given to the speaker.
    peers: BTreeMap<String, PeerConfig>,
    drained: bool,
    /// Why there is no speaker though there should be one, or a peer less.
    errors: Vec<ObjectError>,
}

impl Bgp {
    pub fn new(
        node: String,
        uplink: Sources,
        announced: PathBuf,
        bfd_socket: PathBuf,
        kernel: Kernel,
        forwarding_preserved: bool,
    ) -> Self {
        Self {
            node,
            uplink,
            announced,
            forwarding_preserved,
            speaker: None,
            routes: Routes::new(),
            bfd: Bfd::start(bfd_socket),
            md5: Md5::read(),
            learning: Learning::start(kernel),
            starts: 0,
            peers: BTreeMap::new(),
            drained: false,
            errors: Vec::new(),
        }
    }

    /// What stands in the way of announcing; [`Self::apply`] tries again.
    pub fn errors(&self) -> &Vec<ObjectError> {
        &self.errors
    }

    /// Why learned routes are not installed that should be; tried again by itself.
    pub fn learning_error(&self) -> Option<ObjectError> {
        let message = self.learning.error()?;
        Some(ObjectError { file: None, object: None, field: None, message })
    }

    /// Why paths are not watched that should be; the client tries again by itself.
    pub fn bfd_error(&self) -> Option<ObjectError> {
        let message = self.bfd.error()?;
        Some(ObjectError { file: None, object: None, field: None, message })
    }

    /// Sessions that used the former addresses start anew with the next [`Self::apply`].
    pub fn set_uplink(&mut self, uplink: Sources) {
        self.uplink = uplink;
    }

    /// Brings sessions and announcements in line. Call it once a generation that covers `blocks` is live.
    pub async fn apply(&mut self, snapshot: &Snapshot, blocks: &BTreeMap<IpNetwork, String>) {
        self.errors.clear();
        let Some(configuration) = &snapshot.bgp else {
            if let Some((speaker, _)) = self.speaker.take() {
                info!("no BGPConfiguration any more: withdrawing and closing all sessions");
                speaker.withdraw_all().await;
                speaker.stop().await;
                self.routes.clear();
                self.remember();
            }
            self.bfd.want(BTreeMap::new(), None);
            self.learning.nobody();
            return;
        };
        let fixed =
            Fixed { asn: configuration.spec.asn, restart_time: configuration.spec.restart_time_seconds };
        if let Err(message) = self.run(fixed).await {
            let object = Some("BGPConfiguration/default".to_string());
            self.errors =
                vec![ObjectError { file: configuration.file.clone(), object, field: None, message }];
            return;
        }
        let info = snapshot.policy.nodes.get(&self.node);
        let peers = announce::peers(
            &self.node,
            info.map(|i| &**i),
            self.uplink,
            &snapshot.bgp_peers,
            &configuration.spec,
            read_password,
        );
        let peers = self.keep_known(peers);
        self.announce(announce::routes(blocks, &snapshot.policy, &configuration.spec));
        if let Some((speaker, _)) = &self.speaker {
            let sessions = peers.iter().filter_map(PeerConfig::bfd_session).collect();
            self.bfd.want(sessions, Some(speaker.clone()));
            speaker.set_peers(peers);
            speaker.initial_routes_complete();
            self.learning.from(self.starts, speaker);
        }
    }

    /// A peer that cannot be made as its object now says stays as it was: nothing is withdrawn because a file went away.
    fn keep_known(&mut self, peers: BTreeMap<String, Result<PeerConfig, ObjectError>>) -> Vec<PeerConfig> {
        let mut known = std::mem::take(&mut self.peers);
        for (name, peer) in peers {
            let peer = peer.map_err(|error| self.errors.push(error)).ok().or_else(|| known.remove(&name));
            self.peers.extend(peer.map(|peer| (name, peer)));
        }
        self.peers.values().cloned().collect()
    }

    /// Starts the speaker, or starts it again where what it cannot change has changed.
    async fn run(&mut self, fixed: Fixed) -> Result<(), String> {
        if self.speaker.as_ref().is_some_and(|(_, running)| *running == fixed) {
            return Ok(());
        }
        let restarting = match self.speaker.take() {
            Some((speaker, _)) => {
                speaker.stop().await;
                true
            }
            None => store::read_json::<Vec<IpNetwork>>(&self.announced)
                .is_ok_and(|a| a.is_some_and(|a| !a.is_empty())),
        };
        let router_id =
            self.uplink.v4.ok_or("the uplink has no IPv4 address to take the BGP identifier from")?;
        let config = SpeakerConfig {
            asn: fixed.asn,
            router_id,
            listen: vec![
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)),
            ],
            restart_time: fixed.restart_time,
            restarting,
            forwarding_preserved: self.forwarding_preserved,
        };
        info!(asn = fixed.asn, %router_id, restarting, self.forwarding_preserved, "starting the BGP speaker");
        let speaker = Speaker::start(config).await.map_err(|e| e.to_string())?;
        self.speaker = Some((speaker, fixed));
        self.starts += 1;
        self.routes.clear();
        Ok(())
    }

    fn announce(&mut self, routes: Routes) {
        if self.drained || routes == self.routes {
            return;
        }
        self.routes = routes;
        self.remember();
        if let Some((speaker, _)) = &self.speaker {
            speaker.announce(self.routes.clone());
        }
    }

    fn remember(&self) {
        let prefixes: Vec<&IpNetwork> = self.routes.keys().collect();
        if let Err(e) = store::write_json(&self.announced, &prefixes) {
            error!(error = %e, "cannot remember what is announced; a restart would not keep it");
        }
    }

    /// Withdraws everything until the daemon starts again: the node is to be taken out of service.
    pub async fn drain(&mut self) -> Result<(), ErrorReply> {
        let Some((speaker, _)) = &self.speaker else {
            return Err(ErrorReply {
                code: code::INVALID_CONFIG,
                msg: "this node announces nothing".into(),
                details: "there is no BGPConfiguration in force".into(),
            });
        };
        speaker.withdraw_all().await;
        self.drained = true;
        self.routes.clear();
        store::write_json(&self.announced, &Vec::<IpNetwork>::new()).map_err(|e| ErrorReply {
            code: code::IO_FAILURE,
            msg: "withdrawn, but that cannot be remembered".into(),
            details: e.to_string(),
        })
    }

    /// Closes the sessions without NOTIFICATION.
    pub async fn stop(&mut self) {
        if let Some((speaker, _)) = self.speaker.take() {
            speaker.stop().await;
        }
    }

    /// For questions, which take their time: ask without the node's lock.
    pub fn reader(&self) -> Reader {
        let speaker = self.speaker.as_ref().map(|(speaker, _)| speaker.clone());
        Reader::new(speaker, self.bfd.sessions(), self.md5)
    }

    /// What is announced now, or would be if it were not drained.
    pub fn announcing(&self) -> (&Routes, bool) {
        (&self.routes, self.drained)
    }
}

/// The file's first line. What is wrong is told without any of it.
fn read_password(path: &str) -> Result<Password, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let line = text.lines().next().unwrap_or_default();
    let limit = Password::MAX_LEN;
    Password::new(line).ok_or_else(|| format!("the first line of {path} must have 1 to {limit} octets"))
}
