//! What becomes of a connection that a packet has just made: its packets pass the same way under the same rule, and so do
//! the answers; nobody is asked anew.

use super::{
    model::Model,
    outcome::{Outcome, Place, UPLINK, Way},
    reading::{ETHERNET, Reading, is_multicast},
};
use crate::packet::{ACK, HOST_MAC};
use bulkhead_daemon::datapath::Hook;
use bulkhead_ebpf_abi::{
    IDENTITY_LOCAL_NODE, IDENTITY_LOCAL_POD, ORIGIN_NONE, PROTO_TCP, PROTO_UDP, origin_of,
};

/// Packets of the connection of `frame`, which has met `outcome` at its last hook, and what each meets; none where an answer
/// comes to no hook, or it is not the matter of the short way.
pub fn packets(
    model: &Model<'_>,
    at: &Place,
    frame: &[u8],
    r: &Reading,
    outcome: &Outcome,
) -> Vec<(Place, Vec<u8>, Outcome)> {
    let of_interest = r.is_plain() && [PROTO_TCP, PROTO_UDP].contains(&r.proto) && r.src != r.dst;
    if !of_interest || outcome.admitted.is_empty() || is_multicast(r.src) {
        return Vec::new();
    }
    let Some(answer) = answer(model, at, frame.len(), r, outcome) else { return Vec::new() };
    let same = |counted| Outcome { counted, ..outcome.clone() };
    // Whoever asks for a connection again is asked about again.
    let again = if r.is_syn() { outcome.counted.clone() } else { Vec::new() };
    let (there, mac, met) = answer;
    let back = (there, mirrored(frame, r, mac), Outcome { admitted: outcome.admitted.clone(), ..met });
    let forth = (*at, acknowledging(frame.to_vec(), r), same(Vec::new()));
    vec![(*at, frame.to_vec(), same(again)), forth.clone(), back, forth.clone(), forth]
}

/// Where an answer is met, under which MAC, and what becomes of it.
fn answer(
    model: &Model<'_>,
    at: &Place,
    length: usize,
    r: &Reading,
    outcome: &Outcome,
) -> Option<(Place, [u8; 6], Outcome)> {
    let into = |pod: usize| {
        let fits = length - ETHERNET <= usize::from(model.pods[pod].mtu);
        if fits { Way::Straight } else { Way::Stack }
    };
    let ends = [r.src, r.dst].map(|address| model.pod_at(address));
    let plain = |way, origin| Outcome { way, counted: Vec::new(), admitted: Vec::new(), origin };
    let at_pod = |pod| Place { hook: Hook::FromPod, pod, origin: ORIGIN_NONE, from: None };
    let own = |pod: usize| origin_of(model.pods[pod].identities[usize::from(r.v6)]);
    let of_pod = |pod: usize, way| Some((at_pod(pod), model.pods[pod].mac, plain(way, own(pod))));
    match (at.hook, ends) {
        // From pod to pod past the stack.
        (Hook::FromPod, [Some(from), Some(to)]) if outcome.is_direct() => of_pod(to, into(from)),
        (Hook::FromPod, [Some(from), None]) if outcome.is_direct() => {
            let who = model.who(r.dst);
            let believed = who.flags & (IDENTITY_LOCAL_NODE | IDENTITY_LOCAL_POD) == 0;
            let at = Place { hook: Hook::FromUplink, pod: from, origin: ORIGIN_NONE, from: Some(UPLINK) };
            believed.then(|| (at, HOST_MAC, plain(into(from), origin_of(who.id))))
        }
        (Hook::FromPod, [Some(from), None]) => {
            let at = Place { hook: Hook::ToPod, pod: from, origin: ORIGIN_NONE, from: None };
            Some((at, HOST_MAC, plain(Way::Stack, ORIGIN_NONE)))
        }
        (Hook::ToPod | Hook::FromUplink, [_, Some(to)]) => of_pod(to, Way::Stack),
        _ => None,
    }
}

fn acknowledging(mut frame: Vec<u8>, r: &Reading) -> Vec<u8> {
    if r.proto == PROTO_TCP {
        frame[r.transport + 13] = ACK;
    }
    frame
}

/// From the other end. (Nobody here looks at checksums, and of addresses and ports the sum stays the same.)
fn mirrored(frame: &[u8], r: &Reading, mac: [u8; 6]) -> Vec<u8> {
    let mut back = acknowledging(frame.to_vec(), r);
    back[6..12].copy_from_slice(&mac);
    let (addresses, length, hop_limit) = if r.v6 { (22, 16, 21) } else { (26, 4, 22) };
    back[addresses..addresses + 2 * length].rotate_left(length);
    back[r.transport..r.transport + 4].rotate_left(2);
    back[hop_limit] = 64;
    back
}
