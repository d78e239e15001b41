//! Metrics for Prometheus: gathered when they are asked for, from what the node and its speaker say of themselves.
//!
//! Off unless `metricsAddress` is configured, as everywhere in the field: the page names partitions, peers and addresses,
//! and anybody who can connect can read it.

pub mod names;
mod text;

pub use text::{Histogram, Kind, Metric};

use crate::server::Shared;
use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use bulkhead_api::messages::{
    BgpMessageCounts, BgpPeerInfo, DrainInfo, DrainScope, DropInfo, ErrorReply, PartitionInfo, Status,
};
use bulkhead_bgp::{StationStatus, fsm::StateName};
use names as m;
use std::{collections::BTreeMap, io, net::SocketAddr};
use text::Page;
use tokio::{net::TcpListener, task::JoinHandle};

/// Seconds: a small change takes milliseconds, a whole cluster a second.
pub const COMPILE_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What the node knows, taken at one moment.
pub struct Facts {
    pub status: Status,
    pub partitions: Vec<PartitionInfo>,
    pub drops: Vec<DropInfo>,
    pub connections_limit: u32,
    pub compile: Histogram,
    pub source_ready: bool,
    /// Unix time.
    pub source_change: f64,
}

/// Serves `/metrics` until the task is ended.
pub async fn serve(address: SocketAddr, node: Shared) -> io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    let router = Router::new().route("/metrics", get(page)).with_state(node);
    Ok(tokio::spawn(async move {
        // It ends with the runtime alone: errors of single connections are axum's.
        let _ = axum::serve(listener, router).await;
    }))
}

async fn page(State(node): State<Shared>) -> Result<impl IntoResponse, impl IntoResponse> {
    let gathered = {
        let node = node.lock().await;
        node.facts().map(|facts| (facts, node.bgp.reader()))
    };
    match gathered {
        Ok((facts, bgp)) => {
            let peers = bgp.peers().await;
            let text = render(&facts, &peers, &bgp.stations());
            Ok(([(header::CONTENT_TYPE, text::CONTENT_TYPE)], text))
        }
        Err(error) => Err((axum::http::StatusCode::INTERNAL_SERVER_ERROR, words(&error))),
    }
}

fn words(error: &ErrorReply) -> String {
    format!("{}: {}\n", error.msg, error.details)
}

fn render(facts: &Facts, peers: &[BgpPeerInfo], stations: &[StationStatus]) -> String {
    let mut page = Page::default();
    policy(&mut page, facts);
    datapath(&mut page, facts);
    bgp(&mut page, peers);
    draining(&mut page, &facts.status.draining);
    bmp(&mut page, stations);
    page.into_text()
}

fn policy(page: &mut Page, facts: &Facts) {
    let status = &facts.status;
    page.sample(&m::BUILD, &[&status.version], 1);
    page.sample(&m::GENERATION, &[], status.generation);
    page.sample(&m::GENERATION_SINCE, &[], status.generation_since);
    page.sample(&m::HELD, &[], u8::from(status.held.is_some()));
    page.histogram(&m::COMPILE, &facts.compile);
    page.sample(&m::LAST_CHANGE, &[], status.last_change_millis as f64 / 1e3);
    page.sample(&m::SOURCE_READY, &[], u8::from(facts.source_ready));
    page.sample(&m::SOURCE_CHANGE, &[], facts.source_change);
    page.sample(&m::PROBLEMS, &[], status.errors.len());
}

fn datapath(page: &mut Page, facts: &Facts) {
    for partition in &facts.partitions {
        page.sample(&m::ENDPOINTS, &[&partition.name], partition.endpoints);
    }
    for partition in &facts.partitions {
        page.sample(&m::STRAYS, &[&partition.name], partition.strays);
    }
    page.sample(&m::CONNECTIONS, &[], facts.status.connections);
    page.sample(&m::CONNECTIONS_LIMIT, &[], facts.connections_limit);
    let mut sums: BTreeMap<[&str; 3], (u64, u64)> = BTreeMap::new();
    for drop in &facts.drops {
        let partition = drop.partition.as_deref().unwrap_or_default();
        let (packets, bytes) = sums.entry([&drop.reason, partition, &drop.direction]).or_default();
        *packets += drop.packets;
        *bytes += drop.bytes;
    }
    for (labels, (packets, _)) in &sums {
        page.sample(&m::DROP_PACKETS, labels, packets);
    }
    for (labels, (_, bytes)) in &sums {
        page.sample(&m::DROP_BYTES, labels, bytes);
    }
}

const STATES: [StateName; 6] = [
    StateName::Idle,
    StateName::Connect,
    StateName::Active,
    StateName::OpenSent,
    StateName::OpenConfirm,
    StateName::Established,
];

fn bgp(page: &mut Page, peers: &[BgpPeerInfo]) {
    let mut each = |one: &dyn Fn(&mut Page, &BgpPeerInfo)| peers.iter().for_each(|peer| one(page, peer));
    each(&|page, p| {
        page.sample(&m::PEER_INFO, &[&p.name, &p.address.to_string(), &p.asn.to_string()], 1);
    });
    each(&|page, p| {
        for state in STATES.map(|state| state.to_string()) {
            page.sample(&m::PEER_STATE, &[&p.name, &state], u8::from(state == p.state));
        }
    });
    each(&|page, p| page.sample(&m::PEER_STATE_SECONDS, &[&p.name], p.since_seconds));
    each(&|page, p| page.sample(&m::PEER_ESTABLISHED, &[&p.name], p.established_transitions));
    each(&|page, p| {
        for (direction, counts) in [("sent", p.sent_messages), ("received", p.received_messages)] {
            let BgpMessageCounts { open, update, notification, keepalive, route_refresh } = counts;
            for (kind, count) in [
                ("open", open),
                ("update", update),
                ("notification", notification),
                ("keepalive", keepalive),
                ("route_refresh", route_refresh),
            ] {
                page.sample(&m::PEER_MESSAGES, &[&p.name, direction, kind], count);
            }
        }
    });
    each(&|page, p| {
        page.sample(&m::PEER_PREFIXES, &[&p.name, "advertised"], p.advertised);
        page.sample(&m::PEER_PREFIXES, &[&p.name, "received"], p.received);
    });
    each(&|page, p| {
        if let Some(most) = p.max_prefixes {
            page.sample(&m::PEER_MAX_PREFIXES, &[&p.name], most);
        }
    });
    each(&|page, p| {
        if p.max_prefixes.is_some() {
            page.sample(&m::PEER_MANY_PREFIXES, &[&p.name], u8::from(!p.warnings.is_empty()));
        }
    });
    each(&|page, p| page.sample(&m::PEER_GRACEFUL_RESTART, &[&p.name], u8::from(p.graceful_restart)));
    each(&|page, p| {
        if let Some(error) = &p.last_error {
            page.sample(&m::PEER_ERROR, &[&p.name, error], 1);
        }
    });
    each(&|page, p| {
        if let Some(bfd) = &p.bfd {
            page.sample(&m::BFD_UP, &[&p.name], u8::from(bfd.state == "Up"));
        }
    });
    each(&|page, p| {
        if let Some(millis) = p.bfd.as_ref().and_then(|bfd| bfd.detection_time_millis) {
            page.sample(&m::BFD_DETECTION, &[&p.name], millis as f64 / 1e3);
        }
    });
}

fn draining(page: &mut Page, draining: &[DrainInfo]) {
    let mut furthest: BTreeMap<String, u8> = BTreeMap::new();
    for drain in draining {
        let names = match &drain.what {
            DrainScope::Services => vec!["services".to_owned()],
            DrainScope::All => vec!["all".to_owned()],
            DrainScope::Peers(names) => names.iter().map(|name| format!("peer {name}")).collect(),
        };
        for name in names {
            let known = furthest.entry(name).or_default();
            *known = (*known).max(1 + u8::from(drain.withdrawn));
        }
    }
    for (what, value) in furthest {
        page.sample(&m::DRAINING, &[&what], value);
    }
}

fn bmp(page: &mut Page, stations: &[StationStatus]) {
    let mut each = |one: &dyn Fn(&mut Page, &str, &StationStatus)| {
        stations.iter().for_each(|station| one(page, &station.address.to_string(), station));
    };
    each(&|page, name, station| page.sample(&m::BMP_UP, &[name], u8::from(station.connected)));
    each(&|page, name, station| page.sample(&m::BMP_SESSIONS, &[name], station.sessions));
    each(&|page, name, station| page.sample(&m::BMP_MESSAGES, &[name], station.messages));
}
