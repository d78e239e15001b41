//! Bandwidth of one pod, held by queues: `tbf` on the host side for what enters it, `tbf` on an `ifb` for what leaves it.
//!
//! The eBPF program at the pod's host side redirects what leaves into the `ifb`, whose index the shaper returns; nothing
//! here polices. A pacer by departure times can take this place behind the same trait.

use super::{
    Kernel, Links, NetError,
    links::{by_name, get_link, link_of, new_link, up, without_link_local},
    netlink::Request,
};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REPLACE, Nla, NlasIterator};
use netlink_packet_route::{
    RouteNetlinkMessage as Message,
    link::{InfoKind, LinkAttribute, LinkInfo},
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};
use serde::{Deserialize, Serialize};
use std::future::Future;

/// A rate, in Ethernet bytes as the kernel counts them (header included, no preamble or checksum).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Bits a second.
    pub rate_bits: u64,
    /// Bytes that may go out at once.
    pub burst_bytes: u64,
}

/// Seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Limit>,
}

/// Holds a pod's bandwidth.
pub trait Shaper {
    /// Reaches `limits` from whatever is there, without a moment without the old or the new rate. Returns the index of the
    /// interface that what leaves the pod must be sent into, 0 without an egress limit. An `ifb` that is no longer needed
    /// stays until [`Shaper::clear_egress`], because the eBPF program may still send into it.
    fn set(
        &self,
        ifindex: u32,
        ifb: &str,
        limits: &Limits,
    ) -> impl Future<Output = Result<u32, NetError>> + Send;
    /// Removes the `ifb`; what waits in it is lost.
    fn clear_egress(&self, ifb: &str) -> impl Future<Output = Result<(), NetError>> + Send;
    /// The rates that are in force, bits a second: into the pod, out of it.
    fn rates(
        &self,
        ifindex: u32,
        ifb: &str,
    ) -> impl Future<Output = Result<(Option<u64>, Option<u64>), NetError>> + Send;
}

impl Shaper for Kernel {
    async fn set(&self, ifindex: u32, ifb: &str, limits: &Limits) -> Result<u32, NetError> {
        let mut queues = vec![match limits.ingress {
            Some(limit) => set_tbf("set the rate into the pod", ifindex, limit),
            None => remove_root(ifindex),
        }];
        let mut pacer = 0;
        if let Some(limit) = limits.egress {
            pacer = self.make_ifb(ifb).await?;
            queues.push(set_tbf("set the rate out of the pod", pacer, limit));
        }
        self.batch(queues).await?;
        Ok(pacer)
    }

    async fn clear_egress(&self, ifb: &str) -> Result<(), NetError> {
        self.delete(ifb).await
    }

    async fn rates(&self, ifindex: u32, ifb: &str) -> Result<(Option<u64>, Option<u64>), NetError> {
        let ingress = self.rate(ifindex).await?;
        let egress = match self.find(ifb).await? {
            Some(link) => self.rate(link.index).await?,
            None => None,
        };
        Ok((ingress, egress))
    }
}

impl Kernel {
    async fn make_ifb(&self, name: &str) -> Result<u32, NetError> {
        let mut ifb = by_name(name);
        ifb.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        let what = "make the pod's ifb";
        let set_up = Request::new("bring the pod's ifb up", Message::SetLink(up(by_name(name))), 0);
        let objects = self
            .batch(vec![
                new_link(what, ifb, 0),
                without_link_local("configure the pod's ifb", by_name(name)),
                set_up,
                get_link("find the pod's ifb", name),
            ])
            .await?;
        objects.iter().find_map(link_of).map(|l| l.index).ok_or(NetError::Answer { what })
    }

    /// Of the `tbf` at the root of an interface.
    async fn rate(&self, ifindex: u32) -> Result<Option<u64>, NetError> {
        // Without ECHO the kernel tells only those who listen to all changes.
        let request = Request::new("read the queue", Message::GetQueueDiscipline(root(ifindex)), NLM_F_ECHO);
        let objects = self.batch(vec![request.fine_if(&[libc::ENOENT])]).await?;
        Ok(objects.iter().find_map(tbf_rate))
    }
}

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// No rate table then (kernel 3.8 on computes).
const LINKLAYER_ETHERNET: u8 = 1;
/// A packet as large as offloads make it must pass whole.
const GSO_MAX: u64 = 64 * 1024;
/// How long a packet waits at most.
const LATENCY_MILLIS: u64 = 25;

/// Bytes of burst and of queue, as they go to the kernel.
pub fn tbf_sizes(limit: Limit) -> (u32, u32) {
    let bytes_per_second = limit.rate_bits / 8;
    let burst = limit.burst_bytes.max(2 * GSO_MAX);
    let queue = (bytes_per_second.saturating_mul(LATENCY_MILLIS) / 1000).max(2 * GSO_MAX);
    let clamp = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    (clamp(burst), clamp(burst.saturating_add(queue)))
}

fn root(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message
}

fn set_tbf(what: &'static str, ifindex: u32, limit: Limit) -> Request {
    let rate = limit.rate_bits / 8;
    let (burst, queue) = tbf_sizes(limit);
    // struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec), limit, buffer, mtu.
    let mut parms = Vec::with_capacity(36);
    parms.extend([0, LINKLAYER_ETHERNET]);
    parms.extend([0; 6]);
    parms.extend(u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    parms.extend([0; 12]);
    parms.extend(queue.to_ne_bytes());
    parms.extend([0; 8]);
    let mut options = vec![DefaultNla::new(TCA_TBF_PARMS, parms)];
    options.push(DefaultNla::new(TCA_TBF_BURST, burst.to_ne_bytes().to_vec()));
    if rate > u64::from(u32::MAX) {
        options.push(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()));
    }
    let mut message = root(ifindex);
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes.push(TcAttribute::Kind("tbf".into()));
    message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()));
    Request::new(what, Message::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
}

fn remove_root(ifindex: u32) -> Request {
    // ENOENT, or EINVAL in older kernels: only the default queue is there.
    Request::new("remove the rate into the pod", Message::DelQueueDiscipline(root(ifindex)), 0)
        .fine_if(&[libc::ENOENT, libc::EINVAL])
}

fn tbf_rate(object: &Message) -> Option<u64> {
    let Message::NewQueueDiscipline(message) = object else { return None };
    let is_tbf = |a: &TcAttribute| matches!(a, TcAttribute::Kind(k) if k == "tbf");
    message.attributes.iter().find(|a| is_tbf(a))?;
    // Options of a kind that the library does not know come as one attribute.
    let options = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => options.iter().find_map(|o| match o {
            TcOption::Other(all) => Some(value_of(all)),
            _ => None,
        }),
        _ => None,
    })?;
    let parts: Vec<_> = NlasIterator::new(options.as_slice()).flatten().collect();
    let value = |kind: u16| parts.iter().find(|nla| nla.kind() == kind).map(|nla| nla.value());
    let rate64 = value(TCA_TBF_RATE64).and_then(|v| Some(u64::from_ne_bytes(v.try_into().ok()?)));
    let rate = || Some(u32::from_ne_bytes(value(TCA_TBF_PARMS)?.get(8..12)?.try_into().ok()?).into());
    rate64.or_else(rate).map(|bytes: u64| bytes * 8)
}

fn value_of(nla: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_lets_the_largest_packet_pass_whole() {
        let (burst, queue) = tbf_sizes(Limit { rate_bits: 1_000_000, burst_bytes: 1 });
        assert_eq!(u64::from(burst), 2 * GSO_MAX);
        assert_eq!(u64::from(queue), 4 * GSO_MAX);
    }

    #[test]
    fn the_queue_holds_its_latency_of_the_rate() {
        let (burst, queue) = tbf_sizes(Limit { rate_bits: 1_000_000_000, burst_bytes: 200_000 });
        assert_eq!((burst, queue - burst), (200_000, 3_125_000));
    }

    #[test]
    fn absurd_rates_do_not_overflow() {
        assert_eq!(tbf_sizes(Limit { rate_bits: u64::MAX, burst_bytes: u64::MAX }), (u32::MAX, u32::MAX));
    }
}
