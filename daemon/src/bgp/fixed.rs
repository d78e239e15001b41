//! Fixed addresses at the speaker's end: when their claims are asked for, and what the routers say of them.

use super::{Begun, Bgp, Quarantine, quarantine::AtRouter};
use crate::{announce, ipam::Asked, source::Snapshot};
use bulkhead_api::{messages::ObjectError, objects::block_name};
use bulkhead_bgp::{Family, PrefixAtPeer, fsm::StateName};
use ipnetwork::IpNetwork;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinHandle};

/// How often routers are asked whether an address in quarantine is free.
const HEAR_AGAIN: Duration = Duration::from_millis(250);

impl Bgp {
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
            // Who comes meanwhile is among both.
            let absent = speaker.absent();
            let mut told: Vec<AtRouter> = speaker.prefix(address).await.iter().map(AtRouter::from).collect();
            told.extend(absent.into_iter().map(AtRouter::from));
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

    /// Remembers who has had sessions out of ranges.
    pub async fn look_after_members(&mut self) {
        if let Some((speaker, _)) = &self.speaker {
            self.members.follow(Instant::now(), speaker.members().await);
        }
    }

    /// Looks whether the routers tell of other nodes' fixed addresses, as far as these announce them.
    pub async fn hear_others(&mut self, in_force: &Snapshot) {
        let claims = in_force.blocks.values();
        let announced = claims.filter(|claim| announce::is_announced(&in_force.policy, &claim.partition));
        let claims = announced.map(|claim| (claim.cidr, claim.node.as_str()));
        let asked = self.untold.follow(Instant::now(), &self.node, claims);
        let mut answers = Vec::new();
        if let Some((speaker, _)) = &self.speaker {
            for address in asked {
                let told = speaker.prefix(address).await;
                let carries = |at: &&PrefixAtPeer| at.peer.families.contains(&Family::of(&address));
                answers.push((address, told.iter().filter(carries).map(AtRouter::from).collect()));
            }
        }
        self.untold.heard(&answers);
    }

    /// Routers that would not tell of a former owner, and addresses of which none would.
    pub fn untold(&self) -> impl Iterator<Item = ObjectError> {
        let of_router = |(router, words): (&String, &String)| {
            (format!("BGPPeer/{}", router.split('[').next().unwrap_or_default()), format!("{router} {words}"))
        };
        let of_address = |(address, words)| (format!("IPBlock/{}", block_name(address)), words);
        let told = self.untold.routers().map(of_router).chain(self.untold.addresses().map(of_address));
        told.map(|(object, message)| ObjectError { file: None, object: Some(object), field: None, message })
    }

    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }
}
