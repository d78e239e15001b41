//! Host ports and masquerade: what the node translates for its pods, kept as it is wanted.

use super::{Endpoints, PodContext, reply};
use crate::{
    ipam::BlockClaims,
    net::{
        Nat, Net, NetError, Sources,
        nat::{Found, HostPorts, Masquerade, host_ports},
    },
    store::Key,
};
use bulkhead_api::messages::{Attach, ErrorReply, code};
use std::net::IpAddr;
use tracing::warn;

/// What is translated, as far as this daemon knows.
#[derive(Debug, Default)]
pub(super) struct Translated {
    nat: Nat,
    /// Number of the node's ruleset in which it was found to be right; none: nobody has looked yet.
    seen: Option<u32>,
    /// Of pods that went before anybody has looked: their flows are still to be forgotten.
    gone: HostPorts,
}

impl Translated {
    pub fn new(ports: HostPorts, sources: Sources) -> Self {
        Self { nat: Nat { ports, sources, ..Nat::default() }, ..Self::default() }
    }

    /// Counts as done from the beginning: what failed half way is undone, too.
    pub async fn map<N: Net>(&mut self, net: &N, ports: &HostPorts) -> Result<(), NetError> {
        let wanted = self.nat.with(ports);
        let before = std::mem::replace(&mut self.nat, wanted);
        net.translate(&before, &self.nat).await
    }

    pub async fn unmap<N: Net>(&mut self, net: &N, ports: &HostPorts) -> Result<(), NetError> {
        let wanted = self.nat.without(ports);
        // Before it is known who is masqueraded, the table of the daemon before stays as it is: the first look removes them.
        if self.seen.is_none() {
            self.gone.extend(ports);
        } else if let Err(error) = net.translate(&self.nat, &wanted).await
            && !are_missing(net, ports).await
        {
            return Err(error);
        }
        self.nat = wanted;
        Ok(())
    }
}

/// Of a pod whose ports could not be set, say because the kernel knows nothing of such tables.
async fn are_missing<N: Net>(net: &N, ports: &HostPorts) -> bool {
    match net.translated().await {
        Ok(found) => found.missing(ports).count() == ports.len(),
        Err(error) => error.is_unsupported(),
    }
}

impl<N: Net, C: BlockClaims> Endpoints<N, C> {
    /// Whether the pod may have the ports of the node that it asks for. Asks nobody.
    pub(super) fn ports_are_free(
        &self,
        key: &Key,
        pod: &PodContext,
        request: &Attach,
    ) -> Result<(), ErrorReply> {
        for mapping in &request.port_mappings {
            let of_family = |ip: &IpAddr| pod.ranges.iter().any(|range| range.is_ipv4() == ip.is_ipv4());
            if let Some(ip) = mapping.host_ip.filter(|ip| !of_family(ip)) {
                let details = format!("partition {} has no range of that IP version", pod.partition);
                let what =
                    format!("the host port {} at {ip} can lead to no address of the pod", mapping.host_port);
                return Err(reply(code::INVALID_CONFIG, &what, details));
            }
        }
        // Any of each family stands for those that it will have.
        let ranges = pod.ranges.iter().map(|range| range.network());
        let asked = host_ports(&request.port_mappings, &ranges.collect::<Vec<_>>());
        let others = self.entries.iter().filter(|(other, _)| *other != key).map(|(_, entry)| &entry.record);
        for other in others.filter(|record| !record.port_mappings.is_empty()) {
            let taken = other.host_ports();
            if let Some(port) = asked.keys().find(|port| taken.keys().any(|t| t.overlaps(port))) {
                let details = format!("pod {}/{} has it on this node", other.pod.namespace, other.pod.name);
                return Err(reply(code::TRY_AGAIN_LATER, &format!("the host port {port} is taken"), details));
            }
        }
        Ok(())
    }

    /// After a start: what the machine lost while no daemon ran. What is there is looked at when it is known what is wanted.
    pub(super) async fn restore_translation(&mut self) -> Result<(), NetError> {
        let nat = &self.translated.nat;
        if !nat.is_empty() && self.net.translated().await? == Found::default() {
            self.net.translate_anew(nat).await?;
        }
        Ok(())
    }

    /// Whose connections leave as the node's from now on; those that live go on as they began.
    pub async fn set_masquerade(&mut self, masquerade: Masquerade) -> Result<(), NetError> {
        let before = &self.translated.nat;
        let wanted = Nat { masquerade, sources: self.node.sources, ports: before.ports.clone() };
        if self.translated.seen.is_none() {
            self.translated.nat = wanted;
            return self.look_at_translation().await;
        }
        self.net.translate(before, &wanted).await?;
        self.translated.nat = wanted;
        Ok(())
    }

    /// Puts right what somebody else has changed. Where nothing is wanted nothing is asked; and before it is known who is
    /// masqueraded, the table of the daemon before stays.
    pub async fn keep_translation(&mut self) -> Result<(), NetError> {
        if self.translated.seen.is_none() || self.translated.nat.is_empty() {
            return Ok(());
        }
        self.look_at_translation().await
    }

    async fn look_at_translation(&mut self) -> Result<(), NetError> {
        let Translated { nat, seen, gone } = &mut self.translated;
        let now = match self.net.ruleset().await {
            // A kernel without nf_tables has none of ours.
            Err(_) if nat.is_empty() => 0,
            now => now?,
        };
        if *seen == Some(now) {
            return Ok(());
        }
        if (now != 0 || !nat.is_empty()) && self.net.translated().await? != Found::expected(nat) {
            if seen.is_some() {
                warn!("somebody has changed the table of host ports and masquerade: made anew");
            }
            self.net.translate_anew(nat).await?;
        }
        self.net.forget_flows(&std::mem::take(gone)).await;
        // What has changed since, also by us, is looked at the next time.
        *seen = Some(now);
        Ok(())
    }
}
