//! Takes away all that the daemons of this node ever made.
//!
//! Needs no uplink, no state that can be read and no pins of this daemon's layout: what cannot be started must still be
//! removable. It never touches another node's claims.

use super::NodeError;
use crate::{
    config::Config,
    datapath::Datapath,
    ipam::{BlockClaims, Claims},
    net::{Kernel, Links, Nat, Routes, Translation, nat::Found},
    store,
};
use tracing::info;

pub async fn uninstall(config: &Config, claims: Claims) -> Result<(), NodeError> {
    let net = Kernel::open()?;
    // Interfaces first: no pod may have a network without a policy.
    for link in net.list().await? {
        net.delete(&link.name).await?;
    }
    let routes: Vec<_> = net.list_routes().await?.into_iter().collect();
    net.remove_routes(&routes).await?;
    let learned: Vec<_> = net.learned().await?.into_keys().collect();
    net.remove_learned(&learned).await?;
    match net.translated().await {
        Ok(found) if found == Found::default() => {}
        Ok(_) => net.translate_anew(&Nat::default()).await?,
        // A kernel without nf_tables has none of ours.
        Err(error) if error.is_unsupported() => {}
        Err(error) => return Err(error.into()),
    }
    Datapath::remove_pins(&config.pin_dir)?;
    for block in claims.of_node(&config.node).await? {
        claims.release(&block).await?;
    }
    store::remove_all(&config.state_dir)?;
    // Beside the socket; where it is left, /run goes with the machine's power.
    let _ = std::fs::remove_file(config.passwords());
    info!("removed");
    Ok(())
}
