//! The speaker of this node, kept in step with the objects in force and the blocks the node owns.
//!
//! Stopping is restarting: [`Bgp::stop`] closes the sessions without a word, and the routers keep the routes until the
//! next daemon has announced them again. Withdrawal is [`Bgp::drain`], or a block that is released.

mod addresses;
mod begun;
mod drained;
mod meaning;
mod quarantine;
mod reader;
mod secrets;
pub mod why;

pub use begun::Begun;
pub use quarantine::{Quarantine, Why};
pub use reader::Reader;

use crate::{
    announce::{self, Routes},
    bfd::Bfd,
    drain::{self, Drains},
    ipam::Asked,
    learning::Learning,
    net::{Kernel, Sources},
    peering::Refusal,
    source::Snapshot,
    store,
};
use bulkhead_api::{
    messages::{DrainInfo, DrainRequest, DrainScope, ErrorReply, ObjectError, code},
    objects::{BGPConfigurationSpec, BGPSession},
};
use bulkhead_bgp::{
    Family, Password, PeerConfig, PeerStatus, Speaker, SpeakerConfig, StationStatus, fsm::StateName,
    neighbour::Leaving,
};
use drained::Drained;
use ipnetwork::IpNetwork;
use kube::Client;
use meaning::Md5;
use quarantine::AtRouter;
use secrets::Secrets;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, task::JoinHandle};
use tracing::{error, info};

const PORT: u16 = 179;
/// How often routers are asked whether an address in quarantine is free.
const HEAR_AGAIN: Duration = Duration::from_millis(250);

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
    /// As they were last given to the speaker, but for what is drained.
    peers: BTreeMap<String, PeerConfig>,
    drains: Drained,
    /// What comes of services, of blocks and of each peer, as it was last told to the speaker.
    leaving: (Leaving, Leaving, BTreeMap<String, Leaving>),
    /// What a daemon before this one announced, until the source has told of services.
    before: Option<Vec<IpNetwork>>,
    secrets: Secrets,
    quarantine: Quarantine,
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
        let before = store::read_json::<Vec<IpNetwork>>(&announced).ok().flatten().unwrap_or_default();
        let attention = Arc::new(Notify::new());
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
            drains,
            leaving: (Leaving::No, Leaving::No, BTreeMap::new()),
            quarantine: Quarantine::new(before.clone()),
            before: Some(before),
            secrets: Secrets::new(None, PathBuf::new(), attention.clone()),
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
            if let Some((speaker, _)) = self.speaker.take() {
                info!("no BGPConfiguration any more: withdrawing and closing all sessions");
                speaker.withdraw_all().await;
                speaker.stop().await;
                self.routes.clear();
                self.remember();
            }
            self.bfd.want(BTreeMap::new(), None);
            self.learning.nobody();
            self.secrets.follow(&BTreeSet::new());
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
        self.secrets.follow(&secret_names(snapshot, &configuration.spec));
        let info = snapshot.policy.nodes.get(&self.node);
        let peers = announce::peers(
            &self.node,
            info.map(|i| &**i),
            self.uplink,
            &snapshot.bgp_peers,
            &configuration.spec,
            |session| self.password(session),
        );
        let mut peers = self.keep_known(peers);
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
        routes.extend(drain::leave(own, *blocks_leaving));
        for peer in &mut peers {
            peer.leaving = of_peers.get(&peer.name).copied().unwrap_or_default();
        }
        self.announce(routes);
        if let Some((speaker, _)) = &self.speaker {
            speaker.set_stations(announce::stations(&self.node, &configuration.spec));
            let sessions = peers.iter().filter_map(PeerConfig::bfd_session).collect();
            self.bfd.want(sessions, Some(speaker.clone()));
            speaker.set_peers(peers);
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
        self.secrets.has_news()
    }

    fn password(&self, session: &BGPSession) -> Result<Option<Password>, Refusal> {
        let (field, said) = match (&session.password_file, &session.password_secret) {
            (Some(path), _) => ("passwordFile", read_password(path)),
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

    fn announce(&mut self, routes: Routes) {
        if routes == self.routes {
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

    /// What is asked for, from the next [`Self::apply`] on; until it is undone.
    pub fn drain(&mut self, request: &DrainRequest) -> Result<(), ErrorReply> {
        let invalid = |msg: String, details: String| ErrorReply { code: code::INVALID_CONFIG, msg, details };
        if self.speaker.is_none() && !request.undo {
            let details = "there is no BGPConfiguration in force";
            return Err(invalid("this node announces nothing".into(), details.into()));
        }
        if let DrainScope::Peers(names) = &request.what {
            let known = self.peers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            if let Some(unknown) = names.iter().find(|name| !self.peers.contains_key(*name)) {
                return Err(invalid(
                    format!("no BGP peer `{unknown}` on this node"),
                    format!("there are: {known}"),
                ));
            }
            let lost = self.only_way_among(names);
            if names.is_empty() || (lost.is_some() && !request.undo) {
                let carry = lost
                    .map(|family| format!("no other carries {}: ", reader::family_name(&family)))
                    .unwrap_or_default();
                return Err(invalid(
                    "a node keeps one way out".into(),
                    format!("{carry}of its peers ({known}) name some, and not all: or ask for everything"),
                ));
            }
        }
        self.drains.command(request, unix_seconds()).map_err(|e| ErrorReply {
            code: code::IO_FAILURE,
            msg: "nothing has changed: this could not be remembered, and would be forgotten with the daemon's end".into(),
            details: e.to_string(),
        })
    }

    /// A family of these peers that no peer carries that stays.
    fn only_way_among(&self, names: &[String]) -> Option<Family> {
        let now = unix_seconds();
        let stays = |name: &String| !names.contains(name) && self.drains.annotated(name, now) == Leaving::No;
        let others = self.peers.values().filter(|peer| stays(&peer.name)).flat_map(|peer| &peer.families);
        let gone =
            self.peers.values().filter(|peer| names.contains(&peer.name)).flat_map(|peer| &peer.families);
        drain::uncarried(gone.copied(), others.copied())
    }

    async fn leaving_now(&self, now: u64) -> (Leaving, Leaving, BTreeMap<String, Leaving>) {
        let statuses = match &self.speaker {
            Some((speaker, _)) if *self.drains != Drains::default() => speaker.peers().await,
            _ => Vec::new(),
        };
        let stays = |name: &str| self.drains.peer(name, now, true) == Leaving::No;
        let established = || statuses.iter().filter(|peer| peer.state == StateName::Established);
        let others = established().filter(|peer| stays(configured(peer))).flat_map(|peer| &peer.carried);
        let others: Vec<Family> = others.copied().collect();
        let announced = |family: &Family| self.routes.keys().any(|prefix| Family::of(prefix) == *family);
        let of_peers = self.peers.iter().map(|(name, config)| {
            let own: Vec<&[Family]> =
                established().filter(|peer| configured(peer) == name).map(|p| &*p.families).collect();
            let own = if own.is_empty() { config.families.clone() } else { own.concat() };
            let own = own.into_iter().filter(&announced);
            let other = drain::uncarried(own, others.iter().copied()).is_none();
            (name.clone(), self.drains.peer(name, now, other))
        });
        (self.drains.services(now), self.drains.blocks(now), of_peers.collect())
    }

    /// Whether [`Self::apply`] has something to withdraw, or to bring back, since it was called.
    pub async fn drain_is_due(&self) -> bool {
        self.speaker.is_some() && self.leaving_now(unix_seconds()).await != self.leaving
    }

    /// Wakes whoever is to look after fixed addresses: by [`Self::begun_since_asked`], and then [`Self::hear`].
    pub fn attention(&self) -> Arc<Notify> {
        self.attention.clone()
    }

    /// What is to be handed to [`Self::asked`] if sessions have begun since the claims of fixed addresses were asked for: then they
    /// are to be asked for again.
    pub async fn begun_since_asked(&self) -> Option<Begun> {
        let (speaker, _) = self.speaker.as_ref()?;
        let begun = speaker.sessions_begun();
        if *begun.borrow() == self.asked_after {
            return None;
        }
        let peers = speaker.peers().await;
        let established = peers.iter().filter(|peer| peer.state == StateName::Established).count() as u64;
        let sessions = *begun.borrow();
        Begun::since(self.asked_after, established, sessions)
    }

    /// What came of asking for their claims, and how sessions were before it; in force with the next [`Self::apply`].
    pub fn asked(&mut self, begun: Option<Begun>, answers: Vec<(IpNetwork, Asked)>) {
        self.quarantine.asked(Instant::now(), answers, begun.is_some_and(|begun| begun.alone));
        self.asked_after = begun.map_or(self.asked_after, |begun| begun.sessions);
    }

    /// Asks the routers about what is in quarantine. Whether [`Self::apply`] has more to announce.
    pub async fn hear(&mut self) -> bool {
        let waiting: Vec<IpNetwork> = self.quarantine.waiting().map(|(address, _)| *address).collect();
        let Some((speaker, _)) = self.speaker.as_ref().filter(|_| !waiting.is_empty()) else { return false };
        let mut freed = false;
        for address in waiting {
            let told: Vec<AtRouter> = speaker.prefix(address).await.iter().map(AtRouter::from).collect();
            freed |= self.quarantine.heard(address, &told);
        }
        if self.hear_again.as_ref().is_none_or(JoinHandle::is_finished) {
            let attention = self.attention.clone();
            self.hear_again = Some(tokio::spawn(async move {
                tokio::time::sleep(HEAR_AGAIN).await;
                attention.notify_one();
            }));
        }
        let decided = self.told_after != self.asked_after && !self.quarantine.is_in_doubt(Instant::now());
        freed || decided
    }

    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// What is being drained.
    pub fn draining(&self) -> Vec<DrainInfo> {
        self.drains.told(unix_seconds())
    }

    /// Returns when all that is to be announced or withdrawn went out, or nobody reads it.
    pub async fn flush(&self) {
        if let Some((speaker, _)) = &self.speaker {
            speaker.flush().await;
        }
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

    /// What is announced now, and what comes of services and of blocks.
    pub fn announcing(&self) -> (&Routes, Leaving, Leaving) {
        (&self.routes, self.leaving.0, self.leaving.1)
    }
}

/// What is drained, beside what is announced.
const DRAINS_FILE: &str = "drains.json";

/// The name of the object that the peer comes of: one out of a range has the range's name in front.
fn configured(peer: &PeerStatus) -> &str {
    peer.name.split('[').next().unwrap_or_default()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Of all sessions, also of peers that other nodes have: a Secret more is watched, and a change of labels finds it read.
fn secret_names(snapshot: &Snapshot, configuration: &BGPConfigurationSpec) -> BTreeSet<String> {
    let own = snapshot.bgp_peers.values().map(|peer| &peer.spec.session);
    let secrets = own.chain(configuration.peer_groups.values()).filter_map(|s| s.password_secret.as_ref());
    secrets.map(|secret| secret.name.clone()).collect()
}

/// The file's first line. What is wrong is told without any of it.
fn read_password(path: &str) -> Result<Password, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let line = text.lines().next().unwrap_or_default();
    let limit = Password::MAX_LEN;
    Password::new(line).ok_or_else(|| format!("the first line of {path} must have 1 to {limit} octets"))
}
