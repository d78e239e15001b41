//! Whether a daemon of this build and configuration could take over what is on the node, before the one that runs is ended.
//!
//! Nothing is changed, and nobody is asked but the disk and the kernel: it must hold also where the API server is away.

use super::{BGP_FILE, INTERNER_FILE, NodeError, own, pins_error};
use crate::{
    config::Config,
    datapath::Datapath,
    history::History,
    net::{Kernel, NetError, uplinks as rules},
    store,
};
use bulkhead_api::objects::{BGPConfigurationSpec, BGPPeerSpec};
use bulkhead_ebpf_abi::{Connections, Sizes};
use bulkhead_policy::{Interner, Sourced};
use std::collections::BTreeMap;

/// What is kept of BGP.
type Bgp = (BTreeMap<String, Sourced<BGPPeerSpec>>, Option<Sourced<BGPConfigurationSpec>>);

/// # Errors
/// What [`super::Node::open`] would refuse.
pub async fn preflight(config: &Config) -> Result<(), NodeError> {
    let room = Connections::of(config.conntrack_entries);
    let generation = Datapath::check(&config.pin_dir, Sizes::DEFAULT, room)
        .map_err(|source| pins_error(config, source))?;
    let pinned = Datapath::is_pinned(&config.pin_dir);
    let numbers = store::read_json::<Interner>(&config.state_dir.join(INTERNER_FILE));
    if super::numbers(numbers, pinned)?.is_none() && generation != 0 {
        let (pins, state) = (config.pin_dir.clone(), config.state_dir.clone());
        return Err(NodeError::StateLost { pins, state });
    }
    History::check(&config.state_dir)?;
    store::read_json::<Bgp>(&config.state_dir.join(BGP_FILE))?;
    own::OwnNode::open(&config.state_dir)?;
    let (candidates, loopback) = Kernel::open()?.candidates().await?;
    rules::choose(&config.uplinks, &candidates, &loopback).map_err(NetError::Uplink)?;
    Ok(())
}
