//! The speaker of this node, kept in step with the objects in force and the blocks the node owns.
//!
//! Stopping is restarting: [`Bgp::stop`] closes the sessions without a word, and the routers keep the routes until the
//! next daemon has announced them again. So it is when the objects go that say whom to peer with ([`interrupted`]).
//! Withdrawal is [`Bgp::drain`], or a block that is released.

mod addresses;
mod begun;
mod drained;
mod fixed;
mod interrupted;
mod keys;
mod leaving;
mod meaning;
mod members;
mod named;
mod quarantine;
mod reader;
mod secrets;
mod untold;
pub mod why;

pub use begun::Begun;
pub use quarantine::{Quarantine, Why};
pub use reader::Reader;

use crate::{
    announce::{self, Routes},
    bfd::Bfd,
    drain,
    learning::Learning,
    net::{Kernel, Sources},
    peering::Refusal,
    source::Snapshot,
    store,
};
use bulkhead_api::{
    messages::ObjectError,
    objects::{BGPConfigurationSpec, BGPSession},
};
use bulkhead_bgp::{Password, PeerConfig, Speaker, SpeakerConfig, StationStatus, neighbour::Leaving};
use drained::Drained;
use interrupted::Interruption;
use ipnetwork::IpNetwork;
use keys::KeyFiles;
use kube::Client;
use meaning::Md5;
use members::Members;
use named::Named;
use secrets::Secrets;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, task::JoinHandle};
use tracing::{error, info};
use untold::Untold;

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
    /// The pins were found and verified: packets were forwarded all the time (RFC 4724 F bit). Or a speaker of this process had
    /// sessions: what carried their routes is the kernel, which goes on.
    forwarding_preserved: bool,
    speaker: Option<(Speaker, Fixed)>,
    /// There is nobody to peer with any more.
    interruption: Option<Interruption>,
    routes: Routes,
    /// There are peers to announce them to.
    told: bool,
    bfd: Bfd,
    learning: Learning,
    /// Speakers that were started.
    starts: u64,
    /// As the kernel had counted when the daemon began.
    md5: Md5,
    /// As they were last given to the speaker, but for what is drained.
    peers: BTreeMap<String, PeerConfig>,
    drains: Drained,
    /// What comes of services, of blocks and of each peer, as it was last told to the speaker.
    leaving: (Leaving, Leaving, BTreeMap<String, Leaving>),
    /// What a daemon before this one announced, until the source has told of services.
    before: Option<Vec<IpNetwork>>,
    secrets: Secrets,
    key_files: KeyFiles,
    quarantine: Quarantine,
    untold: Untold,
    members: Members,
    named: Named,
    /// After so many sessions had begun, the claims of fixed addresses were asked for.
    asked_after: u64,
    /// The speaker was told what came of it.
    told_after: u64,
    /// Somebody must look after fixed addresses.
    attention: Arc<Notify>,
    hear_again: Option<JoinHandle<()>>,
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
        let drains = Drained::open(announced.with_file_name(DRAINS_FILE));
        let members = Members::open(announced.with_file_name(MEMBERS_FILE));
        let named = Named::open(announced.with_file_name(NAMED_FILE));
        let before = store::read_json::<Vec<IpNetwork>>(&announced).ok().flatten().unwrap_or_default();
        let attention = Arc::new(Notify::new());
        Self {
            node,
            uplink,
            announced,
            forwarding_preserved,
            speaker: None,
            interruption: Interruption::of_before(&before),
            routes: Routes::new(),
            told: false,
            bfd: Bfd::start(bfd_socket),
            md5: Md5::read(),
            learning: Learning::start(kernel),
            starts: 0,
            peers: BTreeMap::new(),
            drains,
            leaving: (Leaving::No, Leaving::No, BTreeMap::new()),
            quarantine: Quarantine::new(before.clone()),
            untold: Untold::default(),
            members,
            named,
            before: Some(before),
            secrets: Secrets::new(None, PathBuf::new(), attention.clone()),
            key_files: KeyFiles::default(),
            asked_after: 0,
            told_after: 0,
            attention,
            hear_again: None,
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

    /// Why collectors of BMP are not told what they should be; tried again by itself.
    pub fn monitoring_errors(&self) -> Vec<ObjectError> {
        let stations = self.reader().stations();
        let error = |station: StationStatus| {
            let message = format!("BMP collector {}: {}", station.address, station.error?);
            Some(ObjectError { file: None, object: None, field: None, message })
        };
        stations.into_iter().filter_map(error).collect()
    }

    /// Sessions that used the former addresses start anew with the next [`Self::apply`].
    pub fn set_uplink(&mut self, uplink: Sources) {
        self.uplink = uplink;
    }

    /// Brings sessions and announcements in line. Call it once a generation that covers `blocks` is live.
    pub async fn apply(&mut self, snapshot: &Snapshot, blocks: &BTreeMap<IpNetwork, String>) {
        self.errors.clear();
        let Some(configuration) = &snapshot.bgp else {
            return self.interrupt("BGPConfiguration/default is gone").await;
        };
        self.secrets.follow(&secret_names(snapshot, &configuration.spec));
        self.key_files.follow(key_files(snapshot, &configuration.spec));
        let info = snapshot.policy.nodes.get(&self.node);
        let peers = announce::peers(
            &self.node,
            info.map(|i| &**i),
            self.uplink,
            &snapshot.bgp_peers,
            &configuration.spec,
            |session| self.password(session),
        );
        if peers.is_empty() && (self.interruption.is_some() || !self.peers.is_empty()) {
            return self.interrupt("no BGPPeer names this node any more").await;
        }
        self.interruption.iter_mut().for_each(Interruption::nothing_is_gone);
        let fixed =
            Fixed { asn: configuration.spec.asn, restart_time: configuration.spec.restart_time_seconds };
        if let Err(message) = self.run(fixed).await {
            let object = Some("BGPConfiguration/default".to_string());
            self.errors =
                vec![ObjectError { file: configuration.file.clone(), object, field: None, message }];
            return;
        }
        self.interruption = None;
        let is_lonely = peers.is_empty();
        let mut peers = self.keep_known(peers);
        self.named.follow(&peers, fixed.restart_time, unix_seconds());
        // Of a node that nothing is known of, nothing is undone.
        if let Some(info) = info {
            self.drains.annotate(info.drain_routes.as_deref(), unix_seconds());
        }
        self.quarantine.follow(blocks.keys());
        self.hear().await;
        let now = unix_seconds();
        self.leaving = self.leaving_now(now).await;
        let (services, blocks_leaving, of_peers) = &self.leaving;
        let mut shared = self.of_services(snapshot, &configuration.spec);
        shared.extend(announce::aggregates(&self.node, &snapshot.policy, &configuration.spec));
        let mut routes = drain::leave(shared, *services);
        // A block comes before a range that is the same.
        let mut own = announce::routes(blocks, &snapshot.policy, &configuration.spec);
        own.retain(|block, _| self.quarantine.admits(Instant::now(), block));
        // Announced or not: a way that is learned must not lead away from them. Of what may be another node's still, it may.
        let protected = blocks.keys().filter(|block| self.quarantine.admits(Instant::now(), block));
        if let Some((speaker, _)) = &self.speaker {
            speaker.protect(protected.copied().collect());
        }
        routes.extend(drain::leave(own, *blocks_leaving));
        for peer in &mut peers {
            peer.leaving = of_peers.get(&peer.name).copied().unwrap_or_default();
        }
        self.announce(routes, is_lonely);
        if let Some((speaker, _)) = &self.speaker {
            speaker.set_stations(announce::stations(&self.node, &configuration.spec));
            speaker.set_peers(peers);
            self.bfd.follow(speaker);
            speaker.initial_routes_complete();
            if !self.quarantine.is_in_doubt(Instant::now()) {
                self.told_after = self.asked_after;
                speaker.verified(self.told_after);
            }
            self.learning.from(self.starts, speaker);
        }
    }

    /// Ranges and single addresses of services, as far as this node is to announce them.
    pub fn of_services(&self, snapshot: &Snapshot, configuration: &BGPConfigurationSpec) -> Routes {
        let objects = &snapshot.policy;
        let said = addresses::Services { services: &snapshot.services, slices: &snapshot.endpoint_slices };
        let mut routes = match &self.before {
            Some(before) => addresses::kept(before, objects, configuration),
            None => addresses::routes(&self.node, objects, said, configuration),
        };
        routes.extend(announce::services(objects, configuration));
        routes
    }

    /// The source has told of services.
    pub fn know_services(&mut self) {
        self.before = None;
    }

    /// `file` remembers what their Secrets say.
    pub fn set_secrets(&mut self, client: Client, file: PathBuf) {
        self.secrets = Secrets::new(Some(client), file, self.attention.clone());
    }

    /// Whether passwords may have changed since this was asked last.
    pub fn has_news(&self) -> bool {
        // Both: each is news once.
        self.secrets.has_news() | self.key_files.has_news()
    }

    fn password(&self, session: &BGPSession) -> Result<Option<Password>, Refusal> {
        let (field, said) = match (&session.password_file, &session.password_secret) {
            (Some(path), _) => ("passwordFile", self.key_files.password(path)),
            (None, Some(secret)) => ("passwordSecret", self.secrets.password(secret)),
            (None, None) => return Ok(None),
        };
        said.map(Some).map_err(|message| (field.to_owned(), message))
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
        let restarting = self.close().await
            || store::read_json::<Vec<IpNetwork>>(&self.announced)
                .is_ok_and(|a| a.is_some_and(|a| !a.is_empty()));
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
        speaker.expect_members(self.members.known().clone());
        speaker.expect_peers(self.named.known(fixed.restart_time, unix_seconds()));
        let (mut begun, attention) = (speaker.sessions_begun(), self.attention.clone());
        tokio::spawn(async move {
            while begun.changed().await.is_ok() {
                attention.notify_one();
            }
        });
        self.speaker = Some((speaker, fixed));
        (self.asked_after, self.told_after) = (0, 0);
        self.starts += 1;
        self.routes.clear();
        Ok(())
    }

    /// `is_lonely`: nobody is to be peered with.
    fn announce(&mut self, routes: Routes, is_lonely: bool) {
        let told = !self.peers.is_empty();
        if (&routes, told) == (&self.routes, self.told) {
            return;
        }
        (self.routes, self.told) = (routes, told);
        // Peers that cannot be made now may keep what they were told before.
        if told || is_lonely {
            self.remember();
        }
        if let Some((speaker, _)) = &self.speaker {
            speaker.announce(self.routes.clone());
        }
    }

    fn remember(&self) {
        let prefixes: Vec<&IpNetwork> = self.routes.keys().filter(|_| self.told).collect();
        if let Err(e) = store::write_json(&self.announced, &prefixes) {
            error!(error = %e, "cannot remember what is announced; a restart would not keep it");
        }
    }

    /// Returns when all that is to be announced or withdrawn went out, or nobody reads it.
    pub async fn flush(&self) {
        if let Some((speaker, _)) = &self.speaker {
            speaker.flush().await;
        }
    }

    /// By whom routers may be led here for what this node announced: nothing that it could say would change that now, and they wait
    /// for sessions to begin again.
    pub async fn kept_by(&self) -> BTreeSet<String> {
        match &self.speaker {
            Some((speaker, _)) => speaker.kept_by().await,
            None => BTreeSet::new(),
        }
    }

    /// Closes the sessions without NOTIFICATION.
    pub async fn stop(&mut self) {
        self.end_sessions().await;
    }

    async fn end_sessions(&mut self) -> Option<Fixed> {
        let (speaker, fixed) = self.speaker.take()?;
        self.forwarding_preserved |= *speaker.sessions_begun().borrow() > 0;
        speaker.stop().await;
        Some(fixed)
    }

    /// For questions, which take their time: ask without the node's lock.
    pub fn reader(&self) -> Reader {
        let speaker = self.speaker.as_ref().map(|(speaker, _)| speaker.clone());
        Reader::new(speaker, self.bfd.sessions(), self.md5)
    }

    /// What is announced now, and what comes of services and of blocks.
    pub fn announcing(&self) -> (&Routes, Leaving, Leaving) {
        (&self.routes, self.leaving.0, self.leaving.1)
    }
}

/// What is drained, beside what is announced.
const DRAINS_FILE: &str = "drains.json";
/// Who has had sessions out of ranges.
const MEMBERS_FILE: &str = "bgp-members.json";
/// The peers that there are, and that there were.
const NAMED_FILE: &str = "bgp-peers.json";

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Also of peers that other nodes have: a Secret more is watched, and a change of labels finds it read.
fn sessions<'a>(
    snapshot: &'a Snapshot,
    configuration: &'a BGPConfigurationSpec,
) -> impl Iterator<Item = &'a BGPSession> {
    snapshot.bgp_peers.values().map(|peer| &peer.spec.session).chain(configuration.peer_groups.values())
}

fn secret_names(snapshot: &Snapshot, configuration: &BGPConfigurationSpec) -> BTreeSet<String> {
    let secrets = sessions(snapshot, configuration).filter_map(|session| session.password_secret.as_ref());
    secrets.map(|secret| secret.name.clone()).collect()
}

fn key_files(snapshot: &Snapshot, configuration: &BGPConfigurationSpec) -> BTreeSet<String> {
    sessions(snapshot, configuration).filter_map(|session| session.password_file.clone()).collect()
}
