//! The table of connections from the daemon's side: it counts, lists and forgets; the datapath alone makes entries and
//! reclaims dead ones.

use super::{Datapath, DatapathError, generation::absent_is_fine, values::Raw, verified};
use aya::{
    Ebpf,
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_ebpf_abi::{
    FRAGMENTS_PER_RING, Flow, FlowKey, NAMES_PER_PAGE, RECENT_CLOSED, RECENT_FRAGMENTS_PASSED,
    RECENT_FRAGMENTS_RECEIVED, RECENT_FRAGMENTS_SENT, RECENT_IN, RECENT_OUT, RecentKey, Share,
};
use std::time::Duration;

const FORGET: &str = "forget";

/// Loads the program that forgets connections. It is no hook: the daemon alone runs it.
pub(super) fn load_forget(object: &mut Ebpf) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Program { what: "loading forget".into(), source };
    let program = object.program_mut(FORGET).ok_or_else(missing)?;
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    verified::load(FORGET, || program.load())
}

fn missing() -> DatapathError {
    DatapathError::Other("the object has no program forget".into())
}

impl Datapath {
    /// How many connections are alive.
    pub fn flow_count(&self) -> Result<usize, DatapathError> {
        self.live_flows()?.try_fold(0, |count, flow| flow.map(|_| count + 1))
    }

    /// Connections that are alive. Dead ones stay in the table until a new one needs their room.
    pub fn live_flows(
        &self,
    ) -> Result<impl Iterator<Item = Result<(FlowKey, Flow), DatapathError>>, DatapathError> {
        let now = monotonic_coarse()?;
        let ages = self.connections.ages;
        let alive =
            move |key: &FlowKey, flow: &Flow| now.saturating_sub(flow.last_seen) <= ages.of(key.proto, flow);
        Ok(self.flows().filter(move |entry| entry.as_ref().map_or(true, |(key, flow)| alive(key, flow))))
    }

    /// Since the last packet of a connection.
    pub fn idle(flow: &Flow) -> Result<Duration, DatapathError> {
        Ok(Duration::from_nanos(monotonic_coarse()?.saturating_sub(flow.last_seen)))
    }

    /// What the pod behind this interface has of the table; none before its first connection.
    pub fn share(&self, ifindex: u32) -> Result<Option<Share>, DatapathError> {
        match self.shares.get(&Raw(ifindex), 0) {
            Ok(Raw(share)) => Ok(Some(share)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(DatapathError::Map { what: "reading a share".into(), source }),
        }
    }

    /// The programs do it, so that the share is given back in one place only.
    pub(super) fn forget(&self, key: &FlowKey) -> Result<(), DatapathError> {
        let program = self.object.program(FORGET).ok_or_else(missing)?;
        let failed = |source| DatapathError::Program { what: "forgetting a connection".into(), source };
        let program: &SchedClassifier = program.try_into().map_err(failed)?;
        let frame = frame(key);
        program
            .test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() })
            .map_err(failed)?;
        Ok(())
    }

    /// The share and the rings of a pod that is gone.
    pub(super) fn release_share(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let Some(share) = self.share(ifindex)? else { return Ok(()) };
        let failed = |source| DatapathError::Map { what: "releasing a share".into(), source };
        let rooms = [
            (RECENT_OUT, self.connections.unanswered),
            (RECENT_IN, self.connections.unanswered),
            (RECENT_CLOSED, self.connections.closed),
            (RECENT_FRAGMENTS_SENT, FRAGMENTS_PER_RING),
            (RECENT_FRAGMENTS_PASSED, FRAGMENTS_PER_RING),
            (RECENT_FRAGMENTS_RECEIVED, FRAGMENTS_PER_RING),
        ];
        for ((kind, room), used) in rooms.into_iter().zip(share.next) {
            let used = u32::try_from(used).unwrap_or(u32::MAX).min(room);
            let slots = match kind {
                RECENT_OUT | RECENT_IN | RECENT_CLOSED => used.div_ceil(NAMES_PER_PAGE),
                _ => used,
            };
            for slot in 0..slots {
                let key = Raw(RecentKey { owner: ifindex, kind, slot });
                // A datagram's own entry makes way by itself.
                let removed = match kind {
                    RECENT_OUT | RECENT_IN | RECENT_CLOSED => self.recent.remove(&key),
                    _ => self.fragment_rings.remove(&key),
                };
                absent_is_fine(removed).map_err(failed)?;
            }
        }
        absent_is_fine(self.shares.remove(&Raw(ifindex))).map_err(failed)
    }
}

/// The key behind an Ethernet header of an experimental type (IEEE 802 local).
fn frame(key: &FlowKey) -> [u8; 54] {
    let mut frame = [0; 54];
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..30].copy_from_slice(&key.low.0);
    frame[30..46].copy_from_slice(&key.high.0);
    frame[46..48].copy_from_slice(&key.low_port.to_ne_bytes());
    frame[48..50].copy_from_slice(&key.high_port.to_ne_bytes());
    frame[50] = key.proto;
    frame
}

/// The clock that the programs stamp entries with, in nanoseconds.
pub(super) fn monotonic_coarse() -> Result<u64, DatapathError> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) } != 0 {
        let source = std::io::Error::last_os_error();
        return Err(DatapathError::Kernel { what: "reading the clock".into(), source });
    }
    // Neither is negative.
    Ok(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}
