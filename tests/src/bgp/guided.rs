//! Routers that run the configurations of the guide, as they stand in `docs/bgp`.

use super::{Kind, Router, bird::BirdRouter, frr::Frr, site::NODE};
use crate::{Error, Netns, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub struct Guided {
    netns: Arc<Netns>,
    dir: PathBuf,
    configuration: String,
    router: Option<Running>,
}

enum Running {
    Bird(BirdRouter),
    Frr(Frr),
}

/// The session with the lab's node in `bird.conf`.
const PROTOCOL: &str = "node1";

impl Guided {
    pub fn start(kind: Kind, netns: &Arc<Netns>, dir: &Path, configuration: &str) -> Result<Self> {
        let router = match kind {
            Kind::Bird => Running::Bird(BirdRouter::boot(netns, dir, configuration, PROTOCOL, false)?),
            Kind::Frr => Running::Frr(Frr::boot(netns, dir, configuration, NODE)?),
            Kind::Gobgp => return Err(Error::Unmet("the guide has no configuration for it".into())),
        };
        let (netns, dir, configuration) = (netns.clone(), dir.to_owned(), configuration.to_owned());
        Ok(Self { netns, dir, configuration, router: Some(router) })
    }

    /// Killed and started anew, as its service manager does: BIRD with `-R`, of FRR the daemon bgpd.
    pub fn restart(&mut self) -> Result<()> {
        match &mut self.router {
            Some(Running::Frr(frr)) => frr.restart(),
            _ => {
                // Its socket and ports are free again first.
                self.router = None;
                let bird = BirdRouter::boot(&self.netns, &self.dir, &self.configuration, PROTOCOL, true)?;
                self.router = Some(Running::Bird(bird));
                Ok(())
            }
        }
    }

    pub fn router(&self) -> Result<&dyn Router> {
        match &self.router {
            Some(Running::Bird(bird)) => Ok(bird),
            Some(Running::Frr(frr)) => Ok(frr),
            None => Err(Error::Unmet("the router did not start again".into())),
        }
    }
}
